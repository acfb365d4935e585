"""The clean step: what it keeps, what it drops and quarantines, and what it says about both."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen.clean import SAMPLE_CHARACTERS, SAMPLES, clean
from datagen.clean_pairs import clean_pairs, code_sides
from datagen.clean_rules import RULES, Limits
from datagen.clean_text import NORMALISERS
from datagen.ingest import ingest
from datagen.schema import PAIR, UserError
from datagen.sources import make_pair
from datagen.sources.files import FilesSource
from datagen.steps import run_steps
from datagen.store import Folder, Manifest, read_table

ROWS = {
    "question": ["What is it?", "Same.", "nothing left", "when?"],
    "answer": ["A cat &amp; a dog.", "same.", "\ufeff\u00ad", "1945"],
}


def _source(folder: Path, rows: dict[str, list[str]] = ROWS) -> FilesSource:
    pq.write_table(pa.table(rows), folder / "qa.parquet")
    columns = {"query": "question", "text": "answer"}
    paths = (str(folder / "qa.parquet"),)
    return FilesSource(name="qa", paths=paths, task="retrieval", columns=columns)


def _run(folder: Path, rows: dict[str, list[str]] = ROWS, **options) -> tuple[Folder, Manifest]:
    first = ingest(_source(folder, rows))
    output = folder / "out"
    manifests = run_steps([first, clean(first, **options)], str(output), executor="local")
    return Folder(str(output / "steps" / "clean")), manifests["clean"]


def test_the_step_keeps_what_it_drops(tmp_path: Path) -> None:
    folder, manifest = _run(tmp_path)
    assert read_table(folder, "pairs")["text"].to_pylist() == ["A cat & a dog."]
    dropped = read_table(folder, "dropped").to_pylist()
    assert [(r["row"], r["reason"]) for r in dropped] == [
        ("qa.parquet#1", "query_equals_document"),
        ("qa.parquet#3", "no_letters"),
    ]
    quarantine = read_table(folder, "quarantine").to_pylist()
    assert [(r["row"], r["reason"]) for r in quarantine] == [("qa.parquet#2", "text_empty")]
    (ledger,) = manifest.ledger
    assert (ledger["rows_in"], ledger["kept"]) == (4, 1)
    assert ledger["dropped"] == {"query_equals_document": 1, "no_letters": 1}
    sums = {"qa/normalised": 2, "qa/entities": 1, "qa/controls": 1}
    assert manifest.stats["sums"] == sums


def test_every_rule_and_every_normaliser_can_be_left_out(tmp_path: Path) -> None:
    rules = tuple(rule for rule in RULES if rule != "no_letters")
    normalisers = tuple(name for name in NORMALISERS if name != "entities")
    limits = Limits(min_letters=0)
    folder, manifest = _run(tmp_path, rules=rules, normalisers=normalisers, limits=limits)
    assert read_table(folder, "pairs")["text"].to_pylist() == ["A cat &amp; a dog.", "1945"]
    assert manifest.stats["sums"] == {"qa/normalised": 1, "qa/controls": 1}


def test_a_few_dropped_rows_of_each_rule_are_kept_as_samples(tmp_path: Path) -> None:
    answers = [f"{number}" for number in range(20)] + ["ha " * 400]
    rows = {"question": [f"which number is {a}?" for a in range(21)], "answer": answers}
    _, manifest = _run(tmp_path, rows)
    samples = manifest.stats["samples"]["qa"]
    assert {rule: len(rows) for rule, rows in samples.items()} == {
        "no_letters": SAMPLES,
        "repetition": 1,
    }
    (long,) = samples["repetition"]
    assert long == {
        "row": "qa.parquet#20",
        "query": "which number is 20?",
        "text": ("ha " * 400)[:SAMPLE_CHARACTERS],
    }


def test_samples_do_not_depend_on_how_the_rows_are_cut(tmp_path: Path, monkeypatch) -> None:
    # Every text is there twice: the sample names the row that comes first by name.
    rows = {"question": [f"which one is {a % 15}?" for a in range(30)], "answer": ["7"] * 30}
    found = []
    for rows_per_unit in (30, 4):
        monkeypatch.setattr("datagen.sources.parquet.ROWS_PER_UNIT", rows_per_unit)
        folder = tmp_path / str(rows_per_unit)
        folder.mkdir()
        found.append(_run(folder, rows)[1].stats["samples"])
    assert found[0] == found[1]


def _table(*pairs: dict) -> pa.Table:
    return pa.Table.from_pylist(list(pairs), schema=PAIR)


def test_titles_and_negatives_are_cleaned_too() -> None:
    negatives = [
        {"title": " a\u00adb ", "text": "wrong  answer"},
        {"title": None, "text": "right answer"},
        {"title": None, "text": " "},
        {"title": "no text", "text": None},
    ]
    pair = make_pair("s", "retrieval", query="q", text="right  answer", row="1")
    first, second, third = (
        {**pair, "title": " ", "negatives": negatives},
        {**pair, "title": "t", "negatives": None},
        {**pair, "title": None, "negatives": negatives[1:3]},
    )
    cleaned, _ = clean_pairs(_table(first, second, third))
    assert cleaned["title"].to_pylist() == [None, "t", None]
    kept = [{"title": "ab", "text": "wrong answer"}]
    assert cleaned["negatives"].to_pylist() == [kept, None, None]


def test_negatives_of_code_are_cleaned_as_code() -> None:
    code = "if x:\n    y  = 1  \n"
    pair = make_pair("s", "retrieval", query="q", text="pass", row="1", document_tag="python_Zyyy")
    cleaned, _ = clean_pairs(_table({**pair, "negatives": [{"title": None, "text": code}]}))
    assert cleaned["negatives"][0][0]["text"].as_py() == "if x:\n    y  = 1"


def test_sides_are_code_where_a_language_without_script_is_declared() -> None:
    tags = ["python_Zyyy", "und_Zyyy", "eng_Latn", "eng", None]
    pairs = [make_pair("s", "retrieval", query="q", text="a", row="1", query_tag=t) for t in tags]
    assert code_sides(_table(*pairs), "query").tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    "options", [{"rules": ("too_long_ago",)}, {"normalisers": ("too_long_ago",)}]
)
def test_an_unknown_name_is_refused(options: dict, tmp_path: Path) -> None:
    step = ingest(_source(tmp_path))
    with pytest.raises(UserError, match="too_long_ago") as raised:
        clean(step, **options)
    assert raised.value.exit_status == 2
