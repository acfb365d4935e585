"""Remove duplicate rows from plain files: the command `datagen dedup`.

The first row of a text stays; later ones go when their text is equal (white space and Unicode form
aside: exact) or a near-duplicate of a row that stays (see `minhash`). Every removed row resembles
the very row that it names, not just another removed one. All texts are in memory at once.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.fold import fold_plain, form_keys, plain
from datagen.minhash import (
    BANDS,
    candidate_pairs,
    check_options,
    leaders,
    text_bands,
    verified,
)
from datagen.schema import QUARANTINE, UserError, rejected_row
from datagen.sources.files import read_rows
from datagen.store import Folder

PIECE = 1 << 14  # texts that a thread works on at once: bounds what is in memory beside the texts


def dedup_files(
    inputs: Sequence[str],
    output: str,
    *,
    text_column: str = "text",
    similarity: float = 0.8,
    backend: str = "rensa",
) -> dict[str, Any]:
    """Write kept.parquet, removed.parquet and, where rows had no text, quarantine.parquet.

    removed has `id` (if the input has one), `row` (position among the readable rows of all inputs),
    `duplicate_of` (id, else row, of the row that stays), `duplicate_of_row`, `similarity` (Jaccard
    of the shingles; 1.0 when equal) and `kind` (exact or near). Returns the counts.
    """
    check_options(backend, similarity)
    rows, rejected = read_rows(inputs)
    texts = text_values(rows, text_column)
    usable = (texts.is_not_null() & (texts.str.strip_chars() != "")).to_numpy()
    rejected += rejected_texts(rows, np.flatnonzero(~usable), text_column, source=inputs[0])
    positions = np.flatnonzero(usable)
    leader, scores, exact = find_duplicates(
        texts.gather(positions), similarity=similarity, backend=backend
    )
    stays = leader == np.arange(len(leader))
    removed = _removed(rows, positions, leader, scores, exact)
    folder = Folder(output)
    write_parquet(folder, "kept.parquet", rows.take(pa.array(positions[stays])))
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


def find_duplicates(
    texts: pl.Series, *, similarity: float, backend: str = "rensa"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text the position of the one that stays for it, their Jaccard, and whether equal."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        same = _concat(pool.map(_plain, _pieces(texts)))
        first = _first(same)
        distinct = np.flatnonzero(first == np.arange(len(first)))
        folded = _concat(pool.map(fold_plain, _pieces(same.gather(distinct))))
        forms = _first(form_keys(folded))
        heads = np.flatnonzero(forms == np.arange(len(forms)))
        parts = pool.map(partial(text_bands, backend=backend), _pieces(folded.gather(heads)))
        banded = [(heads[where + i * PIECE], bands) for i, (where, bands) in enumerate(parts)]
    where = np.concatenate([heads[:0], *(rows for rows, _ in banded)])
    bands = np.concatenate([np.empty((0, BANDS), np.uint32), *(part for _, part in banded)])
    pairs = where[candidate_pairs(bands)]
    edges, jaccard = verified(folded, pairs, similarity=similarity)
    led = leaders(len(folded), edges)[forms]
    scores = pl.DataFrame({"one": edges[:, 0], "other": edges[:, 1], "jaccard": jaccard})
    ends = pl.DataFrame({"one": led, "other": forms})
    found = ends.join(scores, on=["one", "other"], how="left", maintain_order="left")["jaccard"]
    back = np.searchsorted(distinct, first)
    return distinct[led][back], found.fill_null(1.0).to_numpy()[back], distinct[led][back] == first


def _pieces(texts: pl.Series) -> Iterator[pl.Series]:
    return (texts.slice(start, PIECE).rechunk() for start in range(0, len(texts), PIECE))


def _concat(pieces: Iterable[pl.Series]) -> pl.Series:
    return pl.concat([pl.Series("text", [], pl.String), *pieces], rechunk=True)


def _plain(texts: pl.Series) -> pl.Series:
    return texts.alias("text").to_frame().select(plain(pl.col("text")))["text"]


def _first(values: pl.Series) -> np.ndarray:
    """For each value the position of the first one equal to it."""
    frame = values.alias("value").to_frame().with_row_index("at")
    return frame.select(pl.col("at").first().over("value"))["at"].to_numpy().astype(np.int64)


def _removed(
    rows: pa.Table, positions: np.ndarray, leader: np.ndarray, scores: np.ndarray, exact: np.ndarray
) -> pa.Table:
    gone = np.flatnonzero(leader != np.arange(len(leader)))
    row, of_row = pa.array(positions[gone]), pa.array(positions[leader[gone]])
    has_ids = "id" in rows.schema.names
    columns: dict[str, Any] = {"id": rows["id"].take(row)} if has_ids else {}
    columns["row"] = row
    columns["duplicate_of"] = rows["id"].take(of_row) if has_ids else of_row
    columns["duplicate_of_row"] = of_row
    columns["similarity"] = pa.array(scores[gone])
    columns["kind"] = pa.array(np.where(exact[gone], "exact", "near"), pa.string())
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
    rejected = []
    for position, row in zip(
        positions.tolist(), rows.take(pa.array(positions)).to_pylist(), strict=True
    ):
        reason = f"{column}_not_text" if row[column] is None else f"{column}_empty"
        record = {"provenance": {"row": str(position)}, "source": source, "columns": row}
        error = f"{column} is {'null' if row[column] is None else 'blank'}"
        rejected.append(rejected_row(record, reason=reason, error=error))
    return rejected


def write_parquet(folder: Folder, name: str, rows: pa.Table) -> None:
    """Write a table as one Parquet file, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    folder.write_bytes(name, sink.getvalue())


def write_quarantine(folder: Folder, rejected: Sequence[dict[str, Any]]) -> None:
    """Write quarantine.parquet, or see to it that none of an earlier run is left."""
    if rejected:
        write_parquet(folder, "quarantine.parquet", pa.Table.from_pylist(rejected, QUARANTINE))
    else:
        folder.delete("quarantine.parquet")
