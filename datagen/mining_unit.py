"""Some queries and what each of them searches: its pool, its vectors, its ceiling, its exclusions.

A unit is a slice of one shard of queries. Both sides of a mining read it alike: those who search a
range of the documents (datagen.mining_search), and those who choose from what all ranges gave
(datagen.negatives). Several teachers give one view of the vectors or one each: with `mean` a score
is the mean of their cosines; with `each` every teacher has its own scores, ceilings and top, as
NV-Retriever's ensemble has (arXiv 2407.15831, section 5.3).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.candidates import Plan, QueryPlan
from datagen.mining_rules import Rules
from datagen.padding import Flat, rank_in
from datagen.pool_search import PoolSearch
from datagen.store import Folder, open_shard
from datagen.threads import Run
from datagen.topk import Matrix, dot
from datagen.vectors import Teachers

_POSITIVE_CLUSTER = 1


@dataclass(frozen=True, kw_only=True)
class View:
    """Vectors of all queries and documents by one teacher, or by all of them as one."""

    queries: Teachers
    documents: Teachers


class Reader:
    """What a worker of either side holds: the plan, the rules and every vector, memory-mapped."""

    def __init__(
        self,
        *,
        deduped: str,
        plan: str,
        teachers: Sequence[Mapping[str, Any]],
        rules: Mapping[str, Any],
        candidates: int,
        threads: int,
    ):
        import torch

        self.candidates = candidates
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.threads = 1 if self.device == "cuda" else threads
        self.input, self.rules = Folder(deduped), Rules(**rules)
        self.plan = Plan(Folder(plan))
        self.mean = _view(teachers)
        each = self.rules.teachers == "each"
        self.views = [_view([one]) for one in teachers] if each else [self.mean]

    def unit(self, unit: Mapping[str, Any]) -> "Unit":
        rows = open_shard(self.input, unit["shard"]).slice(unit["start"], unit["rows"])
        plan = self.plan.queries(unit["row"], unit["rows"])
        return Unit(reader=self, rows=rows, plan=plan, first=unit["row"])


def _view(teachers: Sequence[Mapping[str, Any]]) -> View:
    return View(
        queries=Teachers.of(teachers, "queries"), documents=Teachers.of(teachers, "documents")
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The queries of a unit as one view scores them."""

    vectors: np.ndarray
    documents: Matrix
    positive_scores: np.ndarray  # of plan.positives
    lowest: np.ndarray  # of each query's positive scores


@dataclass(frozen=True, kw_only=True)
class Group:
    """Queries of a unit that compete in one pool: their numbers, its documents, their rules."""

    members: np.ndarray
    rows: np.ndarray
    rules: Rules


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The queries of a unit; `first` is the row of the first one."""

    reader: Reader
    rows: pa.Table
    plan: QueryPlan
    first: int

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def ids(self) -> list[str]:
        return self.rows["query_id"].to_pylist()

    @cached_property
    def excluded(self) -> Flat:
        """(query, document, rule) that may not meet."""
        return self.reader.plan.excluded(self.plan)

    @cached_property
    def given(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, document) of the source's own negatives, and the query of each that is refused.

        Refused are positives and near-duplicates of one.
        """
        asker, document = self.plan.given
        size = self.reader.mean.documents.shape[0]
        query, barred, rule = self.excluded
        own = rule <= _POSITIVE_CLUSTER
        refused = np.isin(asker * size + document, (query * size + barred)[own])
        queries, documents = asker[~refused], document[~refused]
        kept = rank_in(queries) < self.reader.rules.negatives
        return queries[kept], documents[kept], asker[refused]

    def asked(self, view: View) -> Asked:
        vectors = view.queries[self.first : self.first + len(self)]
        scores = dot(vectors, view.documents, self.plan.positives)
        return Asked(
            vectors=vectors,
            documents=view.documents,
            positive_scores=scores,
            lowest=lowest(scores, self.plan.positives[0]),
        )

    def groups(self) -> Iterator[Group]:
        plan, reader = self.plan, self.reader
        mode = reader.rules.languages
        language = {
            "any": np.full(len(plan.pool), -1),
            "same": plan.answer_language,
            "other": plan.language,
        }[mode]
        tasks = np.array(self.rows["task"].to_pylist())
        key = np.stack([plan.pool, plan.public, np.where(tasks != "retrieval", -1, language)])
        groups, number = np.unique(key, axis=1, return_inverse=True)
        for group, (pool, public, code) in enumerate(groups.T.tolist()):
            members = np.flatnonzero(number.reshape(-1) == group)
            rows = reader.plan.pool(pool, public=bool(public))
            if code >= 0:
                rows = rows[(reader.plan.language[rows] == code) == (mode == "same")]
            rules = reader.rules.for_task(str(tasks[members[0]]))
            yield Group(members=members, rows=rows, rules=rules)

    def search(
        self, asked: Asked, group: Group, *, run: Run, part: slice = slice(None)
    ) -> PoolSearch:
        """The search of a group in its pool, or in a part of its rows."""
        return PoolSearch(
            members=group.members,
            rows=group.rows[part],
            vectors=asked.vectors,
            documents=asked.documents,
            ceilings=group.rules.ceilings(asked.lowest[group.members]),
            query_ids=[self.ids[i] for i in group.members],
            rules=group.rules,
            candidates=self.reader.candidates,
            excluded=self.excluded,
            given=self.given[:2],
            device=self.reader.device,
            run=run,
        )


def lowest(scores: np.ndarray, sorted_queries: np.ndarray) -> np.ndarray:
    """The smallest score of each query."""
    starts = np.flatnonzero(np.diff(sorted_queries, prepend=-1))
    return np.minimum.reduceat(scores, starts)
