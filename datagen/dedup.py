"""Split pairs into queries and documents, each text once, and drop pairs that say the same twice.

Dedup is pair-aware. Exact duplicates meet by id: a query with several positives becomes one row
with all of them. Near-duplicate texts get one cluster id per side (see `minhash`), and of two pairs
whose query clusters and document clusters are both equal, the better one stays. A pair whose text
appears elsewhere with another partner stays, so no positive is lost; and a near-duplicate of a
positive is recognised by its cluster wherever negatives are chosen.

Better is: public before synthetic, then the place of the source in `source_priority` (sources not
named there come last, alike), then the longer text, then the id; never the order of arrival.

Cost: 15,000 pairs a second and core; the driver holds ids and band hashes, some 500 bytes a pair.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.clusters import cluster_texts, read_frame
from datagen.keys import PAIR_KEYS, SCHEMAS, TEXT_KEYS, key_unit
from datagen.minhash import DEFAULT_BACKEND, check_options
from datagen.row_dedup import dedup_files as dedup_files
from datagen.schema import DOCUMENT, QUERY
from datagen.split import write_documents, write_old, write_queries
from datagen.steps import Context, LedgerRow, Step
from datagen.store import open_shard

SIMILARITY = 0.8
ROWS_PER_SHARD = 65_536
AS_NEGATIVE = 1 << 20  # added to the rank of a text that a source only gives as a negative
DUPLICATE = pa.schema(
    [
        pa.field("side", pa.string(), nullable=False),  # query or document
        pa.field("id", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),  # what stands for its cluster
        pa.field("similarity", pa.float32()),  # of their shingles; null: only others connect them
        pa.field("kind", pa.string(), nullable=False),  # exact: equal but for case and punctuation
    ]
)


def dedup(
    pairs: Step,
    *,
    against: Step | None = None,
    source_priority: Sequence[str] = (),
    similarity: float = SIMILARITY,
    backend: str = DEFAULT_BACKEND,
    rows_per_shard: int = ROWS_PER_SHARD,
    name: str = "dedup",
) -> Step:
    """Write `queries`, `documents` (public rows first, by id) and `duplicates` from pairs.

    With `against`, an earlier step's queries and documents come first, shard by shard as they are,
    and only what is new follows them. A pair that they have is dropped (exact_duplicate_of_old,
    near_duplicate_of_old). An old query asked again with new positives stays as it is; the new
    positives get a row of their own in the old query's cluster, with an id of the same text whose
    scope also names its origin. The ledger then counts the new pairs alone.
    """
    check_options(backend, similarity)
    config = {
        "source_priority": list(source_priority),
        "similarity": similarity,
        "backend": backend,
        "rows_per_shard": rows_per_shard,
    }
    return Step(
        name=name,
        version=4,
        config=config,
        inputs={"pairs": pairs} | ({"against": against} if against else {}),
        work=_work,
        summary="join equal queries and documents, drop duplicate pairs",
    )


def _work(context: Context) -> None:
    units, old = _units(context), _old_rows(context)
    context.map_units(units, key_unit, schemas=SCHEMAS, phase="keys")
    pairs = _ranked(read_frame(context, "pair_keys", PAIR_KEYS), context.config["source_priority"])
    columns = [name for name in TEXT_KEYS.names if not name.startswith("band_")]
    keys = read_frame(context, "text_keys", TEXT_KEYS, columns).with_row_index("at")
    keys = _ranked_texts(keys, pairs, old)
    texts = cluster_texts(context, keys, units, similarity=context.config["similarity"])
    old_pairs = _with_clusters(old["pairs"], texts)
    pairs = _decided(_with_clusters(pairs, texts), old_pairs)
    negatives = _given_negatives(pairs, old_pairs, texts)
    rows = context.config["rows_per_shard"]
    write_old(context)
    write_queries(context, units, pairs, negatives, old["query"], rows_per_shard=rows)
    write_documents(context, units, pairs, negatives, old["document"], rows_per_shard=rows)
    context.write("duplicates", _duplicates(texts), DUPLICATE, rows_per_shard=rows)
    context.ledger += _ledger(pairs)
    context.facts["overlap"] = _overlap(pairs)


def _units(context: Context) -> list[dict[str, Any]]:
    """The input shards: the pairs, then an earlier step's queries and documents."""
    units: list[dict[str, Any]] = []
    for name, folder in context.inputs.items():
        for table in ("pairs",) if name == "pairs" else ("queries", "documents"):
            for shard in context.input_shards(name, table):
                place = {"folder": folder.uri, "shard": shard, "table": table}
                units.append({**place, "index": len(units), "backend": context.config["backend"]})
    return units


