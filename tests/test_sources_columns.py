"""Whole columns to pairs: the same pairs and the same rejections as row by row."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen import ingest
from datagen.schema import MAX_QUERY_CHARACTERS, PAIR
from datagen.sources import parquet, ranges
from datagen.sources.columns import read_columns
from datagen.sources.files import FilesSource, read
from datagen.sources.tables import COLUMNS, TableSource, read_records
from datagen.validation import split_valid

LONG = "x" * (MAX_QUERY_CHARACTERS + 1)
TEXT = st.none() | st.sampled_from(["", " ", "\x1c", "\u3000", "a", "é b", "人", LONG]) | st.text()
TAG = st.none() | st.sampled_from(["", "deu_Latn", "de", "zh_Hant", "code", "pt-BR", "python"])
SIDE = st.none() | st.fixed_dictionaries({"title": TEXT, "text": TEXT})
Values = list[tuple[pa.DataType, st.SearchStrategy]]
VALUES: dict[str, Values] = {
    "query": [(pa.string(), TEXT), (pa.large_string(), TEXT)],
    "text": [(pa.string(), TEXT), (pa.dictionary(pa.int32(), pa.string()), TEXT)],
    "title": [(pa.string(), TEXT), (pa.null(), st.none())],
    "negatives": [
        (pa.string(), TEXT),
        (pa.list_(pa.string()), st.none() | st.lists(TEXT, max_size=3)),
        (pa.large_list(pa.struct([("title", pa.string()), ("text", pa.string())])),
         st.none() | st.lists(SIDE, max_size=3)),
    ],
    "score": [
        (pa.float64(), st.none() | st.floats(allow_nan=False)),
        (pa.int64(), st.none() | st.integers(-(2**62), 2**62)),
    ],
    **dict.fromkeys(("instruction", "licence"), [(pa.string(), TEXT)]),
    **dict.fromkeys(("language", "query_language", "document_language"), [(pa.string(), TAG)]),
}  # fmt: skip
ODD: dict[str, Values] = defaultdict(
    list,
    query=[(pa.int64(), st.integers(0, 9))],
    title=[(pa.bool_(), st.booleans())],
    negatives=[(pa.list_(pa.int64()), st.none() | st.lists(st.integers(0, 9), max_size=2))],
    score=[(pa.string(), st.sampled_from(["", "1.5", "much"]))],
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, dict[str, Any]]:
    """A table, and the map of its columns to pairs."""
    chosen = draw(st.sets(st.sampled_from(COLUMNS[2:])))
    rows = draw(st.integers(0, 5))
    usable = draw(st.integers(0, 4)) > 0  # else a column may have a type that is read row by row
    arrays = {}
    for name in COLUMNS:
        if name in ("query", "text") or name in chosen:
            kind, values = draw(st.sampled_from(VALUES[name] + ([] if usable else ODD[name])))
            column = draw(st.lists(values, min_size=rows, max_size=rows))
            arrays[name] = pa.array(column, kind)
    constants = {
        name: draw(st.none() | st.sampled_from(["fr", "und_Zyyy"]))
        for name in ("language", "query_language", "document_language", "licence", "instruction")
    }
    labels = draw(st.sampled_from([(), ("a", "b", "é b")]))
    source = TableSource(
        name="s", task="retrieval", columns={name: name for name in arrays},
        labels=labels, code=draw(st.booleans()), **constants,
    )  # fmt: skip
    return pa.table(arrays), source.row_map()


def _row_wise(table: pa.Table, row_map: Mapping[str, Any]) -> tuple[pa.Table, list[dict]]:
    rows = read_records(((f"t#{i}", row) for i, row in enumerate(table.to_pylist())), row_map)
    valid, rejected = ingest._valid(rows.pairs)
    pairs, misfits = ingest._pair_table(valid)
    return pairs, rows.quarantined + rejected + misfits


def _by_columns(table: pa.Table, row_map: Mapping[str, Any]) -> tuple[pa.Table, list[dict]]:
    names = pa.array([f"t#{i}" for i in range(table.num_rows)], pa.string())
    rows = read_columns(table, names, row_map)
    assert rows.rows_in == table.num_rows
    valid, rejected = ingest._valid(rows.pairs)
    pairs, misfits = ingest._pair_table(valid)
    if rows.table is not None:
        pairs, problems = split_valid(rows.table)
        rejected += problems
    return pairs, rows.quarantined + rejected + misfits


def _reasons(rejected: list[dict]) -> list[tuple]:
    return sorted((row["row"], row["reason"], row["error"]) for row in rejected)


@settings(deadline=None, max_examples=300)
@given(tables())
def test_columns_and_rows_give_the_same_pairs(drawn: tuple[pa.Table, dict[str, Any]]) -> None:
    table, row_map = drawn
    pairs, rejected = _by_columns(table, row_map)
    expected, expected_rejected = _row_wise(table, row_map)
    assert pairs.schema == PAIR
    assert pairs.to_pylist() == expected.to_pylist()
    assert _reasons(rejected) == _reasons(expected_rejected)


def _qa(folder: Path, **options: Any) -> FilesSource:
    columns = {"query": "q", "text": "a"}
    return FilesSource(
        name="qa", paths=(str(folder / "qa.parquet"),), task="retrieval", columns=columns, **options
    )


def test_a_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    """Parquet says text and does not look."""
    broken = pa.array([b"good", b"\xff bad", b"fine"], pa.binary())
    answers = pa.Array.from_buffers(pa.string(), 3, broken.buffers())
    table = pa.table({"q": ["one", "two", "three"], "a": answers})
    pq.write_table(table, tmp_path / "qa.parquet")
    (unit,) = _qa(tmp_path).plan()
    rows = read(unit)
    assert [pair["text"] for pair in rows.records()] == ["good", "fine"]
    (rejected,) = rows.quarantined
    assert (rejected["row"], rejected["reason"]) == ("qa.parquet#1", "invalid_utf8")
    assert "\\\\xff bad" in rejected["record"]


@pytest.mark.parametrize("group_rows", [7, 40, 1000])
def test_large_rows_make_small_units(tmp_path: Path, monkeypatch, group_rows: int) -> None:
    monkeypatch.setattr(parquet, "BYTES_PER_UNIT", 4000)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 6)
    texts = [f"{i} " + f"{i * 7919 % 1000:03}" * 100 for i in range(100)]
    table = pa.table({"q": [f"q{i}" for i in range(100)], "a": texts})
    pq.write_table(table, tmp_path / "qa.parquet", row_group_size=group_rows, use_dictionary=False)
    units = _qa(tmp_path).plan()
    assert len(units) > 5
    pairs = [pair for unit in units for pair in read(unit).records()]
    assert [pair["text"] for pair in pairs] == texts
    assert [pair["provenance"]["row"] for pair in pairs] == [f"qa.parquet#{i}" for i in range(100)]


def test_large_lines_make_small_units(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ranges, "BYTES_PER_UNIT", 4000)
    lines = [json.dumps({"q": f"q{i}", "a": f"{i} " * 100}) for i in range(100)]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    source = _qa(tmp_path)
    source = dataclasses.replace(source, paths=(str(tmp_path / "qa.jsonl"),))
    units = source.plan()
    assert len(units) > 5
    pairs = [pair for unit in units for pair in read(unit).records()]
    assert [pair["query"] for pair in pairs] == [f"q{i}" for i in range(100)]
    assert [pair["provenance"]["row"] for pair in pairs] == [f"qa.jsonl:{i}" for i in range(1, 101)]
