"""Plain files as Arrow tables: Parquet, JSONL, JSON, CSV, TSV and Arrow, by path or URI.

Files are read piece by piece, so that beside the rows that are kept only a block is in memory. What
cannot be opened, is cut short, expands more than MAX_EXPANSION-fold or has an unknown extension is
a UserError; broken lines are given back beside the good rows.
"""

import contextlib
import dataclasses
import io
import json
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from datagen.schema import UserError
from datagen.sources.lines import (
    BLOCK_BYTES,
    MAX_BAD_BYTES,
    BadLine,
    Decoded,
    Read,
    Records,
    as_table,
    delimited_tables,
    join_decoded,
    jsonl_records,
    value_records,
)
from datagen.sources.soundness import sound_rows
from datagen.store import resolve

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_EXPANSION = 100  # text shrinks 3- to 30-fold
FREE_EXPANSION_BYTES = 1 << 28  # of any ratio
MAX_JSON_BYTES = 1 << 30  # of a .json file, which has to be parsed in one go
MAX_CHUNK_BYTES = 1 << 28  # of Parquet that is read at once
BATCH_ROWS, PIECE_ROWS = 1 << 14, 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """One input file: where it is, and its name below the path that the user gave."""

    uri: str
    name: str

    @property
    def format(self) -> str | None:
        """A value of FORMATS; None for anything else."""
        stem, extension = posixpath.splitext(self.name)
        if extension in COMPRESSIONS:
            extension = posixpath.splitext(stem)[1]
            return FORMATS.get(extension) if extension in _TEXT_EXTENSIONS else None
        return FORMATS.get(extension)

    @property
    def compression(self) -> str | None:
        return COMPRESSIONS.get(posixpath.splitext(self.name)[1])

    @property
    def mark(self) -> str:
        """What stands between the file and a row: `#` rows count from 0, `:` lines from 1."""
        return "#" if self.format in ("arrow", "parquet", "po") else ":"


FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tmx": "tmx",
    ".po": "po",
}
_TEXT_EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tmx")
TABLES = ("parquet", "jsonl", "csv", "tsv", "arrow")  # what a folder of tables is searched for
NAMED_TABLES = (*TABLES, "json")  # beside tables, .json files describe them more often than not
EXPECTED = ".parquet, .jsonl, .json, .csv, .tsv (plain, .gz or .zst), .arrow or .feather"


def data_files(
    paths: Sequence[str],
    *,
    formats: Collection[str] = TABLES,
    named: Collection[str] = NAMED_TABLES,
) -> list[DataFile]:
    """The files behind the paths, in order; a folder stands for its files of `formats`, sorted.

    A path that is a file may be of the formats `named`.
    """
    return [file for path in paths for file in _expand(path, formats, named)]


def _expand(path: str, formats: Collection[str], named: Collection[str]) -> Iterator[DataFile]:
    filesystem, place = resolve(path)
    info = filesystem.get_file_info(place)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise UserError(
            found=f"{path} does not exist",
            expected="an input file",
            do="check the path",
            exit_status=2,
        )
    if info.type != pyarrow.fs.FileType.Directory:
        file = DataFile(uri=path, name=posixpath.basename(place))
        if file.format not in named:
            raise UserError(
                found=f"{path}: unknown extension",
                expected=EXPECTED,
                do="convert or rename the file",
                exit_status=2,
            )
        yield file
        return
    selector = pyarrow.fs.FileSelector(place, recursive=True)
    names = sorted(
        posixpath.relpath(child.path, place)
        for child in filesystem.get_file_info(selector)
        if child.type == pyarrow.fs.FileType.File
    )
    visible = [n for n in names if not any(part[0] in "._" for part in n.split("/"))]
    files = [DataFile(uri=f"{path.rstrip('/')}/{n}", name=n) for n in visible]
    files = [file for file in files if file.format in formats]
    if not files:
        raise UserError(
            found=f"no data files in the folder {path}", expected=EXPECTED, do="check the path"
        )
    yield from files


