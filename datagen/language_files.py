"""`datagen language`: tag the texts of plain files."""

import time
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.detectors import DEFAULT_BACKEND, detector
from datagen.language import detect_languages
from datagen.schema import QUARANTINE, UserError
from datagen.sources.files import read_rows
from datagen.store import Folder


def tag_files(
    inputs: list[str],
    output: str,
    *,
    text_column: str = "text",
    backend: str = DEFAULT_BACKEND,
) -> dict[str, Any]:
    """Write `rows.parquet` (the input + detected_language, detected_score, detector) in `output`.

    Lines that could not be read go to `quarantine.parquet`; a null text has a null language.
    Returns the counts.
    """
    start = time.monotonic()
    label = detector(backend).label
    table, rejected = read_rows(inputs)
    tags, scores = detect_languages(_texts(table, text_column, where=", ".join(inputs)), backend)
    columns = {
        "detected_language": tags.to_arrow().cast(pa.string()),
        "detected_score": scores.to_arrow(),
        "detector": pa.array([label] * table.num_rows, pa.string()),
    }
    kept = table.drop_columns([name for name in columns if name in table.column_names])
    for name, column in columns.items():
        kept = kept.append_column(name, column)
    folder = Folder(output)
    _write_parquet(folder, "rows.parquet", kept)
    if rejected:
        rows = pa.Table.from_pylist(rejected, schema=QUARANTINE)
        _write_parquet(folder, "quarantine.parquet", rows)
    counts = tags.drop_nulls().rename("tag").value_counts().rows()
    return {
        "rows": kept.num_rows,
        "quarantined": len(rejected),
        "detector": label,
        "languages": dict(sorted(counts, key=lambda item: (-item[1], item[0]))),
        "seconds": round(time.monotonic() - start, 1),
    }


def _texts(table: pa.Table, column: str, *, where: str) -> pl.Series:
    if column not in table.column_names:
        raise UserError(
            found=f"{where}: columns " + (", ".join(table.column_names) or "none"),
            expected=f"a column {column!r}",
            do="name the text column with --text-column",
        )
    kind = table.column(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise UserError(
            found=f"{where}: column {column!r} is {kind}",
            expected="text",
            do="name another column with --text-column",
        )
    return pl.Series(column, table.column(column), dtype=pl.String)


def _write_parquet(folder: Folder, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write_bytes(name, sink.getvalue())
