"""Write what dedup decided: the queries with their positives, and the documents, each text once.

Public rows come before synthetic ones, in shards of their own, each part sorted by id; an earlier
step's shards come before both, unchanged. What is added later therefore changes no public shard.
Texts are read shard by shard of the output, so memory holds one output shard at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.schema import DOCUMENT, ORIGINS, QUERY, join_language, query_id, query_scope
from datagen.steps import Context
from datagen.store import open_shard, read_manifest
from datagen.texts import OWN, take_documents, take_rows

Units = Sequence[Mapping[str, Any]]


def write_old(context: Context) -> None:
    """The shards of the earlier step, as they are."""
    if folder := context.inputs.get("against"):
        manifest = read_manifest(folder)
        for table, schema in (("queries", QUERY), ("documents", DOCUMENT)):
            for shard in manifest.table(table):
                rows = open_shard(folder, shard.name)
                context.write(table, rows, schema, rows_per_shard=max(rows.num_rows, 1))


def write_queries(
    context: Context,
    units: Units,
    pairs: pl.DataFrame,
    negatives: pl.DataFrame,
    old: pl.DataFrame,
    *,
    rows_per_shard: int,
) -> None:
    """One row a query that has pairs left, described by its best pair."""
    kept = pairs.filter(pl.col("reason").is_null())
    positives = kept.group_by("query_id").agg(positives=pl.col("doc_id").sort())
    given = negatives.group_by("query_id", maintain_order=True).agg(given_negatives="doc_id")
    rows = kept.unique("query_id", keep="first", maintain_order=True).drop("negatives")
    # Whoever stands first in a cluster names it: the order of the pairs has to last.
    rows = rows.join(positives, on="query_id", maintain_order="left")
    rows = rows.join(given, on="query_id", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("given_negatives").fill_null([]))
    rows = _renamed(_led(rows, "query_id", "query_cluster", old), units, set(old["id"]))

    def build(part: pl.DataFrame) -> pa.Table:
        columns = [f.name for f in QUERY if f.name in _FROM_PAIR] + [
            "query_language",
            "query_script",
        ]
        raw = take_rows(units, part, columns)
        made = {name: raw[name] for name in _FROM_PAIR}
        made |= {"language": raw["query_language"], "script": raw["query_script"]}
        made["cluster"] = _arrow(part["query_cluster"])
        made |= {name: _arrow(part[name]) for name in ("query_id", "positives", "given_negatives")}
        return _table(made, QUERY)

    _write(context, "queries", QUERY, rows, "query_id", build, rows_per_shard=rows_per_shard)


_FROM_PAIR = ("source", "task", "origin", "instruction", "query", "licence", "provenance")


def _led(rows: pl.DataFrame, key: str, cluster: str, old: pl.DataFrame) -> pl.DataFrame:
    """Clusters named after a row that is there: their leader, or the best row where it has gone."""
    there = pl.concat([rows[key], old["known"]]).implode()
    led = pl.when(pl.col(cluster).is_in(there)).then(cluster)
    return rows.with_columns(led.otherwise(pl.col(key).first().over(cluster)).alias(cluster))


def _renamed(rows: pl.DataFrame, units: Units, taken: set[str]) -> pl.DataFrame:
    """New ids for the queries whose id an earlier step has given to its own row."""
    known = rows.filter(pl.col("query_id").is_in(list(taken)))
    if known.is_empty():
        return rows
    columns = ["task", "source", "query", "origin", "document_language", "document_script"]
    new = {}
    for old_id, pair in zip(
        known["query_id"], take_rows(units, known, columns).to_pylist(), strict=True
    ):
        language = join_language(pair["document_language"], pair["document_script"])
        scope = query_scope(pair["task"], pair["source"], language)
        new[old_id] = _free_id(pair["task"], pair["query"], f"{scope}\x1f{pair['origin']}", taken)
    return rows.with_columns(pl.col("query_id").replace(new))


def _free_id(task: str, query: str, scope: str, taken: set[str]) -> str:
    made = query_id(task, query, scope)
    return made if made not in taken else _free_id(task, query, f"{scope}+", taken)


def write_documents(
    context: Context,
    units: Units,
    pairs: pl.DataFrame,
    negatives: pl.DataFrame,
    old: pl.DataFrame,
    *,
    rows_per_shard: int,
) -> None:
    """One row a document that a query names, described by its best pair: as a positive, if any."""
    place = ["doc_id", "unit", "row", "part", "origin", "document_cluster"]
    origins = pairs.select("unit", "row", "origin")
    positive = pairs.filter(pl.col("reason").is_null()).with_columns(part=pl.lit(OWN, pl.Int32))
    negative = negatives.join(origins, on=["unit", "row"]).sort("order", "part")
    rows = pl.concat([positive.select(place), negative.select(place)])
    rows = rows.unique("doc_id", keep="first", maintain_order=True)
    rows = rows.join(old.select(doc_id="id"), on="doc_id", how="anti", maintain_order="left")
    rows = _led(rows, "doc_id", "document_cluster", old)

    def build(part: pl.DataFrame) -> pa.Table:
        columns = ["source", "origin", "task", "document_language", "document_script"]
        raw = pl.from_arrow(take_rows(units, part, columns))
        assert isinstance(raw, pl.DataFrame)
        own = part["part"] == OWN  # what the language of a negative is, no source says
        made = {name: _arrow(raw[name]) for name in ("source", "origin", "task")}
        for name in ("language", "script"):
            column = raw[f"document_{name}"]
            made[name] = _arrow(column.zip_with(own, pl.Series([None], dtype=pl.String)))
        made |= {"doc_id": _arrow(part["doc_id"]), "cluster": _arrow(part["document_cluster"])}
        texts = take_documents(units, part)
        return _table(made | {"title": texts["title"], "text": texts["text"]}, DOCUMENT)

    _write(context, "documents", DOCUMENT, rows, "doc_id", build, rows_per_shard=rows_per_shard)


def _write(
    context: Context,
    table: str,
    schema: pa.Schema,
    rows: pl.DataFrame,
    key: str,
    build: Callable[[pl.DataFrame], pa.Table],
    *,
    rows_per_shard: int,
) -> None:
    for origin in ORIGINS:
        part = rows.filter(origin=origin).sort(key)
        for shard in part.iter_slices(rows_per_shard):
            context.write(table, build(shard), schema, rows_per_shard=rows_per_shard)


def _arrow(column: pl.Series) -> pa.Array:
    return column.to_arrow(compat_level=pl.CompatLevel.oldest())


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table([columns[f.name] for f in schema], names=schema.names).cast(schema)
