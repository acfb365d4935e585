"""Whole columns of a table to pairs: the same pairs as `tables.read_records`, without a Python
object per row.

Every column of the result is made by one Arrow expression over the mapped columns. A table with a
column of a type that needs judging value by value (a number where text is expected) is read row by
row, and so is each row with a negative that is no text, for its error. Some millions of rows/s and
core.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.codes import UNKNOWN_SCRIPT, standard_tag
from datagen.schema import DOCUMENT_SIDE, PAIR, PROVENANCE, rejected_row, split_language
from datagen.sources import SourceRows
from datagen.sources.tables import read_records

NEGATIVES = PAIR.field("negatives").type
_TEXT_COLUMNS = ("query", "text", "title", "instruction", "licence")
_TAG_COLUMNS = ("language", "query_language", "document_language")


def read_columns(table: pa.Table, names: pa.Array, row_map: Mapping[str, Any]) -> SourceRows:
    """The pairs of a table whose rows have these names, as a table of schema PAIR.

    Query and text may still be null or blank, as in the pairs of `read_records`.
    """
    if not _is_valid(table):
        return _read_decodable(table, names, row_map)
    columns = {name: table[column] for name, column in row_map["columns"].items()}
    if not _fits(columns):
        return read_records(_records(table, names), row_map)
    odd = _odd_negatives(columns["negatives"]) if "negatives" in columns else None
    if odd is None or not odd.any():
        pairs = _pairs(columns, names, row_map)
        return SourceRows(rows_in=table.num_rows, table=pairs)
    rest = pa.array(np.flatnonzero(~odd))
    strange = pa.array(np.flatnonzero(odd))
    rows = read_records(_records(table.take(strange), names.take(strange)), row_map)
    rest_columns = {name: column.take(rest) for name, column in columns.items()}
    pairs = _pairs(rest_columns, names.take(rest), row_map)
    return SourceRows(rows_in=table.num_rows, table=pairs, quarantined=rows.quarantined)


def _records(table: pa.Table, names: pa.Array) -> list[tuple[str, dict[str, Any]]]:
    return list(zip(names.to_pylist(), table.to_pylist(), strict=True))


def _is_valid(table: pa.Table) -> bool:
    # Parquet declares text without checking it.
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _read_decodable(table: pa.Table, names: pa.Array, row_map: Mapping[str, Any]) -> SourceRows:
    """The pairs of a table with invalid UTF-8 in it: only the rows that have it are rejected."""
    good, rejected = [], []
    for i, row in enumerate(names.to_pylist()):
        one = table.slice(i, 1)
        if _is_valid(one.take([0])):
            good.append(i)
            continue
        record = {"source": row_map["source"], "provenance": {"row": row}, "record": _raw(one)}
        error = "the row is not valid UTF-8"
        rejected.append(rejected_row(record, reason="invalid_utf8", error=error))
    rows = read_columns(table.take(pa.array(good)), names.take(pa.array(good)), row_map)
    rows.rows_in = table.num_rows
    rows.quarantined = rejected + rows.quarantined
    return rows


def _raw(row: pa.Table) -> dict[str, Any]:
    """The plain text columns of one row, as bytes."""
    columns = [name for name in row.column_names if _is_text(row[name].type)]
    return {name: row[name].cast(pa.binary())[0].as_py() for name in columns}


def _fits(columns: Mapping[str, pa.ChunkedArray]) -> bool:
    """Whether the type of every column says that all of its values can be used."""
    for name, column in columns.items():
        if name == "score":
            fits = _is_number(column.type)
        elif name == "negatives":
            fits = _is_text(column.type) or _is_text_list(column.type)
        else:
            fits = _is_text(column.type)
        if not fits:
            return False
    return True


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    # Half floats and decimals round in ways of their own.
    return (
        pa.types.is_null(kind) or pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64())
    )


def _is_text_list(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    if not pa.types.is_struct(item):
        return _is_text(item)
    fields = {field.name: field.type for field in item}
    return "text" in fields and all(_is_text(fields.get(n, pa.null())) for n in ("text", "title"))


def _odd_negatives(column: pa.ChunkedArray) -> np.ndarray:
    """Rows with a negative that is null."""
    odd = np.zeros(len(column), bool)
    if _is_text(column.type):
        return odd
    items = pc.list_flatten(column)
    if pa.types.is_struct(items.type):
        items = pc.struct_field(items, "text")
    parents = pc.list_parent_indices(column).to_numpy()
    odd[parents[items.is_null().to_numpy(zero_copy_only=False)]] = True
    return odd


def _pairs(
    columns: Mapping[str, pa.ChunkedArray], names: pa.Array, row_map: Mapping[str, Any]
) -> pa.Table:
    rows = len(names)
    found = {name: _text(columns[name]) for name in _TEXT_COLUMNS if name in columns}
    made: dict[str, Any] = {
        "source": _constant(row_map["source"], rows),
        "task": _constant(row_map["task"], rows),
        "origin": _constant("public", rows),
        "query": found["query"],
        "text": found["text"],
        "title": _not_empty(found.get("title")),
        "negatives": _negatives(columns.get("negatives"), found["text"], row_map["labels"]),
        "score": _score(columns.get("score")),
        "provenance": _provenance(names),
    }
    for name in ("instruction", "licence"):
        given = _not_empty(found.get(name))
        made[name] = _constant(row_map[name], rows) if given is None else given
        if given is not None and row_map[name]:
            made[name] = given.fill_null(row_map[name])
    tags = {name: _text(columns[name]) for name in _TAG_COLUMNS if name in columns}
    for side in ("query", "document"):
        made[f"{side}_language"], made[f"{side}_script"] = _tags(tags, row_map, rows, side=side)
    arrays = [
        pa.nulls(rows, field.type) if made.get(field.name) is None else made[field.name]
        for field in PAIR
    ]
    return pa.Table.from_arrays(arrays, schema=PAIR)


def _constant(value: str | None, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value or None, pa.string()), rows)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _not_empty(column: pa.ChunkedArray | None) -> pa.ChunkedArray | None:
    """The column with null for every empty text."""
    if column is None:
        return None
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _score(column: pa.ChunkedArray | None) -> pa.ChunkedArray | None:
    if column is None:
        return None
    return column.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)


def _provenance(names: pa.Array) -> pa.Array:
    nulls = [pa.nulls(len(names), field.type) for field in list(PROVENANCE)[1:]]
    return pa.StructArray.from_arrays([names.cast(pa.string()), *nulls], fields=list(PROVENANCE))


def _tags(
    given: Mapping[str, pa.ChunkedArray], row_map: Mapping[str, Any], rows: int, *, side: str
) -> tuple[pa.Array, pa.Array]:
    """Language and script of one side of every row; a column wins over the constant."""
    own = f"{side}_language"
    code = side == "document" and row_map["code"]
    order = (own,) if code else (own, "language")
    columns = [_not_empty(given[name]) for name in order if name in given]
    fixed = next((row_map[name] for name in order if row_map[name]), None)
    column = pc.coalesce(*columns, _constant(fixed, rows)) if columns else _constant(fixed, rows)
    encoded = _encoded(column)
    tags = [_split(tag, code=code) for tag in encoded.dictionary.to_pylist()]
    missing = _split(None, code=code)
    indices = encoded.indices.fill_null(len(tags))
    parts = zip(*tags, missing, strict=True)
    return tuple(pa.array(part, pa.string()).take(indices) for part in parts)  # type: ignore[return-value]


def _encoded(column: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.dictionary_encode()


def _split(tag: str | None, *, code: bool) -> tuple[str | None, str | None]:
    if code:
        return split_language(f"{tag or 'code'}_{UNKNOWN_SCRIPT}")
    return split_language(standard_tag(tag)) if tag else (None, None)


def _negatives(
    column: pa.ChunkedArray | None, texts: pa.ChunkedArray, labels: list[str]
) -> pa.Array | None:
    """The given negatives, then every label but the text's own; null where there is none."""
    lists = [] if column is None else [_given(column)]
    if labels:
        lists.append(_other_labels(texts, labels))
    if not lists:
        return None
    counts = sum(pc.list_value_length(part).fill_null(0).to_numpy() for part in lists)
    flat = [pc.list_flatten(part) for part in lists]
    if len(lists) == 2:
        # Per row, the items of the first list come before those of the second.
        parents = [pc.list_parent_indices(part).to_numpy() for part in lists]
        order = np.argsort(np.concatenate(parents), kind="stable")
        flat = [pa.concat_arrays(flat).take(pa.array(order))]
    return list_array(flat[0], counts)


