"""Bitext from the gettext catalogs of an installed package."""

import sys
from collections import Counter

import polib
import pytest

from datagen.codes import ISO_639_3
from datagen.schema import UserError, pair_problem
from datagen.sources import gettext
from datagen.sources.gettext import LOCALES, GettextSource


def _read(**options) -> list:
    rows = [gettext.read(unit) for unit in GettextSource(**options).plan()]
    for part in rows:
        assert part.rows_in == len(part.pairs) + sum(part.dropped.values())
    return rows


def test_all_locales_are_planned_without_importing_the_package() -> None:
    imported = "django" in sys.modules
    units = GettextSource().plan()
    assert [unit["locale"] for unit in units] == sorted(LOCALES)
    assert len(units) == 99
    assert ("django" in sys.modules) == imported


def test_locales_carry_iso_codes() -> None:
    for locale, tag in LOCALES.items():
        language, script = tag.split("_")
        assert len(language) == 3 and len(script) == 4
        if len(locale.split("_")[0]) == 2:
            assert ISO_639_3[locale.split("_")[0]] == language


def test_german_pairs_in_both_directions() -> None:
    (rows,) = _read(locales=("de",))
    sides = {(pair["query_language"], pair["document_language"]) for pair in rows.pairs}
    assert sides == {("eng", "deu"), ("deu", "eng")}
    directions = Counter(pair["query_language"] for pair in rows.pairs)
    assert 0.4 < directions["eng"] / directions.total() < 0.6
    assert not any(pair_problem(pair) for pair in rows.pairs)
    found = {frozenset((pair["query"], pair["text"])) for pair in rows.pairs}
    assert (
        frozenset(
            ("Please correct the error below.", "Bitte den unten aufgeführten Fehler korrigieren.")
        )
        in found
    )  # noqa: E501
    first = rows.pairs[0]
    assert first["licence"] == "BSD-3-Clause"
    assert first["instruction"] == "Retrieve parallel sentences."
    assert first["provenance"]["row"].startswith("django/conf/locale/de/LC_MESSAGES/django.po#")


@pytest.mark.parametrize(
    ("direction", "query_language"), [("from_english", "eng"), ("to_english", "srp")]
)
def test_one_direction(direction: str, query_language: str) -> None:
    (rows,) = _read(locales=("sr_Latn",), direction=direction)
    assert {pair["query_language"] for pair in rows.pairs} == {query_language}
    assert {pair["query_script"] for pair in rows.pairs} == {"Latn"}


def test_english_locales_give_nothing_and_are_counted() -> None:
    (rows,) = _read(locales=("en_GB",))
    assert rows.pairs == []
    assert rows.dropped["english"] > 100


def test_the_cap_is_by_content_and_counted() -> None:
    (whole,), (few,) = _read(locales=("fr",)), _read(locales=("fr",), max_pairs_per_language=50)
    assert len(few.pairs) == 50
    assert few.dropped["over_source_cap"] == len(whole.pairs) - 50
    assert [pair for pair in whole.pairs if pair in few.pairs] == few.pairs


CATALOG = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "One file"
msgid_plural "%d files"
msgstr[0] "Eine Datei"
msgstr[1] "%d Dateien"

#, fuzzy
msgid "Guess"
msgstr "Vermutung"

msgid "Empty"
msgstr ""

msgid "Same"
msgstr "Same"

#~ msgid "Gone"
#~ msgstr "Weg"
"""


def test_what_is_not_taken_has_a_reason() -> None:
    reasons = {}
    for entry in polib.pofile(CATALOG):
        english, translation = gettext.sides(entry)
        reasons[english] = (translation, gettext._reason(entry, english, translation, "de"))
    assert reasons == {
        "One file": ("Eine Datei", None),
        "Guess": ("Vermutung", "fuzzy"),
        "Empty": ("", "untranslated"),
        "Same": ("Same", "same_on_both_sides"),
        "Gone": ("Weg", "obsolete"),
    }


def test_a_language_with_one_form_is_paired_with_the_english_plural() -> None:
    entry = polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural={0: "%d 個"})
    assert gettext.sides(entry) == ("%d files", "%d 個")


@pytest.mark.parametrize(
    ("options", "exit_status"),
    [
        ({"direction": "sideways"}, 2),
        ({"locales": ("xx",)}, 2),
        ({"package": "no-such-package-here"}, 1),
    ],
)
def test_mistakes_are_named(options: dict, exit_status: int) -> None:
    with pytest.raises(UserError) as raised:
        GettextSource(**options).plan()
    assert raised.value.exit_status == exit_status


def test_another_version_on_a_worker_is_refused() -> None:
    (unit,) = GettextSource(locales=("de",)).plan()
    with pytest.raises(UserError, match="same version"):
        gettext.read({**unit, "version": "0.1"})
