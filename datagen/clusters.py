"""Clusters of near-duplicate texts, from the keys that the shards left.

Texts are put in order of preference (an earlier step's first, then by rank of their best source,
longer first, id) and numbered; equal forms fall together. Every band is a task of its own, on any
worker, that reads its column of hashes and proposes pairs of numbers. The pairs are gathered once;
texts of proposed pairs are read again, in parallel, to verify them; what is left connects texts to
clusters, in one pass. In memory of the driver: ids and form hashes, some 150 bytes a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.minhash import BANDS, band_pairs, components, unique_pairs, verified
from datagen.steps import Context, UnitResult
from datagen.store import Folder, open_shard
from datagen.texts import PLACE, joined, take_documents, take_rows

CANDIDATE = pa.schema(
    [
        pa.field("side", pa.string(), nullable=False),
        pa.field("first", pa.int64(), nullable=False),
        pa.field("second", pa.int64(), nullable=False),
        *(f.with_name(f"first_{f.name}") for f in PLACE),
        *(f.with_name(f"second_{f.name}") for f in PLACE),
    ]
)
SIMILAR = pa.schema(
    [
        pa.field("first", pa.int64(), nullable=False),
        pa.field("second", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
NUMBER = pa.schema(
    [
        pa.field("node", pa.int64(), nullable=False),  # NO_NODE where another row stands for it
        pa.field("known", pa.bool_(), nullable=False),  # of an earlier step
    ]
)
PROPOSED = pa.schema(
    [pa.field("first", pa.int64(), nullable=False), pa.field("second", pa.int64(), nullable=False)]
)
NO_NODE = -1
CANDIDATES_PER_UNIT = 65_536
NUMBERS_PER_SHARD = 1 << 22


def cluster_texts(
    context: Context,
    texts: pl.DataFrame,
    units: Sequence[Mapping[str, Any]],
    *,
    similarity: float,
) -> pl.DataFrame:
    """The texts, best first, with columns first (node number), cluster (id), similarity and exact.

    `texts` has one row per (side, id): the columns of TEXT_KEYS but the bands, `at` (its place in
    that table), `rank`, and `known`: the cluster that an earlier step gave the text, which stays,
    or null. Similarity is to the text that leads the cluster, null where only others connect them.
    """
    new = pl.col("known").is_null()
    nodes = texts.sort("side", new, "rank", -pl.col("size"), "id").with_row_index("node")
    nodes = nodes.with_columns(
        pl.col("node").cast(pl.Int64), same=pl.col("node").first().over("form").cast(pl.Int64)
    )
    pairs = _proposed(context, nodes)
    edges = _similar(context, nodes, pairs, units, similarity=similarity)
    first = components(len(nodes), edges.select("first", "second").to_numpy())
    nodes = nodes.with_columns(pl.Series("first", first).gather(nodes["same"]))
    scores = edges.select("first", pl.col("second").alias("same"), "similarity")
    own = pl.coalesce("known", "id")
    cluster = pl.when(new).then(own.gather("first")).otherwise("known")
    nodes = nodes.with_columns(cluster.alias("cluster"), exact=pl.col("same") == pl.col("first"))
    nodes = nodes.join(scores, on=["first", "same"], how="left", maintain_order="left")
    return nodes.with_columns(
        pl.when("exact").then(1.0).otherwise("similarity").alias("similarity")
    )


def _proposed(context: Context, nodes: pl.DataFrame) -> np.ndarray:
    """Pairs [n, 2] of node numbers that share a band, the preferred one first."""
    keys = [shard.name for shard in context.shards if shard.table == "text_keys"]
    count = sum(shard.rows for shard in context.shards if shard.table == "text_keys")
    number, known = np.full(count, NO_NODE, np.int64), np.zeros(count, bool)
    heads = nodes.filter(pl.col("same") == pl.col("node"))
    number[heads["at"].to_numpy()] = heads["node"].to_numpy()
    known[heads["at"].to_numpy()] = heads["known"].is_not_null().to_numpy()
    numbers = pa.table([pa.array(number), pa.array(known)], schema=NUMBER)
    context.write("numbers", numbers, NUMBER, rows_per_shard=NUMBERS_PER_SHARD)
    written = [shard.name for shard in context.shards if shard.table == "numbers"]
    shared = {"folder": context.folder.uri, "keys": keys, "numbers": written}
    bands = [{**shared, "band": band} for band in range(BANDS if written else 0)]
    context.map_units(bands, propose_unit, schemas={"proposed": PROPOSED}, phase="bands")
    pairs = read_frame(context, "proposed", PROPOSED).to_numpy()
    return unique_pairs(pairs, len(nodes))


def propose_unit(unit: Mapping[str, Any]) -> UnitResult:
    """Pairs of nodes with equal hashes in one band; an earlier step has settled what is old."""
    folder = Folder(unit["folder"])
    numbers = pa.concat_tables([open_shard(folder, name) for name in unit["numbers"]])
    columns = [f"band_{(unit['band'] + k) % BANDS:02}" for k in range(2)]
    hashes = pa.concat_tables([open_shard(folder, n).select(columns) for n in unit["keys"]])
    node, known = (numbers[name].to_numpy() for name in ("node", "known"))
    rows = np.flatnonzero((node != NO_NODE) & hashes[columns[0]].is_valid().to_numpy())
    rows = rows[np.argsort(node[rows])]
    column, beside = (hashes[n].fill_null(0).to_numpy()[rows] for n in columns)
    pairs = rows[band_pairs(column, beside)]
    pairs = node[pairs[~known[pairs].all(axis=1)]]
    return UnitResult(tables={"proposed": pa.table([*np.unique(pairs, axis=0).T], PROPOSED)})


def _similar(
    context: Context,
    nodes: pl.DataFrame,
    pairs: np.ndarray,
    units: Sequence[Mapping[str, Any]],
    *,
    similarity: float,
) -> pl.DataFrame:
    """Verified ones of the pairs of node numbers, in columns of SIMILAR."""
    place = [field.name for field in PLACE]
    order = np.argsort(components(len(nodes), pairs)[pairs[:, 0]], kind="stable")
    first, second = (nodes[pairs[order, k]] for k in (0, 1))  # what is connected lies together
    columns = {"side": first["side"], "first": first["node"], "second": second["node"]}
    for end, side in (("first", first), ("second", second)):
        columns |= {f"{end}_{name}": side[name] for name in place}
    candidates = pl.DataFrame(columns).to_arrow(compat_level=pl.CompatLevel.oldest())
    table = candidates.select(CANDIDATE.names).cast(CANDIDATE)
    context.write("candidates", table, CANDIDATE, rows_per_shard=CANDIDATES_PER_UNIT)
    work = [
        {
            "folder": context.folder.uri,
            "shard": s.name,
            "units": list(units),
            "similarity": similarity,
        }
        for s in context.shards
        if s.table == "candidates"
    ]
    context.map_units(work, verify_unit, schemas={"similar": SIMILAR}, phase="verify")
    return read_frame(context, "similar", SIMILAR)


def read_frame(
    context: Context, table: str, schema: pa.Schema, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """A table that this step has written so far, or some of its columns."""
    names = [shard.name for shard in context.shards if shard.table == table]
    parts = [open_shard(context.folder, name) for name in names] or [schema.empty_table()]
    parts = [part.select(columns or schema.names) for part in parts]
    frame = pl.from_arrow(pa.concat_tables(parts))
    assert isinstance(frame, pl.DataFrame)
    return frame


def verify_unit(unit: Mapping[str, Any]) -> UnitResult:
    """The near-duplicates among one shard of candidates."""
    frame = pl.from_arrow(open_shard(Folder(unit["folder"]), unit["shard"]))
    assert isinstance(frame, pl.DataFrame)
    found = [
        _verify(part, side[0], unit["units"], similarity=unit["similarity"])
        for side, part in frame.group_by("side", maintain_order=True)
    ]
    return UnitResult(tables={"similar": pa.concat_tables(found)})


def _verify(
    candidates: pl.DataFrame, side: Any, units: Sequence[Mapping[str, Any]], *, similarity: float
) -> pa.Table:
    from datagen.fold_kernel import fold_texts

    place = [field.name for field in PLACE]
    ends = [
        candidates.select(
            pl.col(end).alias("node"), *(pl.col(f"{end}_{p}").alias(p) for p in place)
        )
        for end in ("first", "second")
    ]
    nodes = pl.concat(ends).unique("node").sort("node")
    if side == "query":
        texts = pl.Series("text", take_rows(units, nodes, ["query"])["query"])
    else:
        texts = joined(take_documents(units, nodes))
    position = nodes["node"].to_numpy()
    pairs = np.searchsorted(position, candidates.select("first", "second").to_numpy())
    kept, scores = verified(fold_texts(texts), pairs, similarity=similarity)
    columns = [position[kept[:, 0]], position[kept[:, 1]], scores.astype(np.float32)]
    return pa.table(columns, schema=SIMILAR)
