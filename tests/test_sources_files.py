"""Plain files: what can be read is read, what cannot is named, line by line."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.ingest import ingest
from datagen.schema import UserError
from datagen.sources import ROWS_PER_UNIT, files
from datagen.sources.files import FilesSource, read_rows
from datagen.sources.lines import decode_delimited, decode_jsonl
from datagen.steps import run_steps

COLUMNS = {"query": "question", "text": "answer"}


def _rows(source: FilesSource) -> tuple[list[dict], list[dict]]:
    parts = [files.read(json.loads(json.dumps(unit))) for unit in source.plan()]
    for part in parts:
        assert part.rows_in == len(part.records()) + len(part.quarantined)
    return [p for part in parts for p in part.records()], [
        q for part in parts for q in part.quarantined
    ]


def test_jsonl_is_cut_at_newlines_only_and_bad_lines_cost_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + '{"text": "one\u2028two\u0085three"}\r\n'.encode()
        + b'\n{"text": \n[1]\n{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": "last"}'
    )
    table, rejected = read_rows([str(path)])
    assert table["text"].to_pylist() == ["one\u2028two\u0085three", "last"]
    assert [(row["row"], row["reason"]) for row in rejected] == [
        ("a.jsonl:3", "broken_json"),
        ("a.jsonl:4", "not_an_object"),
        ("a.jsonl:5", "invalid_utf8"),
        ("a.jsonl:6", "invalid_utf8"),
    ]
    assert "\\\\xff" in rejected[2]["record"]


def test_csv_reads_quoted_newlines_and_survives_an_unclosed_quote(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_bytes(
        b'id,text\r\n1,"a\nb"\n2,"unclosed\n3,c\n4,d,e\n\n5,"say ""hi"""\n6,\xff\n7,last'
    )
    table, rejected = read_rows([str(path)])
    assert table.to_pylist() == [
        {"id": "1", "text": "a\nb"},
        {"id": "3", "text": "c"},
        {"id": "5", "text": 'say "hi"'},
        {"id": "7", "text": "last"},
    ]
    assert [(row["row"], row["reason"]) for row in rejected] == [
        ("b.csv:4", "broken_csv"),
        ("b.csv:6", "wrong_field_count"),
        ("b.csv:9", "invalid_utf8"),
    ]


def test_tsv_keeps_quotes_that_do_not_close(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text('id\ttext\n1\t"so" he said\n2\t"open\n3\tplain\n')
    table, rejected = read_rows([str(path)])
    assert table["text"].to_pylist() == ['"so" he said', '"open', "plain"]
    assert rejected == []


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=8))
def test_csv_written_by_a_library_comes_back(rows: list[tuple[str, str]]) -> None:
    """Whatever arrow writes as CSV is read as it was, whatever newlines and quotes are inside."""
    table = pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    decoded = decode_delimited(sink.getvalue().to_pybytes(), delimiter=",", where="test")
    assert decoded.table.to_pylist() == table.to_pylist()
    assert not decoded.bad


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.text(max_size=20), min_size=1)))
def test_jsonl_comes_back_in_order(rows: list[dict[str, str]]) -> None:
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    decoded = decode_jsonl(data)
    assert [
        {k: v for k, v in r.items() if v is not None} for r in decoded.table.to_pylist()
    ] == rows
    assert list(decoded.positions) == list(range(1, len(rows) + 1))


def test_columns_of_all_files_are_united_and_mixed_types_become_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": 1}\n{"text": "q"}\n'))
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink:
        table = pa.table({"text": pa.array(["s"]).dictionary_encode()})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with pa.CompressedOutputStream(str(tmp_path / "d.jsonl.zst"), "zstd") as stream:
        stream.write(b'{"text": "z"}\n')
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "_tmp.jsonl").write_text("not data")
    table, rejected = read_rows([str(tmp_path)])
    assert table.to_pylist() == [
        {"text": "p", "n": 1},
        {"text": "1", "n": None},
        {"text": "q", "n": None},
        {"text": "s", "n": None},
        {"text": "z", "n": None},
    ]
    assert rejected == []


@pytest.mark.parametrize(
    ("name", "content", "exit_status"),
    [
        ("absent.parquet", None, 2),
        ("cut.parquet", b"PAR1 cut short", 1),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-20], 1),
        ("cut.arrow", b"ARROW1\0\0", 1),
        ("a.xlsx", b"PK", 2),
        ("twice.csv", b"a,a\n1,2\n", 1),
    ],
)
def test_a_file_that_cannot_be_read_is_the_users_to_mend(
    tmp_path: Path, name: str, content: bytes | None, exit_status: int
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_rows([str(tmp_path / name)])
    assert name in raised.value.found
    assert raised.value.exit_status == exit_status


def test_columns_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["p"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1.5]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="text"):
        read_rows([str(tmp_path)])


def test_a_folder_without_data_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data files"):
        read_rows([str(tmp_path)])


