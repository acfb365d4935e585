"""The table of languages: codes, names, and how often each is drawn."""

from collections import Counter

import pytest

from datagen.codes import standard_language
from datagen.schema import UserError
from datagen.synthesize.languages import (
    check_languages,
    language,
    language_name,
    languages,
    sample_language,
    script_of,
)


def test_the_table_has_a_hundred_languages_in_standard_form() -> None:
    table = languages()
    assert len(table) >= 100
    assert all(standard_language(code) == code and len(code) == 3 for code in table)
    assert len({row.name for row in table.values()}) == len(table)
    weights = [row.weight for row in table.values()]
    assert weights == sorted(weights, reverse=True) and weights[-1] >= 1


@pytest.mark.parametrize(
    ("code", "name", "script"),
    [
        ("eng", "English", "Latn"),
        ("de", "German", "Latn"),
        ("ara", "Arabic", "Arab"),
        ("zh", "Chinese", "Hans"),
        ("jpn", "Japanese", "Jpan"),
        ("hin", "Hindi", "Deva"),
    ],
)
def test_a_language_has_a_name_and_a_script(code: str, name: str, script: str) -> None:
    assert (language_name(code), script_of(code)) == (name, script)


@pytest.mark.parametrize(
    ("code", "near"),
    [("germn", "deu (German)"), ("enf", "eng (English)"), ("xx", "xho (Xhosa)"), ("", "eng")],
)
def test_a_code_that_does_not_exist_is_an_error_that_names_near_ones(code: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        language(code)
    assert near in caught.value.expected and caught.value.exit_status == 2


def test_languages_are_checked_and_named_once() -> None:
    assert check_languages(["de", "deu", "eng"]) == ("deu", "eng")
    with pytest.raises(UserError, match="no language"):
        check_languages([])


def shares(codes: list[str], temperature: float) -> dict[str, float]:
    found = Counter(sample_language(str(i), codes, temperature=temperature) for i in range(4000))
    return {code: found[code] / 4000 for code in codes}


def test_languages_are_drawn_by_weight_and_evened_out_by_temperature() -> None:
    codes = ["eng", "deu", "isl"]  # 4000, 550 and 10
    assert shares(codes, 1.0) == pytest.approx({"eng": 0.88, "deu": 0.12, "isl": 0.002}, abs=0.02)
    assert shares(codes, 3.0) == pytest.approx({"eng": 0.61, "deu": 0.31, "isl": 0.08}, abs=0.02)
    assert shares(codes, 1e6) == pytest.approx(dict.fromkeys(codes, 1 / 3), abs=0.03)


def test_the_key_decides_and_the_order_of_codes_does_not() -> None:
    codes = list(languages())
    for i in range(50):
        assert sample_language(f"k{i}", codes) == sample_language(f"k{i}", codes[::-1])
    with pytest.raises(UserError, match="temperature 0"):
        sample_language("k", codes, temperature=0)
