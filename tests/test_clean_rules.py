"""Rules: which pairs go, by which name; whole columns judge as one pair at a time would."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.clean import drop_reasons
from datagen.clean_pairs import clean_pairs
from datagen.clean_rules import (
    DEFAULT_LIMITS,
    DEFAULT_RULES,
    OPTIONAL_RULES,
    RULES,
    Limits,
    Pairs,
    count_letters,
    first_reasons,
)
from datagen.clean_text import clean_code, clean_text
from datagen.repetition import distinct_share, repeats
from datagen.schema import PAIR, normalise
from datagen.sources import make_pair

ALL_BUT_INSIDE = tuple(rule for rule in RULES if rule != "query_in_document")


def _pair(query: str, text: str, *, task: str = "retrieval", code: bool = False, **fields) -> dict:
    tag = "python_Zyyy" if code else "eng_Latn"
    return make_pair("s", task, query=query, text=text, row="1", document_tag=tag, **fields)


def _reason(
    pair: dict, *, rules: tuple[str, ...] = ALL_BUT_INSIDE, limits: Limits = DEFAULT_LIMITS
) -> str | None:
    pairs, _ = clean_pairs(pa.Table.from_pylist([pair], schema=PAIR))
    return drop_reasons(pairs, rules=rules, limits=limits)[0] or None


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (_pair("What is it?", "It is a cat."), None),
        (_pair("Name", "NAME "), "query_equals_document"),
        (_pair("STRASSE", "straße"), "query_equals_document"),
        (_pair("ΟΔΟΣ", "οδος"), "query_equals_document"),
        (_pair("print(1)", "print(1)", code=True), None),
        (_pair("link", "https://a.example/x www.b.example"), "url_only"),
        (_pair("the link", "see https://a.example/x"), None),
        (_pair("when?", "1945"), "no_letters"),
        (_pair("when?", "x = 1945", code=True), None),
        (_pair("show all files", "..", code=True), None),
        (_pair("T", "Tag"), "too_short"),
        (_pair("person", "人"), None),
        (_pair("village", "गां"), None),  # one letter and two vowel signs, of GATITOS
        (_pair("come", "ና"), None),  # Amharic writes syllables
        (_pair("I", "n\u0304"), "too_short"),
        (_pair("dot", "・"), "no_letters"),  # stands among the kana, but is no letter
        (_pair("a page", "word " * 25_000), "too_long"),
        (_pair("a page", "語" * 40_000), "too_long"),  # a Han letter counts as three
        (_pair("a program", "x = 1\n" * 20_000, code=True), "too_long"),
        (_pair("laugh", "ha " * 20), "repetition"),
        (_pair("zeros", "print('0')\n" * 40, code=True), "repetition"),
        (_pair("It is good news.", "good", task="classification"), "label_in_text"),
        (_pair("It is a goodie.", "good", task="classification"), None),
        (_pair("It is good news.", "good"), None),
        (_pair("How are they?", "5", task="classification"), None),
    ],
)
def test_rules(pair: dict, reason: str | None) -> None:
    assert _reason(pair) == reason


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("{{title}}", True),
        ("{{ page.title }} – {{ site.name }}", True),
        ("%(name)s / %(size)d", True),
        ("[insert company name here]", True),
        ("TODO", True),
        ("{NS}", True),  # of TICO-19
        ("[object Object]", True),
        ("#REF!", True),
        ("Delete %(name)s?", False),  # a placeholder in a sentence is normal
        ("Hello {{name}}, welcome", False),
        ("todo", False),  # Spanish for all
        ("Null", False),  # German for zero
        ("[Applause]", False),
    ],
)
def test_templates_are_placeholders_and_nothing_else(text: str, taken: bool) -> None:
    assert (_reason(_pair("a question", text), rules=("template",)) is not None) == taken
    command = _pair("a question", text, code=True)
    assert _reason(command, rules=("template",)) is None


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("We use cookies to give you the best experience on our website.", True),
        ("Please enable JavaScript to continue.", True),
        ("© 2019 Example Corp. All rights reserved.", True),
        ("404 - Page Not Found", True),
        ("Read more", True),
        ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", True),
        ("Home | About us | Contact | Privacy", True),
        ("Home » Products » Tools » Hammers", True),
        ("Websites use cookies to remember who is logged in.", False),
        ("JavaScript is a language of the web.", False),
        ("All rights reserved for the author are listed in chapter 3.", False),
        ("404 people came.", False),
        ("500 ug Adrenaliny im.", False),  # of EXAMS
        ("The log in the river floated.", False),
        ("cat | dog", False),
        ("Read more books. They are good for you.", False),
    ],
)
def test_boilerplate_is_what_any_site_says(text: str, taken: bool) -> None:
    assert (_reason(_pair("a question", text), rules=("boilerplate",)) is not None) == taken
    translation = _pair("Seite nicht gefunden", text, task="bitext")
    assert _reason(translation, rules=("boilerplate",)) is None  # strings of a user interface


def test_a_query_that_the_document_says_is_taken_on_request() -> None:
    pair = _pair("capital of France", "The Capital of\nFrance is Paris.")
    assert _reason(pair, rules=DEFAULT_RULES) is None
    assert _reason(pair, rules=("query_in_document",)) == "query_in_document"
    assert set(OPTIONAL_RULES) == set(RULES) - set(DEFAULT_RULES)


def test_limits_can_be_set() -> None:
    pair = _pair("one two three", "four five")
    assert _reason(pair, limits=Limits(min_letters=9)) == "too_short"
    assert _reason(pair, limits=Limits(max_query_characters=12)) == "too_long"
    assert _reason(pair, limits=Limits(max_document_characters=9)) is None


# The rules again, on one pair at a time: what the columns are held against.


def _natural(pair: dict) -> list[str]:
    sides = [] if pair["query_code"] else [pair["query"]]
    if not pair["document_code"] and pair["task"] != "classification":
        sides.append(pair["text"])
    return sides


def _same(pair: dict) -> bool:
    if pair["document_code"]:
        return False
    return normalise(pair["query"]).casefold() == normalise(pair["text"]).casefold()


def _leaked(pair: dict) -> bool:
    if pair["task"] != "classification":
        return False
    label = re.escape(normalise(pair["text"]).casefold())
    text = normalise(pair["query"]).casefold()
    return re.search(rf"(?<!\w){label}(?!\w)", text) is not None


def _repeats(text: str) -> bool:
    windows = (text[:2000], text[-2000:])
    return len(text) >= 40 and any(distinct_share(window) < 0.2 for window in windows)


_URLS = re.compile(r"(?:\s*(?:https?://|www\.)\S+)+\s*")
ONE_BY_ONE: dict[str, Callable[[dict], bool]] = {
    "query_equals_document": _same,
    "url_only": lambda pair: any(_URLS.fullmatch(side) for side in _natural(pair)),
    "no_letters": lambda pair: any(not any(map(str.isalpha, s)) for s in _natural(pair)),
    "too_short": lambda pair: any(count_letters(side) < 2 for side in _natural(pair)),
    "repetition": lambda pair: _repeats(pair["query"]) or _repeats(pair["text"]),
    "label_in_text": _leaked,
}

PIECES = st.sampled_from(
    [
        "गां",
        "ና",
        "n\u0304",
        "a",
        "A",
        "ß",
        "ss",
        "SS",
        "Σ",
        "ς",
        "σ",
        "ﬁ",
        "fi",
        "İ",
        "i̇",
        "人",
        "・",
        "カ",
        "5",
        ".",
        " ",
    ]
    + ["\n", "https://a.example/x", "www.b.example ", "good", "Good", "nan ", "é", "ab cd ", "K"]
)
SIDES = st.lists(PIECES, min_size=1, max_size=9).map("".join) | st.builds(
    lambda piece, times: piece * times, PIECES, st.integers(10, 60)
)
SIDES = SIDES.filter(str.strip)


def _cleaned(pair: dict) -> dict:
    clean = {True: clean_code, False: clean_text}
    sides = {"query": clean[pair["query_code"]], "text": clean[pair["document_code"]]}
    return {**pair, **{name: change(pair[name]) for name, change in sides.items()}}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            SIDES,
            SIDES | st.none(),  # none: the query in capitals
            st.sampled_from(["retrieval", "classification", "bitext"]),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_columns_judge_as_one_pair_at_a_time(rows: list[tuple]) -> None:
    names = ("query", "text", "task", "query_code", "document_code")
    rows = [(query, text or query.upper(), *rest) for query, text, *rest in rows]
    pairs = [_cleaned(dict(zip(names, row, strict=True))) for row in rows]
    columns = {name: [pair[name] for pair in pairs] for name in names}
    table = Pairs(
        **{name: pl.Series(columns[name], dtype=pl.String) for name in names[:3]},
        **{name: np.array(columns[name]) for name in names[3:]},
    )
    for name, rule in ONE_BY_ONE.items():
        assert RULES[name](table).tolist() == [rule(pair) for pair in pairs], name
    reasons = first_reasons(table, tuple(ONE_BY_ONE))
    firsts = [next((n for n, rule in ONE_BY_ONE.items() if rule(p)), "") for p in pairs]
    assert reasons.tolist() == firsts


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.builds(
            lambda unit, times, rest: unit * times + rest,
            st.text("abcdé人 ", min_size=1, max_size=400),
            st.integers(1, 12),
            st.text("xyzß ", max_size=80),
        ),
        max_size=5,
    )
)
def test_sampling_runs_misses_no_repetition(texts: list[str]) -> None:
    found = repeats(pl.Series(texts, dtype=pl.String), shortest=40, window=300, share=0.2)
    windows = [(text[:300], text[-300:]) for text in texts]
    assert found.tolist() == [
        len(text) >= 40 and any(distinct_share(window) < 0.2 for window in pair)
        for text, pair in zip(texts, windows, strict=True)
    ]


def test_real_pairs_lose_little(shared_data: Path) -> None:
    """Prose is not taken for repetition, answers not for boilerplate."""
    table = pq.read_table(shared_data / "retrieval" / "medquad.parquet").slice(0, 2000)
    rows = [_pair(r["query"], r["positive"]) for r in table.to_pylist()]
    pairs, _ = clean_pairs(pa.Table.from_pylist(rows, schema=PAIR))
    assert (drop_reasons(pairs) != "").sum() <= 2