def test_rows_become_pairs_by_the_column_map(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    rows = [
        {
            "question": "q1",
            "answer": "a1",
            "title": "t",
            "negatives": ["n1", {"text": "n2"}],
            "language": "de",
        },
        {"question": "q2", "answer": "a2", "score": "4.5"},
        {"question": "q3", "answer": "a3", "score": "high"},
        {"question": "q4", "answer": "a4", "title": 7},
        {"question": 5, "answer": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    source = FilesSource(
        name="qa",
        paths=(str(path),),
        task="retrieval",
        columns={**COLUMNS, **{c: c for c in ("title", "negatives", "score", "language")}},
        language="eng_Latn",
        licence="CC0-1.0",
        instruction="Answer.",
    )  # fmt: skip
    pairs, rejected = _rows(source)
    assert [(p["query"], p["text"], p["score"]) for p in pairs] == [
        ("q1", "a1", None),
        ("q2", "a2", 4.5),
        (5, None, None),  # ingest rejects it, as it does for every source
    ]
    first = pairs[0]
    assert (first["title"], first["licence"], first["instruction"]) == ("t", "CC0-1.0", "Answer.")
    assert (first["query_language"], first["document_language"]) == ("deu", "deu")
    assert (pairs[1]["query_language"], pairs[1]["query_script"]) == ("eng", "Latn")
    assert first["negatives"] == [{"title": None, "text": "n1"}, {"title": None, "text": "n2"}]
    assert first["provenance"] == {"row": "qa.jsonl:1"}
    assert [(r["row"], r["reason"]) for r in rejected] == [
        ("qa.jsonl:3", "score_not_a_number"),
        ("qa.jsonl:4", "title_not_text"),
        ("qa.jsonl:6", "broken_json"),
    ]


def test_every_other_label_is_a_negative(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("question,answer\nhow is it,good\n")
    source = FilesSource(
        name="c",
        paths=(str(tmp_path),),
        task="classification",
        columns=COLUMNS,
        labels=("good", "bad", "so so"),
    )
    pairs, _ = _rows(source)
    assert [side["text"] for side in pairs[0]["negatives"]] == ["bad", "so so"]


@pytest.mark.parametrize(
    ("options", "language"), [({"document_language": "lua"}, "lua"), ({}, "code")]
)
def test_documents_that_are_code(tmp_path: Path, options: dict, language: str) -> None:
    (tmp_path / "c.csv").write_text("question,answer\nsay hi,print('hi')\n")
    source = FilesSource(
        name="c",
        paths=(str(tmp_path),),
        task="retrieval",
        columns=COLUMNS,
        language="eng_Latn",
        code=True,
        **options,
    )
    ((pair,), _) = _rows(source)
    assert (pair["query_language"], pair["query_script"]) == ("eng", "Latn")
    assert (pair["document_language"], pair["document_script"]) == (language, "Zyyy")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_large_files_are_read_in_units_that_cover_every_row_once(tmp_path: Path, kind: str) -> None:
    count = 2 * ROWS_PER_UNIT + 123
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(count)]
    path = tmp_path / f"big.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=ROWS_PER_UNIT + 1500)
    source = FilesSource(name="big", paths=(str(path),), task="retrieval", columns=COLUMNS)
    assert len(source.plan()) >= 3
    pairs, rejected = _rows(source)
    assert [p["query"] for p in pairs] == [f"q{i}" for i in range(count)]
    places = [p["provenance"]["row"] for p in pairs]
    first, mark = (1, ":") if kind == "jsonl" else (0, "#")
    assert places == [f"big.{kind}{mark}{i + first}" for i in range(count)]
    assert rejected == []


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path: Path) -> None:
    configs = []
    for folder, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text(json.dumps({"question": text, "answer": "a"}))
        paths = (str(tmp_path / folder / "x.jsonl"),)
        source = FilesSource(name="x", paths=paths, task="retrieval", columns=COLUMNS)
        configs.append(source.config())
    assert configs[0] == configs[1] != configs[2]


@pytest.mark.parametrize(
    "options",
    [
        {"columns": {"query": "question"}},
        {"columns": {**COLUMNS, "colour": "x"}},
        {"columns": COLUMNS, "task": "guessing"},
    ],
)
def test_a_wrong_map_is_refused_at_once(options: dict) -> None:
    with pytest.raises(UserError) as raised:
        FilesSource(**{"name": "x", "paths": ("x.jsonl",), "task": "retrieval", **options})
    assert raised.value.exit_status == 2


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    table = pa.table({"question": ["q"], "reply": ["a"]})
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text('{"question": "q", "reply": "a"}\n')
    source = FilesSource(name="x", paths=(str(path),), task="retrieval", columns=COLUMNS)
    with pytest.raises(UserError, match="answer"):
        _rows(source)


def test_a_last_part_of_nothing_but_incomplete_rows_costs_those_rows(tmp_path: Path) -> None:
    """They are alone in their unit: only the first rows say whether the column map is wrong."""
    good = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(ROWS_PER_UNIT)]
    lines = [json.dumps(row) for row in [*good, {"question": "alone"}]]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    paths = (str(tmp_path / "x.jsonl"),)
    source = FilesSource(name="x", paths=paths, task="retrieval", columns=COLUMNS)
    assert len(source.plan()) == 2
    (row,) = run_steps([ingest(source)], str(tmp_path / "out"), executor="local")["ingest"].ledger
    assert (row["kept"], row["quarantined"]) == (ROWS_PER_UNIT, {"text_not_text": 1})


def test_real_pairs(shared_data: Path) -> None:
    """A public file with U+2028 in its texts and blank stems comes through whole."""
    source = FilesSource(
        name="exams",
        paths=(str(shared_data / "retrieval" / "exams_qa.parquet"),),
        task="retrieval",
        columns={"query": "query", "text": "positive", "title": "title", "language": "language"},
    )
    pairs, rejected = _rows(source)
    assert (len(pairs), len(rejected)) == (9662, 0)
    assert {p["query_script"] for p in pairs} == {"Latn", "Cyrl"}
