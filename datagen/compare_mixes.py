"""What changed between two mixes: rows by source, task and language, documents, and negatives.

Rows are the same when stage and query id are. A row of both has changed when its instruction, its
positives or its negatives did; documents are compared by id, since row numbers differ. Ids are
compared as numbers, one stage at a time: 40 bytes a row, and no text is read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.export import Mix
from datagen.mix_ids import id_numbers
from datagen.schema import MIX_ROW, STAGES

KEYS = ("stage", "source", "task", "language")


def diff_mixes(first: str, second: str) -> dict[str, Any]:
    """The differences of two mixes as JSON; UserError when one is not a mix.

    `rows`: for each stage, source, task and language the rows in the first and second, and those
    added, removed and changed. `negatives_kept`: the share of the first's negatives that the second
    has too, of the rows in both.
    """
    mixes = [Mix.open(first), Mix.open(second)]
    documents = [_document_ids(mix) for mix in mixes]
    frames, shares = [], {}
    for stage in STAGES:
        tables = [_stage(mix, stage, ids) for mix, ids in zip(mixes, documents, strict=True)]
        if not any(len(table) for table in tables):
            continue
        joined = _joined(*tables)
        both = joined.filter(pl.col("in_first") & pl.col("in_second"))
        shares[stage] = _kept(both)
        frames.append(_counted(joined, stage))
    known = [set(ids.tolist()) for ids in documents]
    return {
        "first": first,
        "second": second,
        "identical": mixes[0].manifest.digest == mixes[1].manifest.digest,
        "documents": {
            "first": len(known[0]), "second": len(known[1]),
            "added": len(known[1] - known[0]), "removed": len(known[0] - known[1]),
        },
        "negatives_kept": shares,
        "rows": pl.concat(frames).sort(KEYS).to_dicts(),
    }  # fmt: skip


def _document_ids(mix: Mix) -> np.ndarray:
    """The first half of each document's id, by row number: 64 bits tell documents apart."""
    parts = [mix.documents.open(n)["doc_id"] for n in range(len(mix.documents.names))]
    return np.concatenate([id_numbers(chunk)[:, 0] for part in parts for chunk in part.chunks])


def _stage(mix: Mix, stage: str, documents: np.ndarray) -> pl.DataFrame:
    """id, keys, instruction, and the documents by id, of every row of a stage."""
    if stage not in mix.stages:
        return _rows(MIX_ROW.empty_table(), documents)
    table = mix.stages[stage]
    return pl.concat([_rows(table.open(n), documents) for n in range(len(table.names))])


def _rows(table: pa.Table, documents: np.ndarray) -> pl.DataFrame:
    ids = [id_numbers(chunk) for chunk in table["query_id"].chunks]
    numbers = np.concatenate([np.empty((0, 2), np.uint64), *ids])
    frame = pl.DataFrame(table.select([*KEYS[1:], "instruction"]))
    named = {name: _named(table[name], documents) for name in ("positives", "negatives")}
    return frame.with_columns(id=numbers[:, 0], id_end=numbers[:, 1], **named)


def _named(column: pa.ChunkedArray, documents: np.ndarray) -> pl.Series:
    """Lists of row numbers as lists of ids."""
    lists = column.combine_chunks()
    ids = documents[lists.flatten().to_numpy()]
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pl.Series(pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)))


def _joined(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """Rows of both by id; what the second says of a row has `_right` behind its name."""
    on = ["id", "id_end"]
    first = first.with_columns(in_first=pl.lit(True))
    second = second.with_columns(in_second=pl.lit(True))
    joined = first.join(second, on=on, how="full", coalesce=True)
    columns = [pl.col("in_first").fill_null(False), pl.col("in_second").fill_null(False)]
    keys = [pl.coalesce(name, f"{name}_right").alias(name) for name in KEYS[1:]]
    said = ("instruction", "positives", "negatives")
    same = [pl.col(name).eq_missing(pl.col(f"{name}_right")) for name in said]
    return joined.with_columns(*columns, changed=~pl.all_horizontal(same)).with_columns(keys)


def _kept(both: pl.DataFrame) -> float | None:
    """Share of the first's negatives that are in the second, of rows in both."""
    shared = int(both["negatives"].list.set_intersection(both["negatives_right"]).list.len().sum())
    total = int(both["negatives"].list.len().sum())
    return round(shared / total, 6) if total else None


def _counted(joined: pl.DataFrame, stage: str) -> pl.DataFrame:
    one, two = pl.col("in_first"), pl.col("in_second")
    counts = {
        "first": one, "second": two, "added": ~one & two, "removed": one & ~two,
        "changed": one & two & pl.col("changed"),
    }  # fmt: skip
    sums = [flag.sum().cast(pl.Int64).alias(name) for name, flag in counts.items()]
    keys = list(KEYS[1:])
    return joined.group_by(keys).agg(sums).select(pl.lit(stage).alias("stage"), *keys, *counts)


def diff_table(found: dict[str, Any]) -> str:
    """The differences as plain text, only groups in which something differs."""
    columns = [*KEYS, "first", "second", "added", "removed", "changed"]
    differing = [r for r in found["rows"] if r["added"] or r["removed"] or r["changed"]]
    lines = _aligned([columns, *([_cell(row[c]) for c in columns] for row in differing)])
    documents = found["documents"]
    lines.append(
        f"documents: {documents['first']:,} and {documents['second']:,}, "
        f"{documents['added']:,} added, {documents['removed']:,} removed"
    )
    for stage, share in found["negatives_kept"].items():
        if share is not None:
            lines.append(f"{stage}: {share:.1%} of the negatives of rows in both are in both")
    if found["identical"]:
        lines.append("the two mixes are the same bytes")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
