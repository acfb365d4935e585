"""The negatives of one unit of queries: exact top-k in each pool, under the rules of datagen.mine.

A unit reads its slice of the plan, its queries' vectors, and streams the vectors of each pool once.
What it gives depends on the unit alone: scores are float64 sums rounded to float32, ties go to the
smaller row number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.candidates import EXCLUSIONS, Plan, QueryPlan
from datagen.encode import Embeddings
from datagen.schema import MINED
from datagen.steps import LedgerRow, UnitResult
from datagen.store import Folder, open_shard
from datagen.threads import Run, side_by_side
from datagen.topk import Excluded, Matrix, TopK, dot, top_k

# One row per query of `mined`. `candidates` are the documents of the pool that no exclusion rules
# out; `above_ceiling` of them score too high. `<rule>` counts documents of the pool that the rule
# excludes, `<rule>_caught` those that score low enough and would have been taken without it.
_COUNTS = ("candidates", "above_ceiling", "given", "given_excluded", *EXCLUSIONS)
RULE_COUNTS = pa.schema(
    [
        pa.field(name, pa.int32(), nullable=False)
        for name in (*_COUNTS, *(f"{rule}_caught" for rule in EXCLUSIONS))
    ]
)
_KNOWN_POSITIVE, _POSITIVE_CLUSTER = 0, 1


class Miner:
    """A worker that knows the plan and can read every vector; mines units of queries."""

    def __init__(
        self,
        *,
        deduped: str,
        plan: str,
        place: str,
        vectors: Mapping[str, Sequence[str]],
        documents: Sequence[str],
        margin: float,
        negatives: int,
        threads: int,
    ):
        import torch

        self.threads = threads
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.input, self.margin, self.negatives = Folder(deduped), margin, negatives
        self.plan = Plan(Folder(plan))
        self.query_vectors = Embeddings(Folder(place), vectors["queries"])
        self.document_vectors = Embeddings(Folder(place), vectors["documents"])
        parts = [open_shard(self.input, name).select(["doc_id"]) for name in documents]
        self.doc_ids = pa.concat_tables(parts)["doc_id"]

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        with side_by_side(1 if self.device == "cuda" else self.threads) as run:
            return self._unit(unit, run)

    def _unit(self, unit: Mapping[str, Any], run: Run) -> UnitResult:
        rows = open_shard(self.input, unit["shard"]).slice(unit["start"], unit["rows"])
        plan = self.plan.queries(unit["row"], unit["rows"])
        vectors = self.query_vectors[unit["row"] : unit["row"] + unit["rows"]]
        scores = dot(vectors, self.document_vectors, plan.positives)
        ceilings = percent_of_positive(lowest(scores, plan.positives[0]), self.margin)
        found = self._mine(plan, vectors, ceilings, run)
        askers, count = plan.positives[0], unit["rows"]
        mined = {
            "query_id": rows["query_id"],
            "positives": rows["positives"],
            "positive_scores": _lists(scores, askers, count),
            "negatives": _lists(self._ids(found.documents), found.queries, count),
            "negative_scores": _lists(found.scores, found.queries, count),
        }
        return UnitResult(
            tables={
                "mined": pa.table(mined, schema=MINED),
                "rules": pa.table(found.counts, schema=RULE_COUNTS),
            },
            ledger=ledger_of(rows["source"], unit="queries"),
        )

    def _ids(self, documents: np.ndarray) -> pa.Array:
        ids = self.doc_ids.take(pa.array(documents))
        return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

    def _mine(
        self, plan: QueryPlan, vectors: np.ndarray, ceilings: np.ndarray, run: Run
    ) -> "Found":
        counts = {name: np.zeros(len(vectors), np.int32) for name in RULE_COUNTS.names}
        asker, document, rule = self.plan.excluded(plan)
        given = self._given(plan, (asker, document, rule), counts)
        parts = [(given[0], np.arange(len(given[0])) - len(given[0]), given[1])]
        group = plan.pool * 2 + plan.public
        for key in np.unique(group):
            members = np.flatnonzero(group == key)
            search = _PoolSearch(
                members=members,
                rows=self.plan.pool(int(key) // 2, public=bool(key % 2)),
                vectors=vectors,
                documents=self.document_vectors,
                ceilings=ceilings,
            )
            inside = search.pairs((asker, document, rule))
            barred = search.pairs((*given, given[0]))
            best = search.best(inside, barred, k=self.negatives, device=self.device, run=run)
            search.count(best, inside, barred, counts)
            parts.append(search.taken(best))
        return self._assemble(parts, vectors, counts)

    def _given(
        self,
        plan: QueryPlan,
        excluded: tuple[np.ndarray, np.ndarray, np.ndarray],
        counts: Mapping[str, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The source's own negatives that are not positives or near-duplicates of one."""
        asker, document = plan.given
        size = self.document_vectors.shape[0]
        own = excluded[2] <= _POSITIVE_CLUSTER
        refused = np.isin(asker * size + document, (excluded[0] * size + excluded[1])[own])
        np.add.at(counts["given_excluded"], asker[refused], 1)
        asker, document = asker[~refused], document[~refused]
        kept = _rank(asker) < self.negatives
        np.add.at(counts["given"], asker[kept], 1)
        return asker[kept], document[kept]

    def _assemble(
        self,
        parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        vectors: np.ndarray,
        counts: dict[str, np.ndarray],
    ) -> "Found":
        """Given negatives, then mined ones, at most `negatives` a query."""
        queries, rank, documents = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((rank, queries))
        queries, documents = queries[order], documents[order]
        kept = _rank(queries) < self.negatives
        pairs = queries[kept], documents[kept]
        scores = dot(vectors, self.document_vectors, pairs)
        return Found(queries=pairs[0], documents=pairs[1], scores=scores, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Negatives as flat columns, in order of query, and the counts of the rules per query."""

    queries: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    counts: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class _PoolSearch:
    """The queries of a unit (`members`) that compete in one pool (`rows` of the documents)."""

    members: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    documents: Embeddings
    ceilings: np.ndarray

    def pairs(self, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """[3, pairs]: member number, place in the pool, mark; of the pairs that are in both."""
        asker, document, mark = pairs
        place = np.searchsorted(self.rows, document)
        member = np.searchsorted(self.members, asker)
        place, member = _within(place, self.rows), _within(member, self.members)
        if not len(self.rows):
            return np.empty((3, 0), np.int64)
        inside = (self.rows[place] == document) & (self.members[member] == asker)
        return np.stack([member, place, mark])[:, inside]

    def best(
        self, excluded: np.ndarray, given: np.ndarray, *, k: int, device: str, run: Run
    ) -> TopK:
        barred = np.concatenate([excluded[:2], given[:2]], axis=1)
        return top_k(
            self.vectors[self.members],
            _Pool(self.documents, self.rows),
            k=k,
            ceilings=self.ceilings[self.members],
            excluded=Excluded.of(barred[0], barred[1]),
            device=device,
            run=run,
        )

    def taken(self, best: TopK) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, rank, document) of what was found."""
        member, rank = np.nonzero(best.rows >= 0)
        return self.members[member], rank, self.rows[best.rows[member, rank]]

    def count(
        self,
        best: TopK,
        excluded: np.ndarray,
        given: np.ndarray,
        counts: Mapping[str, np.ndarray],
    ) -> None:
        """Fill the counts of the rules for these queries."""
        total = len(self.members)
        barred = np.unique(np.concatenate([excluded[:2], given[:2]], axis=1), axis=1)
        left = len(self.rows) - np.bincount(barred[0], minlength=total)
        counts["candidates"][self.members] = left
        counts["above_ceiling"][self.members] = best.above
        member, place, mark = excluded
        scores = dot(self.vectors, self.documents, (self.members[member], self.rows[place]))
        passes = scores <= self.ceilings[self.members[member]]
        caught = passes & (scores >= best.scores[member, -1])
        for number, rule in enumerate(EXCLUSIONS):
            own = mark == number
            for name, chosen in ((rule, own), (f"{rule}_caught", own & caught)):
                counts[name][self.members] = np.bincount(member[chosen], minlength=total)


@dataclass(frozen=True)
class _Pool:
    """Some rows of a matrix, as a matrix."""

    matrix: Matrix
    members: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.members), *self.matrix.shape[1:]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.matrix[self.members[rows]]


