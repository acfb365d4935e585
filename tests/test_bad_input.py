"""Input that is broken, hostile or strange: a clear error or a quarantined row, nothing lost."""

import gzip
import json
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen.cli import main
from datagen.ingest import ingest, source
from datagen.schema import UserError
from datagen.sources import files, formats, lines
from datagen.sources.files import read_rows
from datagen.steps import run_steps
from datagen.store import Folder, read_table

GOOD = b'{"query": "q", "text": "a fine text"}\n'


def _ingest(path: Path, output: Path) -> tuple[dict[str, Any], list[dict]]:
    """(the ledger row, QUARANTINE rows) of a path; the step itself refuses a ledger that leaks."""
    columns = {"query": "query", "text": "text"}
    origin = source("files", name="s", paths=(str(path),), columns=columns, task="retrieval")
    manifest = run_steps([ingest(origin)], str(output), executor="local")["ingest"]
    has_bad = bool(manifest.table("quarantine"))
    folder = Folder(f"{output}/steps/ingest")
    rejected = read_table(folder, "quarantine").to_pylist() if has_bad else []
    return manifest.ledger[0], rejected


@pytest.fixture
def task(tmp_path: Path) -> str:
    """An evaluation task for `decontaminate` to read."""
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps({"name": "t", "type": "retrieval"}))
    tables = {
        "queries": [{"query_id": "q", "text": "who built the old bridge over the river"}],
        "documents": [{"doc_id": "d", "title": None, "text": "It was built in 1890 by the town."}],
        "qrels": [{"query_id": "q", "doc_id": "d", "score": 1}],
    }
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return str(folder)


def _commands(task: str) -> Iterator[list[str]]:
    yield ["dedup"]
    yield ["language"]
    yield ["decontaminate", "--against", task]


