"""Which documents may be negatives of which query: pools, and what each query must never meet.

A query competes in one pool: retrieval against all retrieval documents, bitext against documents
in the language and script of its positive, other tasks against the documents of their own task and
source. What is excluded is closed over clusters: documents of the cluster of a positive, and,
through the query's own cluster, the positives (with their clusters) of every near-duplicate query
of any source. In symmetric tasks, where queries are documents, too, the query's own text is
excluded with its cluster; in clustering, whose positives are other texts of the same class, all
texts that queries and positives connect count as one cluster. No score threshold can tell those
from true negatives (NV-Retriever, arXiv 2407.15831, finds 38-47% false negatives in plain top-k).

Public queries see public documents and the positives of public queries only, so what LLMs wrote
never changes a public row. The plan is made once, by joins on ids; workers read it memory-mapped.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datagen.store import Folder, open_shard, shard_name

EXCLUSIONS = ("known_positive", "positive_cluster", "query_cluster", "own_text")
UNKNOWN = -1  # the query's own text is no document

_INT = pa.int64()
PLAN = {
    "documents": pa.schema([("cluster", _INT), ("language", _INT), ("public", pa.bool_())]),
    "members": pa.schema([("cluster", _INT), ("document", _INT)]),
    "pools": pa.schema([("pool", _INT), ("document", _INT), ("public", pa.bool_())]),
    "closure": pa.schema([("query_cluster", _INT), ("cluster", _INT), ("public", pa.bool_())]),
    "queries": pa.schema(
        [
            ("pool", _INT),
            ("public", pa.bool_()),
            ("cluster", _INT),
            ("language", _INT),
            ("answer_language", _INT),
            ("own_text", _INT),
            ("positives", pa.list_(_INT)),
            ("given", pa.list_(_INT)),
        ]
    ),
}


@dataclass(frozen=True, kw_only=True)
class QueryPlan:
    """Some queries: pool, whether public, cluster, positives and given negatives."""

    pool: np.ndarray
    public: np.ndarray
    cluster: np.ndarray
    language: np.ndarray
    answer_language: np.ndarray  # of the first positive
    own_text: np.ndarray  # document row, or -1
    positives: tuple[np.ndarray, np.ndarray]  # (query number, document row) pairs
    given: tuple[np.ndarray, np.ndarray]  # likewise


class Plan:
    """A written plan, as one worker reads it."""

    def __init__(self, folder: Folder):
        tables = {name: open_shard(folder, shard_name(name, 0)) for name in PLAN}
        self._queries = tables.pop("queries")
        columns = {
            (table, column): rows[column].to_numpy()
            for table, rows in tables.items()
            for column in rows.column_names
        }
        self._columns = columns
        self.cluster = columns["documents", "cluster"]
        self.language = columns["documents", "language"]

    def queries(self, start: int, count: int) -> QueryPlan:
        rows = self._queries.slice(start, count)
        return QueryPlan(
            pool=rows["pool"].to_numpy(),
            public=rows["public"].to_numpy(),
            cluster=rows["cluster"].to_numpy(),
            language=rows["language"].to_numpy(),
            answer_language=rows["answer_language"].to_numpy(),
            own_text=rows["own_text"].to_numpy(),
            positives=_pairs(rows["positives"]),
            given=_pairs(rows["given"]),
        )

    def pool(self, pool: int, *, public: bool) -> np.ndarray:
        """Document rows of a pool, ascending."""
        low, high = np.searchsorted(self._columns["pools", "pool"], (pool, pool + 1))
        rows = self._columns["pools", "document"][low:high]
        return rows[self._columns["pools", "public"][low:high]] if public else rows

    def visible(self, *, public: bool) -> np.ndarray:
        """Document rows of all pools, ascending."""
        known = self._columns["documents", "public"]
        return np.flatnonzero(known) if public else np.arange(len(known))

    def excluded(self, queries: QueryPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query number, document row, index into EXCLUSIONS): what each query must not meet."""
        asker, document = queries.positives
        own = np.stack([asker, self.cluster[document]])
        others = self._closure(queries)
        themselves = np.flatnonzero(queries.own_text >= 0)
        texts = np.stack([themselves, self.cluster[queries.own_text[themselves]]])
        pairs = np.concatenate([own, others, texts], axis=1)
        mark = np.repeat([1, 2, 3], [own.shape[1], others.shape[1], texts.shape[1]])
        unique, first = np.unique(pairs, axis=1, return_index=True)
        mark = mark[first]  # the first of equal pairs is the query's own
        members = self._columns["members", "cluster"]
        low, high = np.searchsorted(members, unique[1]), np.searchsorted(members, unique[1] + 1)
        which, position = _expand(low, high - low)
        found = self._columns["members", "document"][position]
        rule, query = mark[which], unique[0][which]
        known = np.isin(_keys(query, found, self.cluster), _keys(asker, document, self.cluster))
        return query, found, np.where(known, 0, rule)

    def _closure(self, queries: QueryPlan) -> np.ndarray:
        """(query number, document cluster) of the positives of each query's cluster."""
        clusters = self._columns["closure", "query_cluster"]
        low = np.searchsorted(clusters, queries.cluster)
        high = np.searchsorted(clusters, queries.cluster + 1)
        which, position = _expand(low, high - low)
        seen = self._columns["closure", "public"][position] | ~queries.public[which]
        return np.stack([which, self._columns["closure", "cluster"][position]])[:, seen]


def _keys(query: np.ndarray, document: np.ndarray, documents: np.ndarray) -> np.ndarray:
    return query.astype(np.int64) * len(documents) + document


def _pairs(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    array = lists.combine_chunks()
    counts = array.value_lengths().to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(array)), counts), array.flatten().to_numpy(zero_copy_only=False)


def _expand(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For ranges (start, count): the number of the range and each position in it."""
    which = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - before[which] + starts[which]
