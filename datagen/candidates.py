"""Which documents may be negatives of which query: pools, and what each query must never meet.

A query competes in one pool: retrieval against all retrieval documents, bitext against documents
in the language and script of its positive, other tasks against the documents of their own task and
source. What is excluded is closed over clusters: documents of the cluster of a positive, and,
through the query's own cluster, the positives (with their clusters) of every near-duplicate query
of any source. No score threshold can tell those from true negatives (NV-Retriever, arXiv
2407.15831, finds 38-47% false negatives in plain top-k).

Public queries see public documents and the positives of public queries only, so what LLMs wrote
never changes a public row. The plan is made once, by joins on ids; workers read it memory-mapped.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.store import Folder, open_shard, shard_name, write_shard

EXCLUSIONS = ("known_positive", "positive_cluster", "query_cluster")

_INT = pa.int64()
_SCHEMAS = {
    "documents": pa.schema([("cluster", _INT)]),
    "members": pa.schema([("cluster", _INT), ("document", _INT)]),
    "pools": pa.schema([("pool", _INT), ("document", _INT), ("public", pa.bool_())]),
    "closure": pa.schema([("query_cluster", _INT), ("cluster", _INT), ("public", pa.bool_())]),
    "queries": pa.schema(
        [
            ("pool", _INT),
            ("public", pa.bool_()),
            ("cluster", _INT),
            ("positives", pa.list_(_INT)),
            ("given", pa.list_(_INT)),
        ]
    ),
}


def make_plan(queries: pa.Table, documents: pa.Table) -> dict[str, pa.Table]:
    """Tables of row numbers for `Plan`, from tables of schema.QUERY and schema.DOCUMENT."""
    docs = _documents(documents)
    asked = _queries(queries)
    positives = _references(asked, docs, "positives")
    given = _references(asked, docs, "given_negatives")
    asked = asked.with_columns(pool=_pool_of_queries(asked, docs, positives))
    members, asked_pools = _pools(asked, docs, pl.concat([positives, given]))
    closure = (
        positives.join(asked.select("query", "cluster", "public"), on="query")
        .join(docs.select("document", document_cluster="cluster"), on="document")
        .group_by(query_cluster="cluster", cluster="document_cluster")
        .agg(pl.col("public").any())
        .sort("query_cluster", "cluster")
    )
    lists = {"positives": positives, "given": given}
    plan = asked.select("query", "public", "cluster", pool=asked_pools)
    for name, references in lists.items():
        grouped = references.group_by("query", maintain_order=True).agg(
            pl.col("document").alias(name)
        )
        plan = plan.join(grouped, on="query", how="left", maintain_order="left")
        plan = plan.with_columns(pl.col(name).fill_null([]))
    frames = {
        "documents": docs.select("cluster"),
        "members": docs.select("cluster", "document").sort("cluster", "document"),
        "pools": members,
        "closure": closure,
        "queries": plan,
    }
    return {name: _arrow(frame, _SCHEMAS[name]) for name, frame in frames.items()}


def _arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    return frame.select(schema.names).to_arrow().cast(schema)


def _frame(table: pa.Table, columns: list[str]) -> pl.DataFrame:
    frame = pl.from_arrow(table.select(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _codes(values: pl.Series) -> pl.Series:
    """Numbers for values, by first appearance."""
    frame = pl.DataFrame({"value": values})
    known = frame.unique("value", maintain_order=True).with_row_index("code")
    joined = frame.join(known, on="value", how="left", maintain_order="left", nulls_equal=True)
    return joined["code"].cast(pl.Int64)


def _documents(table: pa.Table) -> pl.DataFrame:
    columns = ["doc_id", "source", "origin", "task", "language", "script", "cluster"]
    docs = _frame(table, columns).with_row_index("document").cast({"document": pl.Int64})
    return docs.with_columns(
        cluster=_codes(docs["cluster"]),
        public=pl.col("origin") == "public",
        pool=_pool_key(pl.col("language"), pl.col("script")),
    )


def _queries(table: pa.Table) -> pl.DataFrame:
    columns = ["source", "origin", "task", "cluster", "positives", "given_negatives"]
    asked = _frame(table, columns).with_row_index("query").cast({"query": pl.Int64})
    return asked.with_columns(cluster=_codes(asked["cluster"]), public=pl.col("origin") == "public")


def _pool_key(language: pl.Expr, script: pl.Expr) -> pl.Expr:
    """The name of the pool, from the task and source of a row and a document's language."""
    task, blank = pl.col("task"), pl.lit("")
    tag = pl.concat_str(language.fill_null(blank), script.fill_null(blank), separator="_")
    key = pl.when(task == "bitext").then(tag).otherwise(pl.col("source"))
    return (
        pl.when(task == "retrieval").then(task).otherwise(pl.concat_str(task, key, separator="/"))
    )


