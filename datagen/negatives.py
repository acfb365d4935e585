"""The negatives of one unit of queries: exact top-k in each pool, under datagen.mining_rules.

A unit reads its slice of the plan, its queries' vectors, and streams the vectors of each pool once.
What it gives depends on the unit alone: scores are float64 sums rounded to float32, ties go to the
smaller row number, what is drawn follows from the id of the query.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.candidates import EXCLUSIONS, Plan, QueryPlan
from datagen.mining_rules import Rules
from datagen.padding import Flat, Padding, cut, dropped, rank_in
from datagen.pool_search import PoolSearch
from datagen.schema import MINED
from datagen.steps import LedgerRow, UnitResult
from datagen.store import Folder, open_shard
from datagen.threads import Run, side_by_side
from datagen.topk import dot
from datagen.vectors import Teachers

# One row per query of `mined`. `candidates` are the documents of the pool that no exclusion rules
# out; `above_ceiling` of them score too high (of those in the rank window if there is one), and
# `skipped_top` were below it and skipped. `<rule>` counts documents of the pool that the rule
# excludes, `<rule>_caught` those that score low enough and would have been taken without it.
# `padded` negatives come from other pools; `dropped` is 1 where too few were found to keep any.
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
_POSITIVE_CLUSTER = 1


class Miner:
    """A worker that knows the plan and can read every vector; mines units of queries."""

    def __init__(
        self,
        *,
        deduped: str,
        plan: str,
        teachers: Sequence[Mapping[str, Any]],
        documents: Sequence[str],
        rules: Mapping[str, Any],
        candidates: int,
        threads: int,
    ):
        import torch

        self.threads, self.candidates = threads, candidates
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.input, self.rules = Folder(deduped), Rules(**rules)
        self.plan = Plan(Folder(plan))
        self.query_vectors = Teachers.of(teachers, "queries")
        self.document_vectors = Teachers.of(teachers, "documents")
        parts = [open_shard(self.input, name).select(["doc_id"]) for name in documents]
        self.doc_ids = pa.concat_tables(parts)["doc_id"]

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        with side_by_side(1 if self.device == "cuda" else self.threads) as run:
            return self._unit(unit, run)

    def _unit(self, unit: Mapping[str, Any], run: Run) -> UnitResult:
        rows = open_shard(self.input, unit["shard"]).slice(unit["start"], unit["rows"])
        plan = self.plan.queries(unit["row"], unit["rows"])
        vectors = self.query_vectors[unit["row"] : unit["row"] + unit["rows"]]
        asked = _Asked(
            plan=plan,
            vectors=vectors,
            ids=rows["query_id"].to_pylist(),
            tasks=np.array(rows["task"].to_pylist()),
            positive_scores=dot(vectors, self.document_vectors, plan.positives),
        )
        found = self._mine(asked, run)
        askers, count = plan.positives[0], unit["rows"]
        mined = {
            "query_id": rows["query_id"],
            "positives": rows["positives"],
            "positive_scores": lists(asked.positive_scores, askers, count),
            "negatives": lists(self._ids(found.documents), found.queries, count),
            "negative_scores": lists(found.scores, found.queries, count),
        }
        tables = {
            "mined": pa.table(mined, schema=MINED),
            "rules": pa.table(found.counts, schema=RULE_COUNTS),
        }
        if self.candidates:
            tables["candidates"] = self._listed(rows["query_id"], asked, found.listed)
        return UnitResult(tables=tables, ledger=ledger_of(rows["source"], unit="queries"))

    def _ids(self, documents: np.ndarray) -> pa.Array:
        ids = self.doc_ids.take(pa.array(documents))
        return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

    def _listed(self, ids: pa.ChunkedArray, asked: "_Asked", listed: Sequence[Flat]) -> pa.Table:
        queries, rank, documents = (np.concatenate(c) for c in zip(*listed, strict=True))
        order = np.lexsort((rank, queries))
        queries, documents = queries[order], documents[order]
        scores = dot(asked.vectors, self.document_vectors, (queries, documents))
        columns = {
            "query_id": ids,
            "lowest_positive_score": asked.lowest,
            "documents": lists(self._ids(documents), queries, len(ids)),
            "scores": lists(scores, queries, len(ids)),
        }
        return pa.table(columns, schema=CANDIDATES)

    def _mine(self, asked: "_Asked", run: Run) -> "Found":
        plan, vectors = asked.plan, asked.vectors
        counts = {name: np.zeros(len(vectors), np.int32) for name in RULE_COUNTS.names}
        excluded = self.plan.excluded(plan)
        given = self._given(plan, excluded, counts)
        parts = [(given[0], np.arange(len(given[0])) - len(given[0]), given[1])]
        listed: list[Flat] = []
        ceilings = np.empty(len(vectors))
        for members, rows, rules in self._groups(asked):
            ceilings[members] = rules.ceilings(asked.lowest[members])
            search = PoolSearch(
                members=members,
                rows=rows,
                vectors=vectors,
                documents=self.document_vectors,
                ceilings=ceilings[members],
                query_ids=[asked.ids[i] for i in members],
                rules=rules,
                device=self.device,
                run=run,
            )
            inside = search.pairs(excluded)
            barred = search.pairs((*given, given[0]))
            chosen = search.choose(inside, barred, candidates=self.candidates)
            search.count(chosen, inside, barred, counts)
            parts.append(search.taken(chosen.best))
            if chosen.listed is not None:
                listed.append(search.taken(chosen.listed))
        queries, documents = cut(parts, self.rules.negatives)
        if self.rules.too_few == "drop":
            queries, documents = dropped(queries, documents, self.rules, counts)
        elif self.rules.too_few == "pad":
            padding = self._padding(asked, ceilings, excluded)
            queries, documents = padding.fill(queries, documents, counts)
        scores = dot(vectors, self.document_vectors, (queries, documents))
        return Found(
            queries=queries, documents=documents, scores=scores, counts=counts, listed=listed
        )

    def _padding(self, asked: "_Asked", ceilings: np.ndarray, excluded: Flat) -> Padding:
        return Padding(
            rules=self.rules,
            plan=self.plan,
            vectors=asked.vectors,
            documents=self.document_vectors,
            ids=asked.ids,
            public=asked.plan.public,
            ceilings=ceilings,
            excluded=excluded[:2],
        )

    def _groups(self, asked: "_Asked") -> Iterator[tuple[np.ndarray, np.ndarray, Rules]]:
        """(queries, rows of the documents, rules) of those that compete together."""
        plan, mode = asked.plan, self.rules.languages
        language = {
            "any": np.full(len(plan.pool), -1),
            "same": plan.answer_language,
            "other": plan.language,
        }[mode]
        free = asked.tasks != "retrieval"
        key = np.stack([plan.pool, plan.public, np.where(free, -1, language)])
        groups, number = np.unique(key, axis=1, return_inverse=True)
        for group, (pool, public, code) in enumerate(groups.T.tolist()):
            members = np.flatnonzero(number.reshape(-1) == group)
            rows = self.plan.pool(pool, public=bool(public))
            if code >= 0:
                rows = rows[(self.plan.language[rows] == code) == (mode == "same")]
            yield members, rows, self.rules.for_task(str(asked.tasks[members[0]]))

    def _given(
        self, plan: QueryPlan, excluded: Flat, counts: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The source's own negatives that are not positives or near-duplicates of one."""
        asker, document = plan.given
        size = self.document_vectors.shape[0]
        own = excluded[2] <= _POSITIVE_CLUSTER
        refused = np.isin(asker * size + document, (excluded[0] * size + excluded[1])[own])
        np.add.at(counts["given_excluded"], asker[refused], 1)
        asker, document = asker[~refused], document[~refused]
        kept = rank_in(asker) < self.rules.negatives
        np.add.at(counts["given"], asker[kept], 1)
        return asker[kept], document[kept]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The queries of a unit."""

    plan: QueryPlan
    vectors: np.ndarray
    ids: Sequence[str]
    tasks: np.ndarray
    positive_scores: np.ndarray  # of plan.positives

    @property
    def lowest(self) -> np.ndarray:
        return lowest(self.positive_scores, self.plan.positives[0])


@dataclass(frozen=True, kw_only=True)
class Found:
    """Negatives as flat columns, in order of query, and the counts of the rules per query."""

    queries: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    counts: dict[str, np.ndarray]
    listed: Sequence[Flat]


def _cut(parts: Sequence[Flat], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(query, document) in order of query and rank, at most `count` a query."""
    queries, rank, documents = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rank, queries))
    queries, documents = queries[order], documents[order]
    kept = rank_in(queries) < count
    return queries[kept], documents[kept]


def lowest(scores: np.ndarray, sorted_queries: np.ndarray) -> np.ndarray:
    """The smallest score of each query."""
    starts = np.flatnonzero(np.diff(sorted_queries, prepend=-1))
    return np.minimum.reduceat(scores, starts)


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
