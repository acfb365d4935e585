"""Remove duplicate rows from plain files: the command `datagen dedup`.

Of texts that are equal (white space and Unicode form aside: exact) or near-duplicates (see
`minhash`), directly or through others, the first row stays. The rows are in memory once, and beside
them some 250 bytes a text: forms are folded piece by piece and again for what bands propose.
"""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.duplicates import find_duplicates, load_kernels
from datagen.minhash import DEFAULT_BACKEND, check_options
from datagen.schema import QUARANTINE, UserError, rejected_row
from datagen.sources.files import read_rows
from datagen.store import Folder, arrow_array, write_parquet


def dedup_files(
    inputs: Sequence[str],
    output: str,
    *,
    text_column: str = "text",
    similarity: float = 0.8,
    backend: str = DEFAULT_BACKEND,
) -> dict[str, Any]:
    """Write kept.parquet, removed.parquet and, where rows had no text, quarantine.parquet.

    removed has `id` (if the input has one), `row` (position among the readable rows of all inputs),
    `duplicate_of` (id, else row, of the row that stays), `duplicate_of_row`, `similarity` (Jaccard
    of the shingles of both; 1.0 when equal, below the threshold where rows between connect them)
    and `kind` (exact or near). Returns the counts.
    """
    check_options(backend, similarity)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(load_kernels)  # half a second, while the disk and Arrow are busy
        rows, rejected = read_rows(inputs)
        _give_back()
        texts = text_values(rows, text_column)
        usable = texts.str.contains(r"\S").fill_null(False).to_numpy()
    rejected += rejected_texts(rows, np.flatnonzero(~usable), text_column, source=inputs[0])
    positions = np.flatnonzero(usable)
    texts = texts if usable.all() else texts.gather(positions)
    first, scores, exact = find_duplicates(texts, similarity=similarity, backend=backend)
    _give_back()
    stays = first == np.arange(len(first))
    removed = _removed(rows, positions, first, scores, exact)
    folder, keep = Folder(output), np.zeros(rows.num_rows, dtype=bool)
    keep[positions[stays]] = True
    write_parquet(folder, "kept.parquet", rows, keep=keep)
    write_parquet(folder, "removed.parquet", removed)
    write_quarantine(folder, rejected)
    return {
        "rows": rows.num_rows + len(rejected) - int((~usable).sum()),
        "kept": int(stays.sum()),
        "removed": removed.num_rows,
        "exact": int(exact[~stays].sum()),
        "near": int((~exact[~stays]).sum()),
        "quarantined": len(rejected),
    }


def _give_back() -> None:
    """Return free memory to the system: what decoding took, what threads that ended have kept."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _removed(
    rows: pa.Table, positions: np.ndarray, first: np.ndarray, scores: np.ndarray, exact: np.ndarray
) -> pa.Table:
    gone = np.flatnonzero(first != np.arange(len(first)))
    row, of_row = arrow_array(positions[gone]), arrow_array(positions[first[gone]])
    has_ids = "id" in rows.schema.names
    columns: dict[str, Any] = {"id": rows["id"].take(row)} if has_ids else {}
    columns["row"] = row
    columns["duplicate_of"] = rows["id"].take(of_row) if has_ids else of_row
    columns["duplicate_of_row"] = of_row
    columns["similarity"] = arrow_array(scores[gone])
    kind = pl.when(pl.Series(exact[gone])).then(pl.lit("exact")).otherwise(pl.lit("near"))
    words = pl.select(kind).to_series().to_arrow(compat_level=pl.CompatLevel.oldest())
    columns["kind"] = words.cast(pa.string())  # pyarrow imports pandas for words of its own
    return pa.table(columns)


def text_values(rows: pa.Table, column: str) -> pl.Series:
    """A column of the rows as text; UserError (exit status 2) when there is none."""
    fields = {field.name: str(field.type) for field in rows.schema}
    if fields.get(column) not in ("string", "large_string", "string_view", "null"):
        raise UserError(
            found=f"column {column!r}: {fields.get(column, 'absent')}",
            expected="a column of text; the columns are "
            + ", ".join(f"{name} ({kind})" for name, kind in fields.items()),
            do="name the column that holds the text",
            exit_status=2,
        )
    return pl.Series(column, rows[column].cast(pa.large_string()))


def rejected_texts(
    rows: pa.Table, positions: np.ndarray, column: str, *, source: str
) -> list[dict[str, Any]]:
    """QUARANTINE rows for rows whose text is null or blank."""
    if not len(positions):
        return []
    mask = np.zeros(rows.num_rows, bool)
    mask[positions] = True
    found = rows.filter(arrow_array(mask))  # take copies all rows into one chunk first
    rejected = []
    for position, row in zip(np.flatnonzero(mask).tolist(), found.to_pylist(), strict=True):
        reason = f"{column}_not_text" if row[column] is None else f"{column}_empty"
        record = {"provenance": {"row": str(position)}, "source": source, "columns": row}
        error = f"{column} is {'null' if row[column] is None else 'blank'}"
        rejected.append(rejected_row(record, reason=reason, error=error))
    return rejected


def write_quarantine(folder: Folder, rejected: Sequence[dict[str, Any]]) -> None:
    """Write quarantine.parquet, or see to it that none of an earlier run is left."""
    if rejected:
        write_parquet(folder, "quarantine.parquet", pa.Table.from_pylist(rejected, QUARANTINE))
    else:
        folder.delete("quarantine.parquet")