def _references(asked: pl.DataFrame, docs: pl.DataFrame, column: str) -> pl.DataFrame:
    """(query, document) row pairs of a list of ids, in order."""
    pairs = (
        asked.select("query", doc_id=column)
        .filter(pl.col("doc_id").list.len() > 0)
        .explode("doc_id")
        .join(docs.select("doc_id", "document"), on="doc_id", how="left", maintain_order="left")
    )
    lost = pairs.filter(pl.col("document").is_null())
    if len(lost):
        raise RuntimeError(f"{len(lost)} {column} are not documents, such as {lost['doc_id'][0]}")
    if column == "positives" and pairs["query"].n_unique() < len(asked):
        bare = asked.filter(pl.col(column).list.len() == 0)["query"]
        raise RuntimeError(f"{len(bare)} queries have no positive, the first in row {bare[0]}")
    return pairs.select("query", "document")


def _pool_of_queries(asked: pl.DataFrame, docs: pl.DataFrame, positives: pl.DataFrame) -> pl.Series:
    first = positives.unique("query", keep="first", maintain_order=True)
    answer = first.join(
        docs.select("document", "language", "script"),
        on="document",
        how="left",
        maintain_order="left",
    )
    joined = asked.join(answer, on="query", how="left", maintain_order="left")
    return joined.select(pool=_pool_key(pl.col("language"), pl.col("script")))["pool"]


def _pools(
    asked: pl.DataFrame, docs: pl.DataFrame, references: pl.DataFrame
) -> tuple[pl.DataFrame, pl.Series]:
    """(pool, document, public) sorted, and the pool of each query.

    A document belongs to the pool of its own task and source, and to those of the queries that name
    it: a label text is one document, whichever sources share it.
    """
    named = references.join(asked.select("query", "pool", asker="public"), on="query").join(
        docs.select("document", "public"), on="document"
    )
    named = named.select("pool", "document", public=pl.col("public") & pl.col("asker"))
    both = pl.concat([docs.select("pool", "document", "public"), named])
    keys = pl.DataFrame({"pool": asked["pool"].unique().sort()}).with_row_index("code")
    codes = keys.cast({"code": pl.Int64})
    members = (
        both.join(codes, on="pool")
        .group_by(pool="code", document="document")
        .agg(pl.col("public").any())
        .sort("pool", "document")
    )
    of_queries = asked.join(codes, on="pool", how="left", maintain_order="left")["code"]
    return members, of_queries


def write_plan(folder: Folder, plan: Mapping[str, pa.Table]) -> None:
    """Write the tables for `Plan` to read."""
    for name, table in plan.items():
        write_shard(folder, name, 0, table, _SCHEMAS[name])


@dataclass(frozen=True, kw_only=True)
class QueryPlan:
    """Some queries: pool, whether public, cluster, positives and given negatives."""

    pool: np.ndarray
    public: np.ndarray
    cluster: np.ndarray
    positives: tuple[np.ndarray, np.ndarray]  # (query number, document row) pairs
    given: tuple[np.ndarray, np.ndarray]  # likewise


class Plan:
    """A written plan, as one worker reads it."""

    def __init__(self, folder: Folder):
        tables = {name: open_shard(folder, shard_name(name, 0)) for name in _SCHEMAS}
        self._queries = tables.pop("queries")
        columns = {
            (table, column): rows[column].to_numpy()
            for table, rows in tables.items()
            for column in rows.column_names
        }
        self._columns = columns
        self.cluster = columns["documents", "cluster"]

    def queries(self, start: int, count: int) -> QueryPlan:
        rows = self._queries.slice(start, count)
        return QueryPlan(
            pool=rows["pool"].to_numpy(),
            public=rows["public"].to_numpy(),
            cluster=rows["cluster"].to_numpy(),
            positives=_pairs(rows["positives"]),
            given=_pairs(rows["given"]),
        )

    def pool(self, pool: int, *, public: bool) -> np.ndarray:
        """Document rows of a pool, ascending."""
        low, high = np.searchsorted(self._columns["pools", "pool"], (pool, pool + 1))
        rows = self._columns["pools", "document"][low:high]
        return rows[self._columns["pools", "public"][low:high]] if public else rows

    def excluded(self, queries: QueryPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query number, document row, index into EXCLUSIONS): what each query must not meet."""
        asker, document = queries.positives
        own = np.stack([asker, self.cluster[document]])
        others = self._closure(queries)
        pairs = np.concatenate([own, others], axis=1)
        mark = np.repeat([1, 2], [own.shape[1], others.shape[1]])
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