LINES = {
    "nul_bytes": (b'{"query": "a\\u0000b", "text": "nul \\u0000"}\n{"query": "a\x00"}\n\x00\x00\n',
                  ["broken_json", "broken_json"]),
    "lone_surrogates": (b'{"query": "a", "text": "\\ud800"}\n{"\\udfff": 1, "text": "b"}\n'
                        b'{"query": "a", "text": "\\ud83d\\ude00"}\n', ["invalid_utf8"] * 2),
    "right_to_left": (
        '{"query": "\u202eabc\u202c", "text": "\u200f\u05e9\u2067x\u2069"}\n'.encode(), []),
    "deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", ["broken_json"]),
    "long_number": (b'{"text": "a", "n": ' + b"9" * 5_000 + b"}\n", ["broken_json"]),
    "no_utf8": (b'{"query": "a", "text": "\xff\xfe"}\n', ["invalid_utf8"]),
    "no_object": (b'["a", "b"]\n3\n', ["not_an_object"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_costs_itself(tmp_path: Path, task: str, capsys: Any, name: str) -> None:
    """Through ingest and through every command: the good line beside it stays, the bad is named."""
    data, reasons = LINES[name]
    path = tmp_path / "x.jsonl"
    path.write_bytes(data + GOOD)
    total = len([line for line in (data + GOOD).split(b"\n") if line.strip()])
    ledger, rejected = _ingest(path, tmp_path / "out")
    assert sorted(row["reason"] for row in rejected) == sorted(reasons)
    assert (ledger["rows_in"], ledger["kept"]) == (total, total - len(reasons))
    for command in _commands(task):
        output = tmp_path / command[0]
        assert main([command[0], str(path), "--output", str(output), *command[1:]]) == 0
        assert json.loads(capsys.readouterr().out)["quarantined"] == len(reasons)
        kept = pq.read_table(next(output.glob("[kr]*s.parquet"), output / "kept.parquet"))
        assert kept.num_rows == total - len(reasons)
        assert "a fine text" in kept["text"].to_pylist()


def test_what_text_may_hold_stays_as_it_is(tmp_path: Path) -> None:
    """Marks of direction and NUL are the clean step's business: reading changes nothing."""
    (tmp_path / "x.jsonl").write_bytes(LINES["right_to_left"][0] + LINES["nul_bytes"][0])
    _ingest(tmp_path / "x.jsonl", tmp_path / "out")
    pairs = read_table(Folder(f"{tmp_path}/out/steps/ingest"), "pairs")
    assert pairs["text"].to_pylist() == ["\u200f\u05e9\u2067x\u2069", "nul \0"]


@pytest.mark.parametrize(("kind", "mark"), [("csv", ","), ("tsv", "\t")])
def test_nul_bytes_in_tables_of_text(tmp_path: Path, kind: str, mark: str) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(f"query{mark}text\na{mark}b\0c\n\0{mark}\0\nd{mark}e\n".encode())
    table, rejected = read_rows([str(path)])
    assert table["text"].to_pylist() == ["b\0c", "\0", "e"]
    assert rejected == []


def _table(rows: int = 2000) -> pa.Table:
    texts = [f"text number {i} " * 5 for i in range(rows)]
    return pa.table({"query": [f"q {i}" for i in range(rows)], "text": texts})


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def _overwritten(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + b"\xff" * count + data[start + count :]


BROKEN = {
    "truncated.parquet": lambda: _parquet(_table())[:-500],
    "headless.parquet": lambda: _parquet(_table())[20_000:],
    "overwritten.parquet": lambda: _overwritten(_parquet(_table()), 2_000, 400),
    "empty.parquet": lambda: b"",
    "truncated.arrow": lambda: _arrow(_table())[:-4_000],
    "overwritten.arrow": lambda: _overwritten(_arrow(_table()), 600, 400),
    "truncated.jsonl.gz": lambda: gzip.compress(GOOD * 1000)[:-20],
    "plain.jsonl.gz": lambda: GOOD,
    "plain.csv.zst": lambda: b"query,text\n",
    "broken.json": lambda: b'[{"query": ',
    "number.json": lambda: b"3",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_in_three_parts(
    tmp_path: Path, task: str, capsys: Any, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(BROKEN[name]())
    with pytest.raises(UserError) as raised:
        _ingest(path, tmp_path / "out")
    assert name in raised.value.found
    for command in _commands(task):
        status = main([command[0], str(path), "--output", str(tmp_path / "o"), *command[1:]])
        message = capsys.readouterr().err
        assert status == 1
        assert all(f"{part}: " in message for part in ("found", "expected", "do"))
        assert name in message
        assert "Traceback" not in message


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_text_that_is_no_utf8_costs_its_row(tmp_path: Path, task: str, kind: str) -> None:
    """Both formats declare text without checking it; unchecked it would reach native code."""
    offsets = pa.py_buffer(struct.pack("<3i", 0, 2, 4))
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfeok")])
    table = pa.table({"query": ["a", "b"], "text": bad})
    path = tmp_path / f"x.{kind}"
    path.write_bytes(_parquet(table) if kind == "parquet" else _arrow(table))
    ledger, rejected = _ingest(path, tmp_path / "out")
    assert (ledger["kept"], ledger["quarantined"]) == (1, {"invalid_utf8": 1})
    assert rejected[0]["row"] == f"x.{kind}#0"
    assert "\\\\xff\\\\xfe" in rejected[0]["record"]
    rows, rejected = read_rows([str(path)])
    assert rows.to_pylist() == [{"query": "b", "text": "ok"}]
    assert [row["row"] for row in rejected] == [f"x.{kind}#0"]


_FUZZ = """
import random, sys
from pathlib import Path
import polars as pl
from datagen.schema import UserError
from datagen.sources.files import read_rows

path, found = Path(sys.argv[1]), set()
whole = path.read_bytes()
for seed in range(150):
    rng, data = random.Random(seed), bytearray(whole)
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        rows, rejected = read_rows([str(path)])
        [pl.from_arrow(column) for column in rows.columns]
        rows.to_pylist()
        found.add("rejected" if rejected else "read")
    except UserError:
        found.add("refused")
print(sorted(found))
"""


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_flipped_bytes_never_crash(tmp_path: Path, kind: str) -> None:
    """Offsets and dictionary indices out of range once ended the process (SIGSEGV)."""
    table = _table(200)
    table = table.append_column("lists", pa.array([["a", str(i)] for i in range(200)]))
    table = table.append_column("coded", table["query"].dictionary_encode())
    path = tmp_path / f"x.{kind}"
    path.write_bytes(
        _parquet(table, compression="none", use_dictionary=False)
        if kind == "parquet"
        else _arrow(table)
    )
    command = [sys.executable, "-c", _FUZZ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['read', 'refused', 'rejected']"


def test_schemas_that_differ(tmp_path: Path, task: str, capsys: Any) -> None:
    """Commands want one type of a column; ingest reads file by file and judges every value."""
    pq.write_table(pa.table({"query": ["a"], "text": ["t"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"query": ["a"], "text": [1]}), tmp_path / "b.parquet")
    inputs = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    for command in _commands(task):
        assert main([command[0], *inputs, "--output", str(tmp_path / "o"), *command[1:]]) == 1
        assert "text" in capsys.readouterr().err
    (tmp_path / "both").mkdir()
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).rename(tmp_path / "both" / name)
    ledger, rejected = _ingest(tmp_path / "both", tmp_path / "out")
    assert (ledger["rows_in"], ledger["kept"]) == (2, 1)
    assert [row["reason"] for row in rejected] == ["text_not_text"]


def test_a_column_of_several_types_is_the_same_in_one_block_and_in_many(
    tmp_path: Path, monkeypatch: Any
) -> None:
    rows = [{"n": 1, "t": "a"}, {"t": "b"}, {"n": "x", "t": "c"}, {"n": [1], "m": 2.5}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, _ = read_rows([str(path)])
    monkeypatch.setattr(lines, "BLOCK_BYTES", 20)
    pieces, _ = read_rows([str(path)])
    assert pieces.to_pylist() == whole.to_pylist()
    assert whole["n"].to_pylist() == ["1", None, "x", "[1]"]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    long = b'{"text": "' + b"x" * 5000 + b'"}\n'
    (tmp_path / "x.jsonl").write_bytes(GOOD + long + GOOD + long)
    rows, rejected = read_rows([str(tmp_path / "x.jsonl")])
    assert rows.num_rows == 2
    assert [(row["row"], row["reason"]) for row in rejected] == [
        ("x.jsonl:2", "line_too_long"), ("x.jsonl:4", "line_too_long"),
    ]  # fmt: skip
    (tmp_path / "x.csv").write_bytes(b"query,text\na,b\nc," + b"x" * 5000 + b"\nd,e\n")
    rows, rejected = read_rows([str(tmp_path / "x.csv")])
    assert rows["text"].to_pylist() == ["b", "e"]
    assert [(row["row"], row["reason"]) for row in rejected] == [("x.csv:3", "line_too_long")]


@pytest.mark.parametrize("block", [3, 17, 64, 1 << 20])
def test_csv_does_not_depend_on_blocks(tmp_path: Path, monkeypatch: Any, block: int) -> None:
    """Quoted newlines, unclosed quotes and bad bytes, wherever a block ends."""
    rng = random.Random(7)
    fields = ["plain", '"quoted\nline"', '"say ""x"""', '"open', "\xff", "", "a,b"]
    text = "".join(f"{rng.choice(fields)},{rng.choice(fields)}\n" for _ in range(60))
    data = b"one,two\n" + text.encode("latin-1")
    whole = lines.decode_delimited(data, delimiter=",", where="x")
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    pieces = lines.decode_delimited(data, delimiter=",", where="x")
    assert pieces.table.to_pylist() == whole.table.to_pylist()
    assert list(pieces.positions) == list(whole.positions)
    assert list(pieces.bad) == list(whole.bad)


def _bomb(path: Path, content: bytes) -> None:
    """10 GiB of the content as .gz: one compressed member, many times."""
    block = content * ((1 << 26) // len(content))
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    member = compressor.compress(block) + compressor.flush()
    with path.open("wb") as stream:
        for _ in range((10 << 30) // len(block)):
            stream.write(member)


_PEAK = r"""
import re, sys
from pathlib import Path
from datagen.cli import main
from datagen.schema import UserError
from datagen.ingest import ingest, source
from datagen.steps import run_steps

path, output, how = sys.argv[1:]
options = {"columns": {"query": "query", "text": "text"}, "task": "retrieval"}
status = 0
try:
    if how == "ingest":
        origin = source("files", name="s", paths=(path,), **options)
        manifest = run_steps([ingest(origin)], output, executor="local")["ingest"]
        print(manifest.ledger[0], file=sys.stderr)
    else:
        status = main([how, path, "--output", output])
except UserError as error:
    print(error, file=sys.stderr)
    status = error.exit_status
# Not ru_maxrss: a child's begins with what its parent held.
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(status, int(peak[1]) * 1024)
"""


def _peak(path: Path, output: Path, how: str) -> tuple[int, int, str]:
    """(exit status, peak bytes, messages) of a process of its own."""
    command = [sys.executable, "-c", _PEAK, str(path), str(output), how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    status, peak = done.stdout.split()[-2:]
    return int(status), int(peak), done.stderr


@pytest.mark.parametrize("how", ["ingest", "dedup"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("zeros.jsonl.gz", b"\0"), ("lines.jsonl.gz", GOOD), ("lines.csv.gz", b"query,text\n")],
)
def test_a_zip_bomb_is_refused_in_little_memory(
    tmp_path: Path, name: str, content: bytes, how: str
) -> None:
    path = tmp_path / name
    _bomb(path, content)
    assert path.stat().st_size < 40e6
    status, peak, message = _peak(path, tmp_path / "out", how)
    assert status == 1
    assert f"expands at most {formats.MAX_EXPANSION}-fold" in message
    assert peak < 0.6e9


def test_an_honest_file_may_expand_a_lot_for_a_while(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(formats, "FREE_EXPANSION_BYTES", 1 << 18)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(GOOD * 5_000))
    rows, _ = read_rows([str(tmp_path / "x.jsonl.gz")])
    assert rows.num_rows == 5_000


@pytest.mark.slow
def test_a_large_compressed_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(5_000)]
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(250_000):
            row = {"query": " ".join(rng.choices(words, k=5)), "text": " ".join(
                rng.choices(words, k=150))}  # fmt: skip
            stream.write(json.dumps(row).encode() + b"\n")
    status, peak, message = _peak(path, tmp_path / "out", "ingest")
    assert status == 0
    assert "'kept': 250000" in message
    assert peak < 0.8e9


@pytest.mark.slow
def test_a_column_chunk_of_more_than_2_gib(tmp_path: Path) -> None:
    """More text in one column chunk than 32-bit offsets can count."""
    path, text = tmp_path / "x.parquet", "0123456789 " * 10_000
    schema = pa.schema([("query", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="zstd") as writer:
        parts = [pa.array([f"{i}.{j} {text}" for j in range(1_000)]) for i in range(20)]
        queries = [f"q{i}" for i in range(20_000)]
        writer.write_table(
            pa.table({"query": queries, "text": pa.chunked_array(parts)}), row_group_size=20_000
        )
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert chunk.total_uncompressed_size > 1 << 31
    del parts
    status, peak, message = _peak(path, tmp_path / "out", "ingest")
    assert (status, "'kept': 20000" in message) == (0, True)
    assert peak < 1.5e9
    status, peak, message = _peak(path, tmp_path / "tagged", "language")
    assert status == 0, message
    assert peak < 4e9


def test_columns_beyond_32_bits_get_room(tmp_path: Path, monkeypatch: Any) -> None:
    """Taking rows of text beyond 2 GiB overflows 32-bit offsets."""
    monkeypatch.setattr(files, "MAX_NARROW_BYTES", 1000)
    table = _table(50).append_column("lists", pa.array([["a" * 90]] * 50))
    pq.write_table(table.append_column("n", pa.array(range(50))), tmp_path / "x.parquet")
    rows, _ = read_rows([str(tmp_path / "x.parquet")])
    assert {field.name: str(field.type) for field in rows.schema} == {
        "query": "string", "text": "large_string",
        "lists": "large_list<element: large_string>", "n": "int64",
    }  # fmt: skip
    assert rows["text"].to_pylist() == table["text"].to_pylist()
