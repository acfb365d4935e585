"""Rows of plain files, for the commands and as a source of pairs.

A unit is a part of one file: row groups of Parquet, a range of lines of JSONL, the whole file
otherwise.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datagen.schema import UserError, rejected_row
from datagen.sources import SourceRows
from datagen.sources.columns import read_columns
from datagen.sources.formats import DataFile, data_files, decode, file_errors
from datagen.sources.lines import BadLine
from datagen.sources.parquet import parts, read_table
from datagen.sources.ranges import line_ranges, range_records
from datagen.sources.soundness import wide_type
from datagen.sources.tables import REQUIRED_COLUMNS, TableSource, check_columns, read_records
from datagen.store import resolve

MAX_NARROW_BYTES = (1 << 31) - 1  # of text behind 32-bit offsets


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
        return _with_room(pa.concat_tables(tables, promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            found=f"the files do not fit together: {error}",
            expected="one type for each column in all files",
            do="give the files one by one, or write the column with one type",
        ) from error


def _with_room(table: pa.Table) -> pa.Table:
    """The table with 64-bit offsets wherever a column has grown beyond what 32 bits can count."""
    fields = [
        field.with_type(wide_type(field.type)) if column.nbytes > MAX_NARROW_BYTES else field
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return table.cast(pa.schema(fields))


def rejected_line(file: DataFile, bad: BadLine, *, source: str) -> dict[str, Any]:
    """The QUARANTINE row of a line that cannot be read."""
    record = {
        "source": source,
        "provenance": {"row": f"{file.name}{file.mark}{bad.line}"},
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
        elif file.format == "jsonl":
            ranges = [{"lines": lines} for lines in line_ranges(file)]
            self._check_first_lines(file, ranges)
        return [{**base, **part} for part in ranges]

    def _parquet_parts(self, file: DataFile) -> list[dict[str, int]]:
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri):
            parquet = pq.ParquetFile(place, filesystem=filesystem)
        check_columns(self.columns, parquet.schema_arrow.names, where=file.uri)
        return parts(parquet.metadata)

    def _check_first_lines(self, file: DataFile, ranges: Sequence[dict[str, Any]]) -> None:
        """A column that no row of the first block has is a mistake; later, it costs the row."""
        for unit in ranges[:1]:
            numbered, _ = next(range_records(file, unit["lines"]), ([], []))
            if numbered:
                required = {name: self.columns[name] for name in REQUIRED_COLUMNS}
                check_columns(required, _names(numbered), where=file.uri)


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


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one part of one file."""
    file = DataFile(uri=unit["uri"], name=unit["name"])
    if "part" in unit:
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri), pq.ParquetFile(place, filesystem=filesystem) as parquet:
            table = read_table(parquet, unit["part"], part_columns(unit))
        return part_pairs(table, unit)
    rows, bad = _read_lines(file, unit) if "lines" in unit else _read_whole(file, unit)
    rows.rows_in += len(bad)
    rows.quarantined += [rejected_line(file, line, source=unit["source"]) for line in bad]
    return rows


def part_columns(unit: dict[str, Any]) -> list[str]:
    """The columns of the file that the pairs are made of."""
    return sorted(set(unit["row_map"]["columns"].values()))


def part_pairs(table: pa.Table, unit: dict[str, Any]) -> SourceRows:
    """The pairs of one part of a Parquet file; rows are called `<name>#<number>`."""
    first = unit["part"]["first_row"]
    names = _row_names(unit["name"], "#", range(first, first + table.num_rows))
    return read_columns(table, names, unit["row_map"])


def _row_names(name: str, mark: str, positions: Sequence[int] | np.ndarray) -> pa.Array:
    numbers = pa.array(positions, pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(name, numbers, mark)


def _read_lines(file: DataFile, unit: dict[str, Any]) -> tuple[SourceRows, Sequence[BadLine]]:
    rows, rejected = SourceRows(), []
    for numbered, bad in range_records(file, unit["lines"]):
        records = ((f"{file.name}:{line}", record) for line, record in numbered)
        made = read_records(records, unit["row_map"])
        rows.rows_in += made.rows_in
        rows.pairs += made.pairs
        rows.quarantined += made.quarantined
        rejected += bad
    return rows, rejected


def _read_whole(file: DataFile, unit: dict[str, Any]) -> tuple[SourceRows, Sequence[BadLine]]:
    decoded = decode(file)
    check_columns(unit["row_map"]["columns"], decoded.table.column_names, where=file.uri)
    names = _row_names(file.name, file.mark, decoded.positions)
    return read_columns(decoded.table, names, unit["row_map"]), decoded.bad


def _names(numbered: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
    return sorted({name for _, record in numbered for name in record})
