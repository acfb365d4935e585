"""Random rows of a table of a mix, straight from the bytes of its memory-mapped shards.

A random batch of a large mix has hardly two rows in one record batch, so asking Arrow for each
would cost ten calls a row. Instead the place of every buffer in its file is noted when the table
is opened (some numbers for each 4,096 rows); compiled loops then read offsets, numbers and flags of
a whole batch, and Python makes strings of nothing but its texts. Cost: half a microsecond a text;
memory does not grow with the rows of the table.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa

from datagen.schema import UserError, check_schema
from datagen.store import Folder, map_shard, read_manifest


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, nogil=True)(function)


class _Column(NamedTuple):
    """Where a column's buffers begin in their file, in bytes, one number for each record batch."""

    validity: np.ndarray  # bits; -1 where no value is null
    offsets: np.ndarray  # int32, of strings and lists
    values: np.ndarray


class Rows:
    """Random access by row number over the memory-mapped shards of one table of a mix.

    `columns` are those that can be read: strings, lists of int64 and flags.
    """

    def __init__(self, folder: Folder, table: str, schema: pa.Schema, columns: Sequence[str]):
        shards = read_manifest(folder).table(table)
        if not shards:
            raise UserError(
                found=f"{folder.uri} has no rows in {table!r}",
                expected="a mix with that table",
                do="build the mix with this stage, or leave the stage out of the training recipe",
            )
        self.table = f"{folder.uri}/{table}"
        lengths: list[int] = []
        files: list[int] = []
        places: dict[str, list[list[int]]] = {name: [] for name in columns}
        buffers = [map_shard(folder, shard.name) for shard in shards]
        for number, buffer in enumerate(buffers):
            part = pa.ipc.open_file(pa.BufferReader(buffer)).read_all()
            check_schema(part, schema, where=self.table)
            lengths += [len(chunk) for chunk in part.column(0).chunks]
            files += [number] * part.column(0).num_chunks
            for name, found in places.items():
                found += [_places(chunk, buffer.address) for chunk in part[name].chunks]
        self._starts = np.cumsum([0, *lengths])  # of the record batches
        self._files = np.array(files)
        self._columns = {
            name: _Column(*np.array(found, dtype=np.int64).T) for name, found in places.items()
        }
        self._views = [memoryview(buffer) for buffer in buffers]
        self._bytes, self._int32, self._int64 = (
            numba.typed.List([np.frombuffer(b, kind, b.size // size) for b in buffers])
            for kind, size in ((np.uint8, 1), (np.int32, 4), (np.int64, 8))
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _batches(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(record batch, row in it) of each row."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise UserError(
                found=f"rows {rows.min()} to {rows.max()} of {self.table} referred to",
                expected=f"row numbers from 0 to {len(self) - 1}",
                do="check the mix with `datagen verify`, and build it again",
            )
        batch = np.searchsorted(self._starts, rows, side="right") - 1
        return batch, rows - self._starts[batch]

    def strings(self, rows: np.ndarray, name: str) -> list[str | None]:
        """The texts of the given rows, in their order."""
        batch, row = self._batches(rows)
        column, files = self._columns[name], self._files[batch]
        begin, end = self._ends(column, batch, row, width=1)
        places = zip(files.tolist(), begin.tolist(), end.tolist(), strict=True)
        if (column.validity[batch] < 0).all():
            views = self._views
            return [str(views[file][a:b], "utf-8") for file, a, b in places]
        valid = _bits(self._bytes, files, column.validity[batch], row).tolist()
        return [
            str(self._views[file][a:b], "utf-8") if is_text else None
            for is_text, (file, a, b) in zip(valid, places, strict=True)
        ]

    def lists(
        self, rows: np.ndarray, name: str, *, first: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of all rows one after the other, how many each row has).

        At most `most` of each row, from item `first` of its list, counted round its end.
        """
        batch, row = self._batches(rows)
        begin, end = self._ends(self._columns[name], batch, row, width=8)
        lengths = (end - begin) // 8
        counts = np.minimum(lengths, most)
        start = (first % np.maximum(lengths, 1).astype(first.dtype)).astype(np.int64)
        files = self._files[batch]
        return _items(self._int64, files, begin // 8, lengths, start, counts), counts

    def flags(self, rows: np.ndarray, name: str) -> np.ndarray:
        """A column of booleans."""
        batch, row = self._batches(rows)
        return _bits(self._bytes, self._files[batch], self._columns[name].values[batch], row)

    def _ends(
        self, column: _Column, batch: np.ndarray, row: np.ndarray, *, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """First byte in the file, and the one after the last, of values of `width` bytes."""
        place = column.offsets[batch] // 4 + row
        base = column.values[batch]
        return _offsets(self._int32, self._files[batch], place, base, width)


def _places(array: pa.Array, base: int) -> list[int]:
    """(validity, offsets, values) of a record batch's column, from the start of the file."""
    at = [-1 if buffer is None else buffer.address - base for buffer in array.buffers()]
    # A list's child has a validity of its own before its values; flags have no offsets.
    return [at[0], at[1], at[3] if pa.types.is_list(array.type) else at[-1]]


@_compiled
def _offsets(data, files, place, base, width):
    begin, end = np.empty(len(place), np.int64), np.empty(len(place), np.int64)
    for i in range(len(place)):
        offsets = data[files[i]]
        begin[i] = base[i] + width * offsets[place[i]]
        end[i] = base[i] + width * offsets[place[i] + 1]
    return begin, end


@_compiled
def _bits(data, files, place, row):
    found = np.ones(len(place), np.bool_)
    for i in range(len(place)):
        if place[i] >= 0:
            found[i] = data[files[i]][place[i] + row[i] // 8] >> (row[i] % 8) & 1
    return found


@_compiled
def _items(data, files, begin, lengths, first, counts):
    found, at = np.empty(counts.sum(), np.int64), 0
    for i in range(len(counts)):
        values = data[files[i]]
        for k in range(counts[i]):
            found[at] = values[begin[i] + (first[i] + k) % lengths[i]]
            at += 1
    return found
