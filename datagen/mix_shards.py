"""Tables of finished steps, read by row number: mapped for as long as a shard is looked at.

Output order is not input order: a source's queries lie all over the queries table. So the output is
made in blocks of some hundred thousand rows, and for each block all shards are passed over once, on
several threads: a shard is mapped, its rows are taken, and it is let go. Memory is one block and
what a pass over one shard maps, whatever the number of rows; no row becomes a Python object.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.schema import UserError
from datagen.store import Folder, open_shard, read_manifest

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@contextmanager
def threads() -> Iterator[Run]:
    """A `map` over as many threads as there are cores; results in the order of the input."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield pool.map


@dataclass(frozen=True)
class Sharded:
    """One table of a finished folder: the shards and where each begins."""

    folder: Folder
    names: tuple[str, ...]
    starts: np.ndarray  # one more than shards

    @classmethod
    def of(cls, folder: Folder, table: str) -> "Sharded":
        shards = read_manifest(folder).table(table)
        if not shards:
            raise UserError(
                found=f"{folder.uri} has no rows in {table!r}",
                expected="a finished step with that table",
                do="check the step that should have written it",
            )
        starts = np.cumsum([0, *(shard.rows for shard in shards)])
        return cls(folder, tuple(shard.name for shard in shards), starts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def open(self, number: int) -> pa.Table:
        return open_shard(self.folder, self.names[number])

    def places(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(shard, rows in it) of ascending row numbers, shards without any left out."""
        bounds = np.searchsorted(rows, self.starts)
        return [
            (i, rows[low:high] - self.starts[i])
            for i, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
            if high > low
        ]


def take_ordered(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table by ascending row number, each chunk by itself.

    `Table.take` joins all chunks of a column first: it copies the whole column at each call, and
    fails beyond 2 GiB of text.
    """
    parts, start = [], 0
    for batch in table.to_batches():
        low, high = np.searchsorted(rows, (start, start + batch.num_rows))
        if high > low:
            parts.append(batch.take(pa.array(rows[low:high] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(parts, schema=table.schema)


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows of a table in the order given, one chunk."""
    order = np.argsort(rows, kind="stable")
    joined = take_ordered(table, rows[order]).combine_chunks()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return joined.take(pa.array(place))


def gather(
    sharded: Sharded,
    rows: np.ndarray,
    make: Callable[[int, np.ndarray], pa.Table],
    *,
    rows_per_shard: int,
    run: Run,
) -> Iterator[pa.Table]:
    """Tables of `rows_per_shard` rows in the order given; `make` reads rows of one shard.

    All of `rows` is held at once: give a block at a time.
    """
    order = np.argsort(rows, kind="stable")
    parts = run(lambda place: make(*place), sharded.places(rows[order]))
    found = pa.concat_tables(list(parts))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    slices = [
        place[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)
    ]
    yield from run(lambda part: take_rows(found, part), slices)