@contextlib.contextmanager
def reading(file: DataFile) -> Iterator[Read]:
    """The file's content, decompressed, as a function that reads a number of bytes.

    UserError when it cannot be read, or expands as no honest file does.
    """
    filesystem, place = resolve(file.uri)
    with file_errors(file.uri), filesystem.open_input_file(place) as stream:
        if file.compression is None:
            yield stream.read
            return
        with pa.CompressedInputStream(stream, file.compression) as expanded:
            yield _Expanding(source=expanded.read, taken=stream.tell, file=file).read


@dataclasses.dataclass(kw_only=True)
class _Expanding:
    """Reads a compressed stream as long as it expands within reason."""

    source: Read
    taken: Callable[[], int]  # compressed bytes so far
    file: DataFile
    expanded: int = 0

    def read(self, count: int) -> bytes:
        data = self.source(count)
        self.expanded += len(data)
        taken = self.taken()
        if self.expanded > max(FREE_EXPANSION_BYTES, MAX_EXPANSION * taken):
            raise UserError(
                found=f"{self.file.uri}: {taken:,} bytes expand to {self.expanded:,}",
                expected=f"a file that expands at most {MAX_EXPANSION}-fold",
                do="check where the file is from; if it is sound, decompress it first",
            )
        return data


def check_expansion(file: DataFile) -> None:
    """UserError when the head of a compressed file expands as no honest file does.

    Expanding is fast where parsing is not: nothing is parsed of a file that would be refused.
    """
    left = FREE_EXPANSION_BYTES + BLOCK_BYTES if file.compression else 0
    if left:
        with reading(file) as read:
            while left > 0 and (block := read(BLOCK_BYTES)):
                left -= len(block)


def read_bytes(file: DataFile, *, limit: int) -> bytes:
    """The file's content, decompressed; UserError when it is more than `limit` bytes."""
    parts, left = [], limit
    with reading(file) as read:
        while part := read(min(left + 1, BLOCK_BYTES)):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise UserError(
                    found=f"{file.uri} holds more than {limit:,} bytes",
                    expected="a file of that format that fits into memory at once",
                    do="cut it into smaller files, or write it as .jsonl",
                )
    return b"".join(parts)


@contextlib.contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Turn what pyarrow says about an unreadable file into a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(
            found=f"{uri} cannot be read: {reason}",
            expected="a whole file of the format that its extension names",
            do="fetch or write the file again, or leave it out",
        ) from error


def decode(file: DataFile) -> Decoded:
    """All rows of one file; UserError when the file as a whole is unreadable."""
    if file.format == "parquet":
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri), pq.ParquetFile(place, filesystem=filesystem) as parquet:
            if _largest_chunk(parquet.metadata) <= MAX_CHUNK_BYTES:
                # Piece by piece of one row group after the other: half the time, and half the
                # memory beside the rows, of reading all at once.
                pieces = [
                    piece
                    for group in range(parquet.num_row_groups)
                    for piece in parquet.iter_batches(PIECE_ROWS, row_groups=[group])
                ]
                schema = None if pieces else parquet.schema_arrow
                return sound(pa.Table.from_batches(pieces, schema), file, first=0)
    return join_decoded(list(tables(file)))


def _largest_chunk(metadata: pq.FileMetaData) -> int:
    """Bytes of the largest column chunk: reading one at once takes twice as much."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (g.column(i).total_uncompressed_size for g in groups for i in range(g.num_columns))
    return max(chunks, default=0)


def tables(file: DataFile, columns: Sequence[str] | None = None) -> Iterator[Decoded]:
    """The rows of one file piece by piece; of Parquet, `columns` that are there."""
    if file.format == "parquet":
        yield from _parquet(file, columns)
    elif file.format == "arrow":
        yield from _arrow(file)
    elif file.format in ("json", "jsonl"):
        yield from (as_table(*piece) for piece in _objects(file))
    else:
        delimiter = "\t" if file.format == "tsv" else ","
        check_expansion(file)
        with reading(file) as read:
            yield from delimited_tables(read, delimiter=delimiter, where=file.uri)


def records(file: DataFile) -> Iterator[Records]:
    """The rows of one file as objects, piece by piece; those of JSON as they were written."""
    if file.format in ("json", "jsonl"):
        yield from _objects(file)
        return
    for piece in tables(file):
        numbers = (int(number) for number in piece.positions)
        yield list(zip(numbers, piece.table.to_pylist(), strict=True)), list(piece.bad)


def _objects(file: DataFile) -> Iterator[Records]:
    if file.format == "json":
        yield from _json(file)
        return
    check_expansion(file)
    with reading(file) as read:
        yield from jsonl_records(read)


def _parquet(file: DataFile, columns: Sequence[str] | None) -> Iterator[Decoded]:
    filesystem, place = resolve(file.uri)
    with file_errors(file.uri), pq.ParquetFile(place, filesystem=filesystem) as parquet:
        names = parquet.schema_arrow.names
        chosen = None if columns is None else [name for name in columns if name in names]
        rows = BATCH_ROWS * BLOCK_BYTES // max(BLOCK_BYTES, _bytes_of_rows(parquet.metadata))
        batches = parquet.iter_batches(max(1, rows), columns=chosen)
        yield from _numbered(file, parquet.schema_arrow, batches)


def _bytes_of_rows(metadata: pq.FileMetaData) -> int:
    """Of BATCH_ROWS rows, on average in the row group with the largest."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return max((BATCH_ROWS * g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)


