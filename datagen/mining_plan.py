"""The plan of a mining: joins on ids, made once, that say who competes and what is excluded.

See datagen.candidates, which reads it. Everything is row numbers: 60 bytes a document, and what the
lists of positives hold.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from datagen.candidates import PLAN, UNKNOWN
from datagen.schema import SYMMETRIC_TASKS, document_id
from datagen.store import Folder, write_shard


def make_plan(queries: pa.Table, documents: pa.Table) -> dict[str, pa.Table]:
    """Tables of row numbers for `Plan`, from tables of schema.QUERY and schema.DOCUMENT."""
    docs = _documents(documents)
    asked = _queries(queries)
    positives = _references(asked, docs, "positives")
    given = _references(asked, docs, "given_negatives")
    asked, docs = _with_languages(_with_answers(asked, docs, positives), docs)
    docs = docs.with_columns(cluster=_classes(asked, docs, positives))
    members, asked_pools = _pools(asked, docs, pl.concat([positives, given]))
    closure = (
        positives.join(asked.select("query", "cluster", "public"), on="query")
        .join(docs.select("document", document_cluster="cluster"), on="document")
        .group_by(query_cluster="cluster", cluster="document_cluster")
        .agg(pl.col("public").any())
        .sort("query_cluster", "cluster")
    )
    lists = {"positives": positives, "given": given}
    plan = asked.select(
        *("query", "public", "cluster", "language", "answer_language", "own_text"),
        pool=asked_pools,
    )
    for name, references in lists.items():
        grouped = references.group_by("query", maintain_order=True).agg(
            pl.col("document").alias(name)
        )
        plan = plan.join(grouped, on="query", how="left", maintain_order="left")
        plan = plan.with_columns(pl.col(name).fill_null([]))
    frames = {
        "documents": docs.select("cluster", "language", "public"),
        "members": docs.select("cluster", "document").sort("cluster", "document"),
        "pools": members,
        "closure": closure,
        "queries": plan,
    }
    return {name: _arrow(frame, PLAN[name]) for name, frame in frames.items()}


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
    columns = ["source", "origin", "task", "language", "script", "cluster"]
    columns += ["positives", "given_negatives"]
    asked = _frame(table, columns).with_row_index("query").cast({"query": pl.Int64})
    return asked.with_columns(
        cluster=_codes(asked["cluster"]),
        public=pl.col("origin") == "public",
        own_id=pl.Series(_own_ids(table), dtype=pl.String),
    )


def _own_ids(queries: pa.Table) -> list[str | None]:
    """The id that the text of a query has as a document, in symmetric tasks."""
    rows = zip(queries["task"].to_pylist(), queries["query"].to_pylist(), strict=True)
    return [document_id(None, text) if task in SYMMETRIC_TASKS else None for task, text in rows]


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


def _with_answers(asked: pl.DataFrame, docs: pl.DataFrame, positives: pl.DataFrame) -> pl.DataFrame:
    """Queries with their pool, the language of their first positive and their own text's row."""
    first = positives.unique("query", keep="first", maintain_order=True)
    answer = first.join(docs, on="document", how="left", maintain_order="left")
    answer = answer.select("query", answer_language="language", answer_script="script")
    joined = asked.join(answer, on="query", how="left", maintain_order="left")
    joined = joined.with_columns(pool=_pool_key(pl.col("answer_language"), pl.col("answer_script")))
    rows = docs.select("doc_id", own_text="document")
    joined = joined.join(
        rows, left_on="own_id", right_on="doc_id", how="left", maintain_order="left"
    )
    return joined.with_columns(pl.col("own_text").fill_null(UNKNOWN))


def _with_languages(asked: pl.DataFrame, docs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Languages with their scripts as numbers; where none is known the number is its own."""
    of_docs = docs.select(_tag("language", "script"))["tag"]
    of_queries = asked.select(_tag("language", "script"))["tag"]
    of_answers = asked.select(_tag("answer_language", "answer_script"))["tag"]
    codes = _codes(pl.concat([of_docs, of_queries, of_answers]))
    ends = np.cumsum([len(of_docs), len(of_queries)])
    first, second, third = codes[: ends[0]], codes[ends[0] : ends[1]], codes[ends[1] :]
    asked = asked.with_columns(language=second, answer_language=third)
    return asked, docs.with_columns(language=first)


def _tag(language: str, script: str) -> pl.Expr:
    blank = pl.lit("")
    return pl.concat_str(
        pl.col(language).fill_null(blank), pl.col(script).fill_null(blank), separator="_"
    ).alias("tag")


def _classes(asked: pl.DataFrame, docs: pl.DataFrame, positives: pl.DataFrame) -> pl.Series:
    """Clusters of the documents, those of one class of a clustering task put together.

    A synthetic query connects synthetic documents only.
    """
    asked = asked.filter(pl.col("task") == "clustering")
    edges = positives.join(asked.select("query", "own_text", "public"), on="query")
    edges = edges.with_columns(first=pl.col("document").min().over("query"))
    pairs = pl.concat(
        edges.select("public", left="document", right=end) for end in ("first", "own_text")
    )
    pairs = pairs.filter(pl.col("right") != UNKNOWN)
    cluster, public = docs["cluster"].to_numpy(), docs["public"].to_numpy()
    left, right = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    joins = pairs["public"].to_numpy() | ~(public[left] | public[right])
    left, right = cluster[left[joins]], cluster[right[joins]]
    size = int(cluster.max(initial=-1)) + 1
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    return pl.Series(labels[cluster].astype(np.int64))


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
        write_shard(folder, name, 0, table, PLAN[name])
