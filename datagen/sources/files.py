"""Rows of plain files, for the commands and as a source of pairs.

A unit is a part of one file: row groups of Parquet, a range of lines of uncompressed JSONL, the
whole file otherwise. Line numbers of JSONL ranges are counted once, when the work is planned.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import UserError, rejected_row
from datagen.sources import ROWS_PER_UNIT, SourceRows
from datagen.sources.formats import DataFile, data_files, decode, file_errors
from datagen.sources.lines import BadLine, parse_jsonl
from datagen.sources.parquet import parts, read_part
from datagen.sources.tables import REQUIRED_COLUMNS, TableSource, check_columns, read_records
from datagen.store import resolve

BLOCK_BYTES = 1 << 24


def read_rows(paths: Sequence[str]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """All rows of the files, columns united (missing = null), and QUARANTINE rows for bad lines.

    A folder stands for its data files, sorted. Raises UserError for what is missing, unreadable or
    of an unknown extension (exit status 2), and for a column of two types that do not go together.
    """
    tables, rejected = [], []
    for file in data_files(paths):
        decoded = decode(file)
        tables.append(decoded.table)
        rejected += [rejected_line(file, bad, source=file.uri) for bad in decoded.bad]
    return _united(tables), rejected


def _united(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            found=f"the files do not fit together: {error}",
            expected="one type for each column in all files",
            do="give the files one by one, or write the column with one type",
        ) from error


def rejected_line(file: DataFile, bad: BadLine, *, source: str) -> dict[str, Any]:
    """The QUARANTINE row of a line that cannot be read."""
    record = {
        "source": source,
        "provenance": {"row": f"{file.name}:{bad.line}"},
        "line": bad.data,
    }
    return rejected_row(record, reason=bad.reason, error=bad.error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesSource(TableSource):
    """Pairs out of plain files or folders of them, local or by URI."""

    paths: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        content = [{"file": file.name, **identity(file)} for file in data_files(self.paths)]
        return {"kind": "files", **self.row_map(), "content": content}

    def plan(self) -> list[dict[str, Any]]:
        return [unit for file in data_files(self.paths) for unit in self._file_units(file)]

    def _file_units(self, file: DataFile) -> list[dict[str, Any]]:
        # Workers run in other folders: a local path must be absolute there.
        uri = file.uri if "://" in file.uri else resolve(file.uri)[1]
        base: dict[str, Any] = {"kind": "files", "source": self.name, "uri": uri, "name": file.name}
        base["row_map"] = self.row_map()
        ranges: list[dict[str, Any]] = [{}]
        if file.format == "parquet":
            ranges = [{"part": part} for part in self._parquet_parts(file)]
        elif file.format == "jsonl" and file.compression is None:
            ranges = [{"lines": lines} for lines in line_ranges(file)]
        return [{**base, **part} for part in ranges]

    def _parquet_parts(self, file: DataFile) -> list[dict[str, int]]:
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri):
            parquet = pq.ParquetFile(place, filesystem=filesystem)
        check_columns(self.columns, parquet.schema_arrow.names, where=file.uri)
        return parts(parquet.metadata)


def identity(file: DataFile) -> dict[str, Any]:
    """What says that a file has not changed: its size and sha256, or the store's time stamp."""
    filesystem, place = resolve(file.uri)
    info = filesystem.get_file_info(place)
    if "://" in file.uri:
        return {"bytes": info.size, "modified_ns": info.mtime_ns}
    return {"bytes": info.size, "sha256": _sha256(place, info.size, info.mtime_ns)}


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with file_errors(path), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def line_ranges(file: DataFile) -> list[dict[str, int]]:
    """Byte ranges of ROWS_PER_UNIT lines each, with the number of their first line."""
    filesystem, place = resolve(file.uri)
    cuts, lines, offset = [0], 0, 0
    with file_errors(file.uri), filesystem.open_input_stream(place) as stream:
        while block := stream.read(BLOCK_BYTES):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            first = ROWS_PER_UNIT - 1 - lines % ROWS_PER_UNIT
            cuts += [offset + int(end) + 1 for end in ends[first::ROWS_PER_UNIT]]
            lines, offset = lines + len(ends), offset + len(block)
    if cuts[-1] < offset:
        cuts.append(offset)
    return [
        {"start": start, "stop": stop, "first_line": 1 + i * ROWS_PER_UNIT}
        for i, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False))
    ]


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one part of one file."""
    file = DataFile(uri=unit["uri"], name=unit["name"])
    records, bad = _records(file, unit)
    rows = read_records(records, unit["row_map"])
    rows.rows_in += len(bad)
    rows.quarantined += [rejected_line(file, line, source=unit["source"]) for line in bad]
    return rows


def _records(
    file: DataFile, unit: dict[str, Any]
) -> tuple[list[tuple[str, dict[str, Any]]], Sequence[BadLine]]:
    columns = unit["row_map"]["columns"]
    if "part" in unit:
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri):
            parquet = pq.ParquetFile(place, filesystem=filesystem)
            found = read_part(parquet, unit["part"], sorted(set(columns.values())))
        return [(f"{file.name}#{row}", record) for row, record in found], []
    if "lines" in unit:
        numbered, bad = parse_jsonl(
            _read_range(file, unit["lines"]), first_line=unit["lines"]["first_line"]
        )
        required = {name: columns[name] for name in REQUIRED_COLUMNS}
        if numbered:
            check_columns(required, _names(numbered), where=file.uri)
        return [(f"{file.name}:{line}", record) for line, record in numbered], bad
    decoded = decode(file)
    check_columns(columns, decoded.table.column_names, where=file.uri)
    mark = "#" if file.format == "arrow" else ":"
    rows = zip(decoded.positions, decoded.table.to_pylist(), strict=True)
    return [(f"{file.name}{mark}{position}", record) for position, record in rows], decoded.bad


def _names(numbered: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
    return sorted({name for _, record in numbered for name in record})


def _read_range(file: DataFile, lines: dict[str, int]) -> bytes:
    filesystem, place = resolve(file.uri)
    with file_errors(file.uri), filesystem.open_input_file(place) as stream:
        return stream.read_at(lines["stop"] - lines["start"], lines["start"])
