"""What dedup needs to know of a shard without its text: ids, folded forms, band hashes.

The first phase of dedup, one task per input shard. A pair leaves its ids and what it is ranked by;
a text, named once per shard, leaves a 64-bit hash of its folded form and, when it is long enough,
its MinHash band hashes: about 150 bytes, whatever its length. Texts of different sides, tasks or
labelled data sets never meet: their hashes are salted with what parts them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.fold import fold, form_keys, plain
from datagen.minhash import BANDS, text_bands
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
        pa.field("bands", pa.list_(pa.uint32(), BANDS)),
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
    tables = {}
    if unit["table"] == "pairs":
        tables["pair_keys"], texts = _pairs(rows, zip(*columns, strict=True), unit["index"])
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
    tables["text_keys"] = _text_keys(texts, unit["index"], backend=unit["backend"])
    return UnitResult(tables=tables)


def _group(task: str, source: str) -> str:
    """Queries of different groups are never near-duplicates: a label depends on its data set."""
    return f"{task}\x1f{query_scope(task, source, None)}"


def _pairs(
    rows: pa.Table, pairs: Iterable[tuple], index: int
) -> tuple[pa.Table, list[tuple[str, int, int, str, str, str]]]:
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
        keys.append((i, query_key, doc_key, given))
    columns = [list(column) for column in zip(*keys, strict=True)]
    units = np.full(rows.num_rows, index, dtype=np.int32)
    arrays = [units, columns[0], rows["source"], rows["origin"], *columns[1:3]]
    arrays += [_sizes(rows), _contents(rows), columns[3]]
    return pa.table(arrays, schema=PAIR_KEYS), texts


def _sizes(rows: pa.Table) -> pa.Array:
    frame = pl.from_arrow(rows.select(["query", "title", "text"]))
    assert isinstance(frame, pl.DataFrame)
    lengths = [plain(pl.col(n).fill_null("")).str.len_chars().cast(pl.Int64) for n in frame.columns]
    return pa.array(frame.select(pl.sum_horizontal(lengths).alias("size"))["size"].to_numpy())


def _contents(rows: pa.Table) -> list[int]:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    whole = frame.select(pl.struct(pl.all()).struct.json_encode().alias("row"))["row"]
    return [_hash64(row) for row in whole]


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _text_keys(
    texts: Iterable[tuple[str, int, int, str, str, str]], index: int, *, backend: str
) -> pa.Table:
    """Keys of the distinct texts among (side, row, part, id, group, text)."""
    distinct = {(text[0], text[3]): text for text in reversed(list(texts))}
    sides, rows, parts, ids, groups, raw = zip(*distinct.values(), strict=True)
    column = pl.Series("text", raw, dtype=pl.String)
    forms = fold(column)
    sizes = column.to_frame().select(plain(pl.col("text")).str.len_chars())["text"]
    where, bands = text_bands(forms, backend=backend)
    salts = [_hash64(f"{side}\x1f{group}") for side, group in zip(sides, groups, strict=True)]
    bands ^= (np.array(salts, dtype=np.uint64)[where] >> np.uint64(32)).astype(np.uint32)[:, None]
    columns = [
        pa.array(np.full(len(ids), index, dtype=np.int32)),
        *(pa.array(column, pa.int32()) for column in (rows, parts)),
        pa.array(sides),
        pa.array(ids),
        pa.array(sizes.to_numpy().astype(np.int64)),
        pa.array(
            [
                _hash64(f"{salt}\x1f{key}")
                for salt, key in zip(salts, form_keys(forms), strict=True)
            ],
            pa.uint64(),
        ),
        _optional_rows(bands, where, len(ids)),
    ]
    return pa.table(columns, schema=TEXT_KEYS)


def _optional_rows(matrix: np.ndarray, where: np.ndarray, count: int) -> pa.FixedSizeListArray:
    """A column of `count` rows that has the matrix's rows at `where` and null elsewhere."""
    values = np.zeros((count, matrix.shape[1]), dtype=matrix.dtype)
    values[where] = matrix
    missing = np.ones(count, dtype=bool)
    missing[where] = False
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel()), matrix.shape[1], mask=pa.array(missing)
    )