def _arrow(file: DataFile) -> Iterator[Decoded]:
    with file_errors(file.uri), open_arrow(file) as (schema, batches):
        yield from _numbered(file, schema, batches)


@contextlib.contextmanager
def open_arrow(file: DataFile) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """(schema, batches) of an Arrow file or stream; memory-mapped where it is local."""
    filesystem, place = resolve(file.uri)
    local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    with pa.memory_map(place) if local else filesystem.open_input_file(place) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            opened = pa.ipc.open_file(source)
            count = range(opened.num_record_batches)
            yield opened.schema, (opened.get_batch(i) for i in count)
        else:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)


def _numbered(
    file: DataFile, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[Decoded]:
    first = 0
    for batch in batches:
        yield sound(pa.Table.from_batches([batch]), file, first=first)
        first += batch.num_rows
    if not first:
        yield Decoded(table=plain_columns(schema.empty_table()), positions=[])


def sound(table: pa.Table, file: DataFile, *, first: int) -> Decoded:
    """The rows that are text where they say so; `first` is the number of the first."""
    mask = sound_rows(table, where=file.uri)
    if mask is None:
        positions = range(first, first + table.num_rows)
        return Decoded(table=plain_columns(table), positions=positions)
    bad = [
        BadLine(
            line=first + int(row),
            reason="invalid_utf8",
            error="the row is not valid UTF-8",
            data=raw_row(table, int(row)),
        )
        for row in np.flatnonzero(~mask)
    ]
    kept = plain_columns(table.filter(pa.array(mask)))
    return Decoded(table=kept, positions=first + np.flatnonzero(mask), bad=bad)


def raw_row(table: pa.Table, row: int) -> bytes:
    """The texts of a row that cannot be decoded, as bytes."""
    one = table.slice(row, 1)
    texts = [c.cast(pa.binary()) for c in one.columns if c.type in (pa.string(), pa.large_string())]
    return b"\t".join(text[0].as_py() or b"" for text in texts)[:MAX_BAD_BYTES]


def plain_columns(table: pa.Table) -> pa.Table:
    """The table without dictionary encoding and without metadata, so that files can be joined."""
    fields = [
        f.with_type(f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for f in table.schema
    ]
    return table.cast(pa.schema(fields)).replace_schema_metadata(None)


def _json(file: DataFile) -> Iterator[Records]:
    """Rows of a .json file: a list, the list under `data`, or after all an object on each line."""
    data = read_bytes(file, limit=MAX_JSON_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        if data.lstrip().startswith(b"{") and b"\n" in data.strip():
            yield from jsonl_records(io.BytesIO(data).read)
            return
        raise UserError(
            found=f"{file.uri} is not JSON: {str(error)[:200]}",
            expected="a list of objects, an object with such a list as `data`, or JSON lines",
            do="fetch or write the file again, or leave it out",
        ) from error
    yield from value_records(_json_rows(value, file), escapes=b"\\u" in data)


def _json_rows(value: Any, file: DataFile) -> list[Any]:
    if isinstance(value, Mapping):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise UserError(
            found=f"{file.uri} is a JSON {type(value).__name__}",
            expected="a list of objects, an object with such a list as `data`, or JSON lines",
            do="fetch or write the file again, or leave it out",
        )
    return value
