"""What dedup needs to know of a shard without its text: ids, form hashes, band hashes.

The first phase of dedup, one task per input shard. A pair leaves its ids and what it is ranked by;
a text, named once per shard, leaves a 64-bit hash of its folded form and, when it is long enough,
its MinHash band hashes: about 150 bytes, whatever its length. Texts of different sides, tasks or
labelled data sets never meet: their hashes are salted with what parts them.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.minhash import BANDS, TextKeys, mix, text_keys
from datagen.schema import (
    document_id,
    format_document,
    join_language,
    query_id,
    query_scope,
)
from datagen.steps import UnitResult
from datagen.texts import OWN, PLACE, open_unit

PAIR_KEYS = pa.schema(
    [
        *PLACE[:2],
        pa.field("source", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),  # characters of both sides
        pa.field("content", pa.uint64(), nullable=False),  # of the whole row, to order equal pairs
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
    ]
)
TEXT_KEYS = pa.schema(
    [
        *PLACE,
        pa.field("side", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("form", pa.uint64(), nullable=False),
        *(pa.field(f"band_{band:02}", pa.uint32()) for band in range(BANDS)),
    ]
)
_COLUMNS = {
    "pairs": ["task", "source", "query", "title", "text", "negatives"]
    + ["document_language", "document_script"],
    "queries": ["query_id", "task", "source", "query"],
    "documents": ["doc_id", "title", "text"],
}
SCHEMAS = {"pair_keys": PAIR_KEYS, "text_keys": TEXT_KEYS}


def key_unit(unit: Mapping[str, Any]) -> UnitResult:
    """The keys of one shard of pairs, or of an earlier step's queries or documents."""
    rows = open_unit(unit)
    columns = [rows[name].to_pylist() for name in _COLUMNS[unit["table"]]]
    if unit["table"] == "pairs":
        keys, texts = _pairs(zip(*columns, strict=True))
    elif unit["table"] == "queries":
        texts = [
            ("query", i, OWN, known, _group(task, source), text)
            for i, (known, task, source, text) in enumerate(zip(*columns, strict=True))
        ]
    else:
        texts = [
            ("document", i, OWN, known, "", format_document(title, text))
            for i, (known, title, text) in enumerate(zip(*columns, strict=True))
        ]
    table, sizes = _text_keys(texts, unit["index"], backend=unit["backend"])
    tables = {"text_keys": table}
    if unit["table"] == "pairs":
        tables["pair_keys"] = _pair_keys(rows, keys, sizes, unit["index"])
    return UnitResult(tables=tables)


def _group(task: str, source: str) -> str:
    """Queries of different groups are never near-duplicates: a label depends on its data set."""
    return f"{task}\x1f{query_scope(task, source, None)}"


def _pairs(
    pairs: Iterable[tuple],
) -> tuple[list[tuple[str, str, list[str]]], list[tuple[str, int, int, str, str, str]]]:
    """(query_id, doc_id, ids of negatives) of every pair, and all their texts."""
    keys, texts = [], []
    for i, (task, source, query, title, text, negatives, language, script) in enumerate(pairs):
        scope = query_scope(task, source, join_language(language, script))
        query_key, doc_key = query_id(task, query, scope), document_id(title, text)
        texts.append(("query", i, OWN, query_key, _group(task, source), query))
        texts.append(("document", i, OWN, doc_key, "", format_document(title, text)))
        given = []
        for k, negative in enumerate(negatives or ()):
            given.append(document_id(negative["title"], negative["text"]))
            whole = format_document(negative["title"], negative["text"])
            texts.append(("document", i, k, given[-1], "", whole))
        keys.append((query_key, doc_key, given))
    return keys, texts


def _pair_keys(
    rows: pa.Table,
    keys: Sequence[tuple[str, str, list[str]]],
    sizes: Mapping[tuple[str, str], int],
    index: int,
) -> pa.Table:
    queries, documents, negatives = zip(*keys, strict=True)
    size = [
        sizes["query", query] + sizes["document", document]
        for query, document in zip(queries, documents, strict=True)
    ]
    units = np.full(rows.num_rows, index, dtype=np.int32)
    arrays = [units, range(rows.num_rows), rows["source"], rows["origin"], queries, documents, size]
    return pa.table([*arrays, _contents(rows), negatives], schema=PAIR_KEYS)


def _contents(rows: pa.Table) -> list[int]:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    whole = frame.select(pl.struct(pl.all()).struct.json_encode().alias("row"))["row"]
    return [_hash64(row) for row in whole]


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _text_keys(
    texts: Iterable[tuple[str, int, int, str, str, str]], index: int, *, backend: str
) -> tuple[pa.Table, dict[tuple[str, str], int]]:
    """Keys of the distinct texts among (side, row, part, id, group, text), and their sizes."""
    distinct = {(text[0], text[3]): text for text in reversed(list(texts))}
    sides, rows, parts, ids, groups, raw = zip(*distinct.values(), strict=True)
    keys = text_keys(pl.Series("text", raw, dtype=pl.String), backend=backend)
    salts = np.array(
        [_hash64(f"{side}\x1f{group}") for side, group in zip(sides, groups, strict=True)],
        np.uint64,
    )
    columns = {
        "unit": np.full(len(ids), index, dtype=np.int32),
        "row": rows,
        "part": parts,
        "side": sides,
        "id": ids,
        "size": keys.sizes,
        "form": mix(mix(keys.form[:, 0] ^ salts) + keys.form[:, 1]),
        **_bands(keys, salts, len(ids)),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in TEXT_KEYS]
    sizes = dict(zip(distinct, keys.sizes.tolist(), strict=True))
    return pa.table(arrays, schema=TEXT_KEYS), sizes


def _bands(keys: TextKeys, salts: np.ndarray, count: int) -> dict[str, pa.Array]:
    """The band hashes as columns, null for the texts that have none."""
    found = keys.bands ^ (salts[keys.where] >> np.uint64(32)).astype(np.uint32)[:, None]
    missing = np.ones(count, dtype=bool)
    missing[keys.where] = False
    columns = {}
    for band in range(BANDS):
        values = np.zeros(count, dtype=np.uint32)
        values[keys.where] = found[:, band]
        columns[f"band_{band:02}"] = pa.array(values, mask=missing)
    return columns
