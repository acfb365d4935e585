"""The search of a mining in parts: some queries against a range of the documents, on any worker.

Nobody needs to search the whole of a pool. A unit is a block of queries and a range of documents;
what it finds there, the best of each query under the rules, is written as row numbers with exact
scores, and the best of all ranges are the best of these (datagen.topk.merged), whatever the ranges.
`Choosing` merges them and applies the rules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.mining_unit import Group, Reader, Unit
from datagen.pool_search import Found, PoolSearch
from datagen.steps import UnitResult
from datagen.store import Folder, open_shard
from datagen.threads import side_by_side
from datagen.topk import TopK, merged

_ROWS, _SCORES = pa.list_(pa.int64()), pa.list_(pa.float32())
# One row per view and query, in this order. `above` counts documents of the range over the ceiling.
FOUND = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("listed", _ROWS),
            ("listed_scores", _SCORES),
            ("below", _ROWS),
            ("below_scores", _SCORES),
            ("above", pa.int64()),
        )
    ]
)


def search_units(units: Sequence[Mapping[str, Any]], documents: int, size: int) -> list[dict]:
    """Each unit of queries with each range of `size` documents, ranges inside."""
    ranges = [(low, min(low + size, documents)) for low in range(0, documents, size)]
    return [{**unit, "low": low, "high": high} for unit in units for low, high in ranges]


class Searcher:
    """A worker that searches ranges of the documents."""

    def __init__(self, **reader: Any):
        self.reader = Reader(**reader)

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        asked = self.reader.unit(unit)
        with side_by_side(self.reader.threads) as run:
            tables = [
                _searched(asked, view, (unit["low"], unit["high"]), run)
                for view in self.reader.views
            ]
        return UnitResult(tables={"found": pa.concat_tables(tables)})


def _searched(unit: Unit, view: Any, span: tuple[int, int], run: Any) -> pa.Table:
    asked = unit.asked(view)
    flat: dict[str, list[tuple[np.ndarray, ...]]] = {"listed": [], "below": []}
    above = np.zeros(len(unit), np.int64)
    for group in unit.groups():
        part = slice(*np.searchsorted(group.rows, span).tolist())
        search = unit.search(asked, group, run=run, part=part)
        found = search.find()
        for name, best in (("listed", found.listed), ("below", found.below)):
            if best is not None:
                flat[name].append((*search.taken(best), best.scores[best.rows >= 0]))
        if found.below is not None:
            above[group.members] = found.below.above
    columns: dict[str, pa.Array] = {"above": pa.array(above)}
    for name, parts in flat.items():
        columns |= _lists(name, parts, len(unit))
    return pa.table(columns).select(FOUND.names).cast(FOUND)


def _lists(name: str, parts: Sequence[tuple[np.ndarray, ...]], count: int) -> dict[str, pa.Array]:
    if not parts:
        return {
            name: pa.array([[]] * count, _ROWS),
            f"{name}_scores": pa.array([[]] * count, _SCORES),
        }
    queries, rank, rows, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rank, queries))
    offsets = pa.array(np.searchsorted(queries[order], np.arange(count + 1)).astype(np.int32))
    return {
        name: pa.ListArray.from_arrays(offsets, pa.array(rows[order])),
        f"{name}_scores": pa.ListArray.from_arrays(offsets, pa.array(scores[order])),
    }


class FoundBefore:
    """What the searchers found for a unit of queries, in every range."""

    def __init__(self, folder: Folder, shards: Sequence[str], count: int):
        self.tables = [open_shard(folder, name) for name in shards]
        self.count = count

    def of(self, view: int, group: Group, search: PoolSearch) -> Found:
        """The best of the whole pool for a group, as `search.find` would give them."""
        rows = pa.array(view * self.count + group.members)
        parts = [table.take(rows).combine_chunks() for table in self.tables]
        rules, depth = search.rules, max(search.rules.rank_window or 0, search.candidates)
        listed = self._merged("listed", parts, search.rows, depth) if depth else None
        below = None
        if not rules.rank_window:
            below = self._merged("below", parts, search.rows, rules.depth)
        return Found(listed, below)

    def _merged(self, name: str, parts: Sequence[pa.Table], pool: np.ndarray, depth: int) -> TopK:
        found = []
        for part in parts:
            column = part[name].combine_chunks()
            counts = column.value_lengths().to_numpy(zero_copy_only=False)
            there = np.arange(depth) < counts[:, None]
            rows = np.full(there.shape, -1, np.int64)
            scores = np.full(there.shape, -np.inf, np.float32)
            rows[there] = np.searchsorted(pool, column.flatten().to_numpy(zero_copy_only=False))
            scores[there] = part[f"{name}_scores"].combine_chunks().flatten().to_numpy()
            found.append(TopK(rows, scores, above=part["above"].to_numpy()))
        return merged(found)
