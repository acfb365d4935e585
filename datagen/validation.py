"""Validate whole tables of pairs: `schema.pair_problem` for the few rows that may have one.

A look at whole columns finds every row that could be refused (a superset); the row-wise check then
decides and words the error, so both ways of reading say the same. Some million rows/s.
"""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.schema import (
    MAX_DOCUMENT_CHARACTERS,
    MAX_QUERY_CHARACTERS,
    TASKS,
    pair_problem,
    rejected_row,
)

# Python takes four separators (U+001C to U+001F) for blanks, too.
_NOT_BLANK = r"[^\s\x1c-\x1f]"


def split_valid(pairs: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The pairs that can be used, and a QUARANTINE row for each of the others."""
    suspects = np.flatnonzero(_suspects(pairs))
    if not len(suspects):
        return pairs, []
    kept = np.ones(pairs.num_rows, bool)
    rejected = []
    for i, pair in zip(suspects, pairs.take(pa.array(suspects)).to_pylist(), strict=True):
        problem = pair_problem(pair)
        if problem is not None:
            kept[i] = False
            rejected.append(rejected_row(pair, reason=problem[0], error=problem[1]))
    return pairs.filter(pa.array(kept)), rejected


def _suspects(pairs: pa.Table) -> np.ndarray:
    frame = pl.DataFrame({name: pl.from_arrow(pairs[name]) for name in ("query", "text", "task")})
    usable = pl.col("task").is_in(TASKS)
    for field, limit in (("query", MAX_QUERY_CHARACTERS), ("text", MAX_DOCUMENT_CHARACTERS)):
        column = pl.col(field)
        usable &= (column.str.len_bytes() <= limit) & column.str.contains(_NOT_BLANK)
    return ~frame.select(usable.fill_null(False).alias("usable"))["usable"].to_numpy()
