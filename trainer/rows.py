"""Random rows of a table of a mix, straight from the bytes of its memory-mapped shards.

A random batch of a large mix has hardly two rows in one record batch, so asking Arrow for each
would cost ten calls a row. Instead the place of every buffer in its file is noted when the table
is opened (some numbers for each 4,096 rows); a batch then reads offsets and values of all its rows
of a shard at once, and makes Python strings of nothing but them. Cost: a microsecond a value;
memory does not grow with the rows of the table.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from datagen.schema import UserError, check_schema
from datagen.store import Folder, map_shard, read_manifest


class _Column(NamedTuple):
    """Where a column's buffers begin in the file, in bytes, one number for each record batch."""

    validity: np.ndarray  # bits; -1 where no value is null
    offsets: np.ndarray  # int32 of strings and lists, else -1
    values: np.ndarray


class _Shard:
    """The bytes of one file, and where the columns lie."""

    def __init__(self, data: pa.Buffer, columns: Sequence[str], *, schema: pa.Schema, where: str):
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        check_schema(table, schema, where=where)
        self.bytes = np.frombuffer(data, dtype=np.uint8)
        self.view = memoryview(data)
        self.int32 = np.frombuffer(data, dtype=np.int32, count=data.size // 4)
        self.int64 = np.frombuffer(data, dtype=np.int64, count=data.size // 8)
        self.starts = np.cumsum([0, *(len(chunk) for chunk in table.column(0).chunks)])
        self.columns = {name: _column(table[name], base=data.address) for name in columns}

    def batches(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(record batch, row in it) of each row."""
        batch = np.searchsorted(self.starts, rows, side="right") - 1
        return batch, rows - self.starts[batch]


def _column(column: pa.ChunkedArray, *, base: int) -> _Column:
    places = []
    for chunk in column.chunks:
        at = [-1 if buffer is None else buffer.address - base for buffer in chunk.buffers()]
        # validity, [offsets,] values; a list's child has a validity of its own before its values.
        nested = pa.types.is_list(chunk.type)
        flat = pa.types.is_boolean(chunk.type)
        places.append([at[0], -1 if flat else at[1], at[3] if nested else at[-1]])
    return _Column(*np.array(places, dtype=np.int64).reshape(-1, 3).T)


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
        self.parts = [
            _Shard(map_shard(folder, s.name), columns, schema=schema, where=self.table)
            for s in shards
        ]
        self.starts = np.cumsum([0, *(int(part.starts[-1]) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _places(self, rows: np.ndarray) -> Iterator[tuple[_Shard, np.ndarray, np.ndarray]]:
        """(shard, positions in `rows`, rows of the shard) for the shards that have any."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise UserError(
                found=f"rows {rows.min()} to {rows.max()} of {self.table} referred to",
                expected=f"row numbers from 0 to {len(self) - 1}",
                do="check the mix with `datagen verify`, and build it again",
            )
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self.starts)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            at = order[bounds[number] : bounds[number + 1]]
            yield self.parts[number], at, rows[at] - self.starts[number]

    def strings(self, rows: np.ndarray, names: Sequence[str]) -> list[list[str | None]]:
        """The texts of the given rows, in their order, one list for each column."""
        found: list[list[str | None]] = [[None] * len(rows) for _ in names]
        for shard, at, local in self._places(rows):
            batch, row = shard.batches(local)
            positions = at.tolist()
            for texts, name in zip(found, names, strict=True):
                column = shard.columns[name]
                begin, end = _ends(shard, column, batch, row)
                valid = _valid(shard, column, batch, row)
                for i, a, b, is_text in zip(
                    positions, begin.tolist(), end.tolist(), valid.tolist(), strict=True
                ):
                    if is_text:
                        texts[i] = str(shard.view[a:b], "utf-8")
        return found

    def lists(
        self,
        rows: np.ndarray,
        name: str,
        *,
        pick: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(values int64 of all rows one after the other, how many each row has).

        `pick(at, lengths)` says which part of each list is wanted: first item and number of items.
        """
        begin = np.zeros(len(rows), dtype=np.int64)
        counts = np.zeros(len(rows), dtype=np.int64)
        pieces = []
        for shard, at, local in self._places(rows):
            batch, row = shard.batches(local)
            first, last = _ends(shard, shard.columns[name], batch, row, width=8)
            skipped, wanted = pick(at, (last - first) // 8)
            pieces.append((shard, at, first // 8 + skipped, wanted))
            counts[at] = wanted
        begin[1:] = np.cumsum(counts)[:-1]
        values = np.empty(int(counts.sum()), dtype=np.int64)
        for shard, at, start, wanted in pieces:
            values[ranges(begin[at], wanted)] = shard.int64[ranges(start, wanted)]
        return values, counts

    def flags(self, rows: np.ndarray, name: str) -> np.ndarray:
        """A column of booleans."""
        found = np.zeros(len(rows), dtype=bool)
        for shard, at, local in self._places(rows):
            batch, row = shard.batches(local)
            found[at] = _bits(shard, shard.columns[name].values[batch], row)
        return found


def _ends(
    shard: _Shard, column: _Column, batch: np.ndarray, row: np.ndarray, *, width: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """First byte in the file, and the one after the last, of strings or lists of `width` bytes."""
    place = column.offsets[batch] // 4 + row
    base = column.values[batch]
    first, last = shard.int32[place].astype(np.int64), shard.int32[place + 1].astype(np.int64)
    return base + width * first, base + width * last


def _valid(shard: _Shard, column: _Column, batch: np.ndarray, row: np.ndarray) -> np.ndarray:
    place = column.validity[batch]
    if (place < 0).all():
        return np.ones(len(row), dtype=bool)
    return (place < 0) | _bits(shard, np.maximum(place, 0), row)


def _bits(shard: _Shard, place: np.ndarray, row: np.ndarray) -> np.ndarray:
    return (shard.bytes[place + row // 8] >> (row % 8).astype(np.uint8) & 1).astype(bool)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`start, start + 1, ...` for each start, as many as its length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
