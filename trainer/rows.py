"""Random rows of a table of a mix, straight from the bytes of its memory-mapped shards.

A random batch of a large mix has hardly two rows in one record batch, so asking Arrow for each
would cost ten calls a row, and going from shard to shard costs hundreds of calls a batch. Instead
the address of every buffer is noted when the table is opened (some numbers for each 4,096 rows),
and one numpy array spans the memory from the first mapped file to the last: a batch's offsets, then
its numbers, are one indexing operation each, and Python makes strings of nothing but its texts. The
array is never read but at addresses that lie in a buffer. Cost: half a microsecond a text; memory
does not grow with the rows of the table.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datagen.schema import UserError, check_schema
from datagen.store import Folder, map_shard, read_manifest


class _Column(NamedTuple):
    """Where a column's buffers begin in the span, in bytes, one number for each record batch."""

    validity: np.ndarray  # bits; 0 where no value is null
    offsets: np.ndarray  # int32, of strings and lists
    values: np.ndarray
    end: np.ndarray  # of the values


# What the values of a list are read as.
_ITEMS: dict[pa.DataType, np.dtype[Any]] = {
    pa.list_(pa.int64()): np.dtype(np.int64),
    pa.list_(pa.float32()): np.dtype(np.float32),
}
_ENDS = np.dtype(np.int32)


class Rows:
    """Random access by row number over the memory-mapped shards of one table of a mix.

    `columns` are those that can be read: strings, lists of int64 or float32, and flags.
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
        self._files = [map_shard(folder, shard.name) for shard in shards]  # kept mapped
        lengths: list[int] = []
        places: dict[str, list[list[int]]] = {name: [] for name in columns}
        for file in self._files:
            part = pa.ipc.open_file(pa.BufferReader(file)).read_all()
            check_schema(part, schema, where=self.table)
            lengths += [len(chunk) for chunk in part.column(0).chunks]
            for name, found in places.items():
                found += [_addresses(chunk) for chunk in part[name].chunks]
        self._starts = np.cumsum([0, *lengths])  # of the record batches
        base = min(file.address for file in self._files) // 8 * 8
        end = max(file.address + file.size for file in self._files)
        self._bytes = np.frombuffer((ctypes.c_uint8 * (end - base)).from_address(base), np.uint8)
        self._view = memoryview(self._bytes.data)
        self._views = {
            kind: self._bytes[: len(self._bytes) // kind.itemsize * kind.itemsize].view(kind)
            for kind in (_ENDS, *_ITEMS.values())
        }
        self._items = {name: _ITEMS.get(schema.field(name).type) for name in columns}
        self._columns = {
            name: _Column(*np.where(a := np.array(found, dtype=np.int64), a - base, 0).T)
            for name, found in places.items()
        }

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
        column, view = self._columns[name], self._view
        begin, end = (side.tolist() for side in self._ends(column, batch, row, width=1))
        if not column.validity[batch].any():
            return [str(view[a:b], "utf-8") for a, b in zip(begin, end, strict=True)]
        valid = self._valid(column.validity[batch], row).tolist()
        return [
            str(view[a:b], "utf-8") if is_text else None
            for a, b, is_text in zip(begin, end, valid, strict=True)
        ]

    def lists(
        self, rows: np.ndarray, name: str, *, most: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(items of all rows one after the other, how many each row has): the first `most` ones."""
        kind = self._items[name]
        assert kind is not None, f"{name} is no list"
        size = kind.itemsize
        batch, row = self._batches(rows)
        begin, end = self._ends(self._columns[name], batch, row, width=size)
        counts = (end - begin) // size
        counts = counts if most is None else np.minimum(counts, most)
        return self._views[kind][ranges(begin // size, counts)], counts

    def flags(self, rows: np.ndarray, name: str) -> np.ndarray:
        """A column of booleans."""
        batch, row = self._batches(rows)
        return self._bits(self._columns[name].values[batch], row)

    def _ends(
        self, column: _Column, batch: np.ndarray, row: np.ndarray, *, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """First byte, and the one after the last, of values of `width` bytes."""
        place = column.offsets[batch] // 4 + row
        base, int32 = column.values[batch], self._views[_ENDS]
        begin = base + width * int32[place].astype(np.int64)
        end = base + width * int32[place + 1].astype(np.int64)
        # A damaged file must not send us to memory that is not there.
        if ((begin < base) | (end < begin) | (end > column.end[batch])).any():
            raise UserError(
                found=f"{self.table}: values that lie outside of their shard",
                expected="the shards that the manifest lists",
                do="check the mix with `datagen verify`, and build or fetch it again",
            )
        return begin, end

    def _valid(self, place: np.ndarray, row: np.ndarray) -> np.ndarray:
        found = np.ones(len(row), dtype=bool)
        some = place > 0
        found[some] = self._bits(place[some], row[some])
        return found

    def _bits(self, place: np.ndarray, row: np.ndarray) -> np.ndarray:
        return (self._bytes[place + row // 8] >> (row % 8).astype(np.uint8) & 1).astype(bool)


def _addresses(array: pa.Array) -> list[int]:
    """Addresses of validity, offsets, values and the values' end; 0 for a buffer that is not."""
    buffers = array.buffers()
    # A list's child has a validity of its own before its values; flags have no offsets.
    values = buffers[3] if pa.types.is_list(array.type) else buffers[-1]
    at = [buffer.address if buffer else 0 for buffer in (buffers[0], buffers[1], values)]
    return [*at, at[2] + (values.size if values else 0)]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`start, start + 1, ...` for each start, as many as its length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
