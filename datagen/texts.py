"""Texts of a step's inputs by place, for work that needs few of them, in any order.

A place is three numbers: `unit` (which input shard), `row`, and `part`: -1 for the query or the
document of the row, k for its k-th given negative. Shards are memory-mapped, so only the pages of
the rows asked for are read; on an object store each shard is fetched whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.schema import PAIR, format_document
from datagen.store import Folder, open_shard

OWN = -1  # the part of a row that is its query or document itself
PLACE = [
    pa.field("unit", pa.int32(), nullable=False),
    pa.field("row", pa.int32(), nullable=False),
    pa.field("part", pa.int32(), nullable=False),
]


def open_unit(unit: Mapping[str, Any]) -> pa.Table:
    """The rows of an input shard, named as `{"folder": uri, "shard": name}`."""
    return open_shard(Folder(unit["folder"]), unit["shard"])


def take_rows(
    units: Sequence[Mapping[str, Any]], places: pl.DataFrame, columns: Sequence[str]
) -> pa.Table:
    """The rows at `places` (columns unit, row), in their order, with the given columns."""
    order, parts = [], []
    for unit, rows, positions in _by_unit(places):
        parts.append(_select(open_unit(units[unit]), columns).take(pa.array(rows)))
        order.append(positions)
    back = np.argsort(np.concatenate(order), kind="stable")
    return pa.concat_tables(parts).take(pa.array(back))


def _select(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns, null where the table has none (documents of a step have no negatives)."""
    fields = [PAIR.field(name) for name in columns]
    empty = {f.name: pa.nulls(table.num_rows, f.type) for f in fields}
    return pa.table(
        {f.name: table[f.name] if f.name in table.schema.names else empty[f.name] for f in fields}
    )


def _by_unit(places: pl.DataFrame) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    units, rows = places["unit"].to_numpy(), places["row"].to_numpy()
    order = np.argsort(units, kind="stable")
    for positions in np.split(order, np.flatnonzero(np.diff(units[order])) + 1):
        if len(positions):
            yield int(units[positions[0]]), rows[positions], positions


def take_documents(units: Sequence[Mapping[str, Any]], places: pl.DataFrame) -> pa.Table:
    """Title and text of the documents at `places` (columns unit, row, part), in their order."""
    rows = take_rows(units, places, ["title", "text", "negatives"])
    parts = places["part"].to_list()
    if max(parts, default=OWN) == OWN:
        return rows.select(["title", "text"])
    titles, texts = rows["title"].to_pylist(), rows["text"].to_pylist()
    for i, part in enumerate(parts):
        if part != OWN:
            negative = rows["negatives"][i][part].as_py()
            titles[i], texts[i] = negative["title"], negative["text"]
    return pa.table({"title": pa.array(titles, pa.string()), "text": pa.array(texts, pa.string())})


def joined(documents: pa.Table) -> pl.Series:
    """The text of documents (columns title, text) as an encoder sees it."""
    pairs = zip(documents["title"].to_pylist(), documents["text"].to_pylist(), strict=True)
    return pl.Series("text", [format_document(*pair) for pair in pairs], dtype=pl.String)
