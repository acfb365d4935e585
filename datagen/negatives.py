"""The negatives of one unit of queries, under datagen.mining_rules.

The best documents of each query come from the worker's own search, which streams the vectors of
each pool once, or from the searches of ranges (datagen.mining_search). What a unit gives depends on
the unit alone: scores are float64 sums rounded to float32, ties go to the smaller row number, what
is drawn follows from the id of the query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.candidates import EXCLUSIONS
from datagen.mining_search import FoundBefore
from datagen.mining_unit import Asked, Reader, Unit
from datagen.padding import Flat, Padding, cut, dropped, once
from datagen.schema import MINED
from datagen.steps import LedgerRow, UnitResult
from datagen.store import Folder, open_shard
from datagen.threads import Run, side_by_side
from datagen.topk import dot

# One row per query of `mined`. `candidates` are the documents of the pool that no exclusion rules
# out; `above_ceiling` of them score too high (of those in the rank window if there is one), and
# `skipped_top` were below it and skipped. `<rule>` counts documents of the pool that the rule
# excludes, `<rule>_caught` those that score low enough and would have been taken without it.
# `padded` negatives come from other pools; `dropped` is 1 where too few were found to keep any.
# Of several teachers with negatives of their own the first one's figures stand for all.
_COUNTS = (
    *("candidates", "above_ceiling", "skipped_top", "given", "given_excluded"),
    *("padded", "dropped", *EXCLUSIONS),
)
RULE_COUNTS = pa.schema(
    [
        pa.field(name, pa.int32(), nullable=False)
        for name in (*_COUNTS, *(f"{rule}_caught" for rule in EXCLUSIONS))
    ]
)
# The best documents of each query that no exclusion rules out, whatever they score: what other
# rules can be tried on without a search.
CANDIDATES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("lowest_positive_score", pa.float32(), nullable=False),
        pa.field("documents", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
    ]
)


class Miner:
    """A worker that knows the plan and can read every vector; mines units of queries."""

    def __init__(self, *, documents: Sequence[str], place: str, **reader: Any):
        self.reader = Reader(**reader)
        self.place = Folder(place)
        parts = [open_shard(self.reader.input, name).select(["doc_id"]) for name in documents]
        self.doc_ids = pa.concat_tables(parts)["doc_id"]

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        with side_by_side(self.reader.threads) as run:
            before = FoundBefore(self.place, unit["found"], unit["rows"]) if unit["found"] else None
            return self._mined(self.reader.unit(unit), before, run)

    def _mined(self, unit: Unit, before: FoundBefore | None, run: Run) -> UnitResult:
        asked = unit.asked(self.reader.mean)
        found = self._mine(unit, asked, before, run)
        rows, count = unit.rows, len(unit)
        mined = {
            "query_id": rows["query_id"],
            "positives": rows["positives"],
            "positive_scores": lists(asked.positive_scores, unit.plan.positives[0], count),
            "negatives": lists(self._ids(found.documents), found.queries, count),
            "negative_scores": lists(found.scores, found.queries, count),
            "given_negatives": np.where(found.counts["dropped"], 0, found.counts["given"]),
        }
        tables = {
            "mined": pa.table(mined, schema=MINED),
            "rules": pa.table(found.counts, schema=RULE_COUNTS),
        }
        if self.reader.candidates:
            tables["candidates"] = self._listed(unit, asked, found.listed)
        return UnitResult(tables=tables, ledger=ledger_of(rows["source"], unit="queries"))

    def _ids(self, documents: np.ndarray) -> pa.Array:
        ids = self.doc_ids.take(pa.array(documents))
        return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

    def _listed(self, unit: Unit, asked: Asked, listed: Sequence[Flat]) -> pa.Table:
        queries, rank, documents = (np.concatenate(c) for c in zip(*listed, strict=True))
        order = np.lexsort((rank, queries))
        queries, documents = queries[order], documents[order]
        scores = dot(asked.vectors, asked.documents, (queries, documents))
        columns = {
            "query_id": unit.rows["query_id"],
            "lowest_positive_score": asked.lowest,
            "documents": lists(self._ids(documents), queries, len(unit)),
            "scores": lists(scores, queries, len(unit)),
        }
        return pa.table(columns, schema=CANDIDATES)

    def _mine(self, unit: Unit, asked: Asked, before: FoundBefore | None, run: Run) -> "Found":
        counts = {name: np.zeros(len(unit), np.int32) for name in RULE_COUNTS.names}
        queries, documents, refused = unit.given
        np.add.at(counts["given"], queries, 1)
        np.add.at(counts["given_excluded"], refused, 1)
        parts = [(queries, np.arange(len(queries)) - len(queries), documents)]
        listed: list[Flat] = []
        views = self.reader.views
        for number, view in enumerate(views):
            seen = asked if view is self.reader.mean else unit.asked(view)
            for group in unit.groups():
                search = unit.search(seen, group, run=run)
                found = before.of(number, group, search) if before else search.find()
                chosen = search.choose(found)
                if number == 0:
                    search.count(chosen, counts)
                query, rank, document = search.taken(chosen.best)
                parts.append((query, rank * len(views) + number, document))
                if chosen.listed is not None:
                    listed.append(search.taken(chosen.listed))
        queries, documents = cut(once(parts), self.reader.rules.negatives)
        if self.reader.rules.too_few == "drop":
            queries, documents = dropped(queries, documents, self.reader.rules, counts)
        elif self.reader.rules.too_few == "pad":
            queries, documents = self._padding(unit, asked).fill(queries, documents, counts)
        scores = dot(asked.vectors, asked.documents, (queries, documents))
        return Found(
            queries=queries, documents=documents, scores=scores, counts=counts, listed=listed
        )

    def _padding(self, unit: Unit, asked: Asked) -> Padding:
        ceilings = np.empty(len(unit))
        for group in unit.groups():
            ceilings[group.members] = group.rules.ceilings(asked.lowest[group.members])
        return Padding(
            rules=self.reader.rules,
            plan=self.reader.plan,
            vectors=asked.vectors,
            documents=asked.documents,
            ids=unit.ids,
            public=unit.plan.public,
            ceilings=ceilings,
            excluded=unit.excluded[:2],
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """Negatives as flat columns, in order of query, and the counts of the rules per query."""

    queries: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    counts: dict[str, np.ndarray]
    listed: Sequence[Flat]


def lists(values: np.ndarray | pa.Array, sorted_queries: np.ndarray, count: int) -> pa.ListArray:
    """Flat values as one list for each of `count` queries."""
    offsets = np.searchsorted(sorted_queries, np.arange(count + 1)).astype(np.int32)
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return pa.ListArray.from_arrays(pa.array(offsets), array)


def ledger_of(sources: pa.ChunkedArray, *, unit: str) -> list[LedgerRow]:
    """A ledger in which every row is kept."""
    return [
        LedgerRow(source=count["values"], rows_in=count["counts"], kept=count["counts"], unit=unit)
        for count in sources.value_counts().to_pylist()
    ]