def _old_rows(context: Context) -> dict[str, pl.DataFrame]:
    """Ids and clusters of the earlier step's rows, and its (query_id, doc_id) pairs."""
    queries = _old_table(context, "queries", ("query_id", "cluster", "positives"), QUERY)
    documents = _old_table(context, "documents", ("doc_id", "cluster"), DOCUMENT)
    return {
        "pairs": queries.select("query_id", doc_id="positives").explode("doc_id").drop_nulls(),
        "query": queries.select(id="query_id", known="cluster"),
        "document": documents.select(id="doc_id", known="cluster"),
    }


def _old_table(
    context: Context, table: str, columns: Sequence[str], schema: pa.Schema
) -> pl.DataFrame:
    parts = [schema.empty_table().select(columns)]
    if folder := context.inputs.get("against"):
        shards = context.input_shards("against", table)
        parts += [open_shard(folder, shard).select(columns) for shard in shards]
    frame = pl.from_arrow(pa.concat_tables(parts))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _ranked(pairs: pl.DataFrame, source_priority: Sequence[str]) -> pl.DataFrame:
    """The pairs, best first, with columns rank and order."""
    places = {source: place for place, source in enumerate(source_priority)}
    place = pl.col("source").replace_strict(places, default=len(places), return_dtype=pl.Int64)
    synthetic = (pl.col("origin") == "synthetic").cast(pl.Int64)
    ranked = pairs.with_columns((synthetic * (len(places) + 1) + place).alias("rank"))
    by = ["rank", -pl.col("size"), "query_id", "doc_id", "source", "content"]
    return ranked.sort(by).with_row_index("order")


def _ranked_texts(
    texts: pl.DataFrame, pairs: pl.DataFrame, old: dict[str, pl.DataFrame]
) -> pl.DataFrame:
    """Each text once, with the rank of the best pair that has it and its cluster if it is old."""
    uses = [
        pairs.select(side=pl.lit("query"), id="query_id", rank="rank"),
        pairs.select(side=pl.lit("document"), id="doc_id", rank="rank"),
        pairs.select(side=pl.lit("document"), id="negatives", rank=pl.col("rank") + AS_NEGATIVE)
        .explode("id")
        .drop_nulls(),
    ]
    known = [old[s].select(side=pl.lit(s), id="id", known="known") for s in ("query", "document")]
    rank = pl.concat(uses).group_by("side", "id").agg(pl.col("rank").min())
    once = texts.unique(["side", "id"], keep="first", maintain_order=True)
    once = once.join(rank, on=["side", "id"], how="left").join(
        pl.concat(known), on=["side", "id"], how="left"
    )
    return once.with_columns(
        pl.when(pl.col("known").is_null()).then("rank").otherwise(0).alias("rank")
    )


