"""Ingest: every pair is validated, and every row is accounted for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen import ingest as module
from datagen.clean import clean
from datagen.ingest import READERS, SOURCES, ingest, source
from datagen.language import tag_language
from datagen.schema import PAIR, UserError
from datagen.sources import SourceRows, make_pair, parquet
from datagen.sources.files import FilesSource
from datagen.sources.gettext import GettextSource
from datagen.steps import run_steps
from datagen.store import Folder, read_table, verify

COLUMNS = {"query": "question", "text": "answer"}
ROWS = [
    {"question": "What is the capital of France?", "answer": "Paris is the capital of France."},
    {
        "question": "Wie heißt die Hauptstadt von Österreich?",
        "answer": "Sie heißt Wien &amp; liegt.",
    },
    {"question": "Где находится Эрмитаж?", "answer": "В городе Санкт-Петербург, на Неве."},
    {"question": " ", "answer": "blank"},
    {"question": 7, "answer": "a number"},
    {"question": "same text here", "answer": "Same text here"},
    {"question": "surrogate", "answer": "\ud800"},
]


@pytest.fixture
def lines(tmp_path: Path) -> FilesSource:
    path = tmp_path / "qa.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n"
    path.write_bytes(text.encode() + b'{"question": "\xff", "answer": "a"}\n')
    (tmp_path / "qb.csv").write_text("question,answer\nHow many are there?,There are three.\n1\n")
    paths = (str(path), str(tmp_path / "qb.csv"))
    return FilesSource(name="qa", paths=paths, task="retrieval", columns=COLUMNS)


def test_bad_rows_are_quarantined_alone(lines: FilesSource, tmp_path: Path) -> None:
    manifest = run_steps([ingest(lines)], str(tmp_path / "out"), executor="local")["ingest"]
    folder = Folder(str(tmp_path / "out" / "steps" / "ingest"))
    assert read_table(folder, "pairs")["query"].to_pylist() == [
        ROWS[0]["question"],
        ROWS[1]["question"],
        ROWS[2]["question"],
        "same text here",
        "How many are there?",
    ]
    quarantine = read_table(folder, "quarantine").to_pylist()
    assert sorted((row["row"], row["reason"]) for row in quarantine) == [
        ("qa.jsonl:4", "query_empty"),
        ("qa.jsonl:5", "query_not_text"),
        ("qa.jsonl:7", "invalid_utf8"),
        ("qa.jsonl:8", "broken_json"),
        ("qa.jsonl:9", "invalid_utf8"),
        ("qb.csv:3", "wrong_field_count"),
    ]
    (row,) = manifest.ledger
    assert (row["source"], row["rows_in"], row["kept"], row["unit"]) == ("qa", 11, 5, "pairs")
    assert verify(folder) == []


def _tables(folder: Path) -> FilesSource:
    """Parquet in several units: what is read and cleaned as whole columns."""
    rows = [{**ROWS[i % 6], "id": i} for i in range(60)]
    table = {"question": [str(r["question"]) for r in rows], "answer": [r["answer"] for r in rows]}
    pq.write_table(pa.table(table), folder / "qc.parquet", row_group_size=25)
    paths = (str(folder / "qc.parquet"),)
    return FilesSource(name="qc", paths=paths, task="retrieval", columns=COLUMNS)


def test_the_same_bytes_on_both_executors(
    lines: FilesSource, tmp_path: Path, ray_session: None, monkeypatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_UNIT", 16)
    tables = _tables(tmp_path)
    assert len(tables.plan()) > 3
    digests = {}
    for executor in ("local", "ray"):
        first = ingest(lines, tables, GettextSource(locales=("de", "sr")))
        second = clean(first)
        steps = [first, second, tag_language(second)]
        manifests = run_steps(steps, str(tmp_path / executor), executor=executor)  # type: ignore[arg-type]
        digests[executor] = {name: (m.digest, m.stats) for name, m in manifests.items()}
    assert digests["local"] == digests["ray"]


@dataclass(frozen=True)
class _OddSource:
    """A source whose second row has a title that is no text."""

    name: str = "odd"

    def config(self) -> dict[str, Any]:
        return {}

    def plan(self) -> list[dict[str, Any]]:
        return [{"kind": "odd", "source": self.name}]


def _read_odd(unit: dict[str, Any]) -> SourceRows:
    pairs = [
        make_pair("odd", "retrieval", query=f"q{i}", text="a", row=str(i), title=title)
        for i, title in enumerate(["t", 5, "\ud800", None])
    ]
    return SourceRows(rows_in=4, pairs=pairs)


def test_a_row_that_does_not_fit_the_schema_costs_itself(monkeypatch) -> None:
    monkeypatch.setattr(module, "READERS", {**READERS, "odd": _read_odd})
    result = module._ingest_unit(_OddSource().plan()[0])
    assert result.tables["pairs"]["query"].to_pylist() == ["q0", "q3"]
    assert result.tables["pairs"].schema == PAIR
    assert result.tables["quarantine"]["row"].to_pylist() == ["1", "2"]
    assert dict(result.ledger[0].quarantined) == {"does_not_fit": 2}


def test_the_readers_and_sources_have_the_same_names() -> None:
    assert READERS.keys() == SOURCES.keys() - {"catalog"}


@pytest.mark.parametrize(
    "call",
    [
        lambda: source("floppy"),
        lambda: source("gettext", colour="red"),
        lambda: ingest(),
        lambda: ingest(_OddSource(), _OddSource()),
    ],
)
def test_mistakes_in_the_recipe_are_refused_at_once(call) -> None:
    with pytest.raises(UserError) as raised:
        call()
    assert raised.value.exit_status == 2


def test_an_unknown_source_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="conversations, files, gettext, hub, layout, pycode"):
        source("floppy")


def test_a_file_that_changed_is_another_configuration(lines: FilesSource, tmp_path: Path) -> None:
    run_steps([ingest(lines)], str(tmp_path / "out"), executor="local")
    Path(lines.paths[1]).write_text("question,answer\nnew,row\n")
    with pytest.raises(UserError, match="sha256"):
        run_steps([ingest(lines)], str(tmp_path / "out"), executor="local")


def test_an_unreadable_file_stops_the_step(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    broken = FilesSource(name="x", paths=(str(tmp_path),), task="retrieval", columns=COLUMNS)
    with pytest.raises(UserError, match="x.parquet"):
        run_steps([ingest(broken)], str(tmp_path / "out"), executor="local")


def test_pairs_have_every_column() -> None:
    pair = make_pair("s", "retrieval", query="q", text="a", row="1", query_tag="deu_Latn")
    table = pa.Table.from_pylist([pair], schema=PAIR)
    assert table["query_script"].to_pylist() == ["Latn"]
    assert table["negatives"].to_pylist() == [None]
