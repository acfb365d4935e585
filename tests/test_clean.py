"""Cleaning: what is changed in a text, and which pairs go, by which rule."""

import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.clean import RULES, clean, clean_code, clean_pair, clean_text
from datagen.ingest import ingest
from datagen.schema import PAIR, UserError
from datagen.sources import make_pair
from datagen.sources.files import FilesSource
from datagen.steps import run_steps
from datagen.store import Folder, read_table


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("e\u0301te\u0301", "été"),  # NFC
        ("a\x00b\x1bc\x7fd", "abcd"),
        ("one\ttwo   three\u00a0four\u3000five", "one two three four five"),
        ("a \r\n b\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("\ufeffsoft\u00adhyphen \u200fbidi\u202e", "softhyphen bidi"),
        ("Tom &amp; Jerry &lt;b&gt; &#39;x&#39; &eacute;", "Tom & Jerry <b> 'x' é"),
        ("R&D; a &copy b &unknown; &#xD800;", "R&D; a &copy b &unknown; \ufffd"),
        ("\u0093quoted\u0094 \u0097 dash", "“quoted” — dash"),  # Windows-1252 read as Latin-1
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian needs the non-joiner
        ("क्\u200dष", "क्\u200dष"),  # and Devanagari the joiner
        ("ភាសា\u200bខ្មែរ", "ភាសា\u200bខ្មែរ"),  # Khmer parts words with a zero-width space
        ("no\u200bise", "noise"),
        ("  outer  ", "outer"),
    ],
)
def test_texts_are_normalised(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@given(st.text())
def test_cleaned_text_is_nfc_without_controls(text: str) -> None:
    cleaned = clean_text(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c != "\n"]
    assert cleaned == cleaned.strip()


@given(st.text(alphabet=st.characters(blacklist_characters="&")))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    # Without entities, of which `&amp;amp;` has two layers and loses one a time.
    assert clean_text(clean_text(text)) == clean_text(text)


def test_code_keeps_its_blanks_entities_and_characters() -> None:
    code = "\n\n    x = '&amp;'  \r\n\ty = 'e\u0301'\t\n\n"
    assert clean_code(code) == "    x = '&amp;'\n\ty = 'e\u0301'"


def _pair(query: str, text: str, *, task: str = "retrieval", code: bool = False, **fields) -> dict:
    tag = "python_Zyyy" if code else "eng_Latn"
    row = make_pair("s", task, query=query, text=text, row="1", document_tag=tag, **fields)
    return pa.Table.from_pylist([row], schema=PAIR).to_pylist()[0]


def _reason(pair: dict) -> str | None:
    cleaned = clean_pair(pair)
    return next((name for name, rule in RULES.items() if rule(cleaned)), None)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (_pair("What is it?", "It is a cat."), None),
        (_pair("Name", "NAME "), "query_equals_document"),
        (_pair("print(1)", "print(1)", code=True), None),
        (_pair("link", "https://a.example/x www.b.example"), "url_only"),
        (_pair("the link", "see https://a.example/x"), None),
        (_pair("when?", "1945"), "no_letters"),
        (_pair("when?", "x = 1945", code=True), None),
        (_pair("show all files", "..", code=True), None),
        (_pair("T", "Tag"), "too_short"),
        (_pair("person", "人"), None),
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


def test_titles_and_negatives_are_cleaned_too() -> None:
    negatives = [
        {"title": " a\u00adb ", "text": "wrong  answer"},
        {"title": None, "text": "right answer"},
        {"title": None, "text": " "},
    ]
    cleaned = clean_pair(_pair("q", "right  answer", title=" ", negatives=negatives))
    assert cleaned["title"] is None
    assert cleaned["negatives"] == [{"title": "ab", "text": "wrong answer"}]


def test_the_step_keeps_what_it_drops(tmp_path: Path) -> None:
    rows = {
        "question": ["What is it?", "Same.", "nothing left", "when?"],
        "answer": ["A cat &amp; a dog.", "same.", "\ufeff\u00ad", "1945"],
    }
    pq.write_table(pa.table(rows), tmp_path / "qa.parquet")
    source = FilesSource(
        name="qa",
        paths=(str(tmp_path / "qa.parquet"),),
        task="retrieval",
        columns={"query": "question", "text": "answer"},
    )
    first = ingest(source)
    manifests = run_steps([first, clean(first)], str(tmp_path / "out"), executor="local")
    folder = Folder(str(tmp_path / "out" / "steps" / "clean"))
    assert read_table(folder, "pairs")["text"].to_pylist() == ["A cat & a dog."]
    dropped = read_table(folder, "dropped").to_pylist()
    assert [(r["row"], r["reason"]) for r in dropped] == [
        ("qa.parquet#1", "query_equals_document"),
        ("qa.parquet#3", "no_letters"),
    ]
    quarantine = read_table(folder, "quarantine").to_pylist()
    assert [(r["row"], r["reason"]) for r in quarantine] == [("qa.parquet#2", "text_empty")]
    (ledger,) = manifests["clean"].ledger
    assert (ledger["rows_in"], ledger["kept"]) == (4, 1)
    assert manifests["clean"].stats["sums"] == {"qa/normalised": 2}


def test_an_unknown_rule_is_refused() -> None:
    step = ingest(_Nothing())
    with pytest.raises(UserError, match="too_long_ago") as raised:
        clean(step, rules=("too_long_ago",))
    assert raised.value.exit_status == 2


class _Nothing:
    name = "nothing"

    def config(self) -> dict:
        return {}

    def plan(self) -> list:
        return []


def test_real_pairs_lose_little(shared_data: Path) -> None:
    """Long runs of blanks go, almost all rows stay, and prose is not taken for repetition."""
    table = pq.read_table(shared_data / "retrieval" / "medquad.parquet").slice(0, 2000)
    reasons = [_reason(_pair(r["query"], r["positive"])) for r in table.to_pylist()]
    assert sum(reason is not None for reason in reasons) <= 2