def _within(positions: np.ndarray, array: np.ndarray) -> np.ndarray:
    return np.minimum(positions, len(array) - 1)


def _rank(sorted_keys: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal keys."""
    return np.arange(len(sorted_keys)) - np.searchsorted(sorted_keys, sorted_keys)


def lowest(scores: np.ndarray, sorted_queries: np.ndarray) -> np.ndarray:
    """The smallest score of each query."""
    starts = np.flatnonzero(np.diff(sorted_queries, prepend=-1))
    return np.minimum.reduceat(scores, starts)


def percent_of_positive(lowest: np.ndarray, margin: float) -> np.ndarray:
    """Ceilings p - (1 - margin) x |p| of negatives, below p whatever its sign; float64."""
    lowest = lowest.astype(np.float64)
    return np.where(lowest >= 0, lowest * margin, lowest * (2 - margin))


def _lists(values: np.ndarray | pa.Array, sorted_queries: np.ndarray, count: int) -> pa.ListArray:
    offsets = np.searchsorted(sorted_queries, np.arange(count + 1)).astype(np.int32)
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return pa.ListArray.from_arrays(pa.array(offsets), array)


def ledger_of(sources: pa.ChunkedArray, *, unit: str) -> list[LedgerRow]:
    """A ledger in which every row is kept."""
    return [
        LedgerRow(source=count["values"], rows_in=count["counts"], kept=count["counts"], unit=unit)
        for count in sources.value_counts().to_pylist()
    ]
