"""Clusters of near-duplicate texts, from the keys that the shards left.

Texts are put in order of preference (an earlier step's first, then by rank of their best source,
longer first, id), equal forms fall together, and band hashes propose candidate pairs. Only the
texts of candidates are read again, in parallel, to verify them; the clusters come from the verified
pairs in one pass. In memory at once: ids and band hashes, some 200 bytes a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.fold import fold
from datagen.minhash import candidate_pairs, leaders, verified
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
CANDIDATES_PER_UNIT = 65_536


def cluster_texts(
    context: Context,
    texts: pl.DataFrame,
    units: Sequence[Mapping[str, Any]],
    *,
    similarity: float,
) -> pl.DataFrame:
    """The texts, best first, with columns cluster (id), similarity to its leader and exact.

    `texts` has the columns of TEXT_KEYS, one row per (side, id), `rank`, and `known`: the cluster
    that an earlier step gave the text, which stays, or null.
    """
    old = pl.col("known").is_null()
    nodes = texts.sort("side", old, "rank", -pl.col("size"), "id").with_row_index("node")
    nodes = nodes.with_columns(pl.col("node").first().over("form").cast(pl.Int64).alias("same"))
    edges = _similar(context, nodes, units, similarity=similarity)
    pairs = edges.select("first", "second").to_numpy()
    leader = leaders(len(nodes), pairs)[nodes["same"].to_numpy()]
    nodes = nodes.with_columns(pl.Series("leader", leader))
    scores = edges.select(
        pl.col("first").alias("leader"), pl.col("second").alias("same"), "similarity"
    )
    own = pl.coalesce("known", "id")
    cluster = pl.when(pl.col("known").is_null()).then(own.gather("leader")).otherwise("known")
    nodes = nodes.with_columns(cluster.alias("cluster"))
    nodes = nodes.join(scores, on=["leader", "same"], how="left", maintain_order="left")
    return nodes.with_columns(
        pl.col("similarity").fill_null(1.0), (pl.col("same") == pl.col("leader")).alias("exact")
    )


def _similar(
    context: Context,
    nodes: pl.DataFrame,
    units: Sequence[Mapping[str, Any]],
    *,
    similarity: float,
) -> pl.DataFrame:
    """Verified pairs of node numbers, the preferred one first, in columns of SIMILAR."""
    long = nodes.filter((pl.col("same") == pl.col("node")) & pl.col("bands").is_not_null())
    pairs = candidate_pairs(long["bands"].to_numpy())
    is_new = long["known"].is_null().to_numpy()
    pairs = pairs[is_new[pairs[:, 1]]]  # an earlier step has settled what is old on both sides
    place = [field.name for field in PLACE]
    first, second = (long[pairs[:, k]] for k in (0, 1))
    candidates = pa.table(
        [
            first["side"]
            .cast(pl.String)
            .to_arrow(compat_level=pl.CompatLevel.oldest())
            .cast(pa.string()),
            pa.array(first["node"].to_numpy().astype(np.int64)),
            pa.array(second["node"].to_numpy().astype(np.int64)),
            *(pa.array(side[name].to_numpy()) for side in (first, second) for name in place),
        ],
        schema=CANDIDATE,
    )
    context.write("candidates", candidates, CANDIDATE, rows_per_shard=CANDIDATES_PER_UNIT)
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


def read_frame(context: Context, table: str, schema: pa.Schema) -> pl.DataFrame:
    """A table that this step has written so far."""
    names = [shard.name for shard in context.shards if shard.table == table]
    parts = [open_shard(context.folder, name) for name in names] or [schema.empty_table()]
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
    kept, scores = verified(fold(texts), pairs, similarity=similarity)
    columns = [position[kept[:, 0]], position[kept[:, 1]], scores.astype(np.float32)]
    return pa.table(columns, schema=SIMILAR)