def _with_clusters(pairs: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    for side, key in (("query", "query_id"), ("document", "doc_id")):
        cluster = texts.filter(side=side).select(
            pl.col("id").alias(key), pl.col("cluster").alias(f"{side}_cluster")
        )
        pairs = pairs.join(cluster, on=key, how="left", maintain_order="left")
    return pairs


def _decided(pairs: pl.DataFrame, old: pl.DataFrame) -> pl.DataFrame:
    """The pairs with the reason why each is dropped, null for those that stay."""
    ids, clusters = ["query_id", "doc_id"], ["query_cluster", "document_cluster"]
    flagged = (
        pairs.join(old.select(ids).unique().with_columns(old_ids=True), on=ids, how="left")
        .join(
            old.select(clusters).unique().with_columns(old_clusters=True), on=clusters, how="left"
        )
        .sort("order")
        .with_columns(repeated=~pl.struct(ids).is_first_distinct())
    )
    is_old = pl.col("old_ids").fill_null(False) | pl.col("old_clusters").fill_null(False)
    alike = flagged.filter(~is_old & ~pl.col("repeated")).select(
        "order", alike=~pl.struct(clusters).is_first_distinct()
    )
    reason = (
        pl.when("old_ids").then(pl.lit("exact_duplicate_of_old"))
        .when("old_clusters").then(pl.lit("near_duplicate_of_old"))
        .when("repeated").then(pl.lit("exact_duplicate"))
        .when("alike").then(pl.lit("near_duplicate"))
    )  # fmt: skip
    flagged = flagged.join(alike, on="order", how="left").sort("order")
    return flagged.with_columns(reason=reason).drop("old_ids", "old_clusters", "repeated", "alike")


def _given_negatives(pairs: pl.DataFrame, old: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """What sources give as negatives of the queries that stay, in order: query_id, doc_id, place.

    Those of dropped pairs of a query count too (triplets repeat the pair for every negative). A
    positive of the query or of one like it, and what resembles such a positive, is no negative.
    """
    stay = pairs.filter(pl.col("reason").is_null()).select("query_id").unique()
    given = pairs.join(stay, on="query_id", how="semi").filter(pl.col("negatives").list.len() > 0)
    given = given.with_columns(
        part=pl.int_ranges(0, pl.col("negatives").list.len(), dtype=pl.Int32)
    )
    given = given.select(
        "order", "unit", "row", "query_id", "query_cluster", "part", doc_id="negatives"
    ).explode("part", "doc_id")
    clusters = texts.filter(side="document").select(doc_id="id", document_cluster="cluster")
    positives = ["query_cluster", "document_cluster"]
    known = pl.concat([pairs.select(positives), old.select(positives)]).unique()
    return (
        given.join(clusters, on="doc_id", how="left")
        .join(known, on=positives, how="anti")
        .sort("order", "part")
        .unique(["query_id", "doc_id"], keep="first", maintain_order=True)
    )


def _overlap(pairs: pl.DataFrame) -> dict[str, Any]:
    """For each side how many texts (near-duplicates as one) a source has, and two sources share."""
    found = {}
    for side in ("query", "document"):
        cluster = f"{side}_cluster"
        owned = pairs.select("source", cluster).unique()
        counts = owned.group_by("source").len().sort("source")
        common = owned.filter(pl.len().over(cluster) > 1)
        both = common.join(common, on=cluster).filter(pl.col("source") < pl.col("source_right"))
        both = both.group_by("source", "source_right").len().sort("source", "source_right")
        found[side] = {
            "clusters": dict(counts.iter_rows()),
            "shared": [list(row) for row in both.iter_rows()],
        }
    return found


def _duplicates(texts: pl.DataFrame) -> pa.Table:
    """The new texts that another text stands for."""
    kind = pl.when("exact").then(pl.lit("exact")).otherwise(pl.lit("near"))
    rows = texts.filter((pl.col("first") != pl.col("node")) & pl.col("known").is_null())
    rows = rows.select(
        "side", "id", pl.col("cluster").alias("duplicate_of"), "similarity", kind=kind
    )
    return rows.sort("side", "id").to_arrow(compat_level=pl.CompatLevel.oldest()).cast(DUPLICATE)


def _ledger(pairs: pl.DataFrame) -> list[LedgerRow]:
    counts = pairs.group_by("source", "reason").len()
    rows = []
    for (source,), part in counts.group_by("source"):
        by_reason = dict(part.select("reason", "len").iter_rows())
        kept = by_reason.pop(None, 0)
        total = kept + sum(by_reason.values())
        rows.append(LedgerRow(source=str(source), rows_in=total, kept=kept, dropped=by_reason))
    return rows