def list_array(items: pa.Array, counts: np.ndarray) -> pa.ListArray:
    """Lists of `counts` consecutive items each, as negatives; null where there is none."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    mask = pa.array(np.asarray(counts) == 0)
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=NEGATIVES, mask=mask)


def _given(column: pa.ChunkedArray) -> pa.Array:
    if _is_text(column.type):
        texts = _text(column).combine_chunks()
        texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        kept = texts.drop_null()
        return list_array(_sides(None, kept), texts.is_valid().to_numpy(zero_copy_only=False) * 1)
    lists = column.combine_chunks()
    items = pc.list_flatten(lists)
    counts = pc.list_value_length(lists).fill_null(0).to_numpy()
    if not pa.types.is_struct(items.type):
        return list_array(_sides(None, items.cast(pa.string())), counts)
    titles = None
    if items.type.get_field_index("title") >= 0:
        titles = _not_empty(pc.struct_field(items, "title").cast(pa.string()))
    return list_array(_sides(titles, pc.struct_field(items, "text").cast(pa.string())), counts)


def _sides(titles: pa.Array | None, texts: pa.Array) -> pa.StructArray:
    titles = pa.nulls(len(texts), pa.string()) if titles is None else titles
    return pa.StructArray.from_arrays([titles, texts], fields=list(DOCUMENT_SIDE))


def _other_labels(texts: pa.ChunkedArray, labels: list[str]) -> pa.Array:
    encoded = _encoded(texts)
    known = [*encoded.dictionary.to_pylist(), None]
    others = [[{"title": None, "text": v} for v in labels if v != text] for text in known]
    return pa.array(others, NEGATIVES).take(encoded.indices.fill_null(len(known) - 1))
