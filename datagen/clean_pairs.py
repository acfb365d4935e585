"""Clean all texts of a table of pairs: queries, titles, documents and given negatives.

Each text column is cleaned as a whole by `clean_text`; a side that is declared as source code loses
trailing blanks and nothing else. Linear in the text; columns that nothing changes are not copied.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.clean_text import NORMALISERS, Cleaned, clean_column
from datagen.language import is_code
from datagen.schema import PAIR
from datagen.sources.columns import list_array


def clean_pairs(
    pairs: pa.Table, *, normalisers: Sequence[str] = tuple(NORMALISERS)
) -> tuple[pa.Table, Counter[str]]:
    """The pairs with all of their texts cleaned, and how many texts each normaliser changed.

    Keys of the counts are `source/normaliser`, of pairs that changed at all `source/normalised`.
    Negatives that are empty or the positive are gone; a title of nothing is null.
    """
    code = {side: code_sides(pairs, side) for side in ("query", "document")}
    query = _cleaned(pairs["query"], code["query"], normalisers)
    text = _cleaned(pairs["text"], code["document"], normalisers)
    stats = _counted(pairs["source"], (query, text))
    pairs = _put(pairs, "query", query)
    pairs = _put(pairs, "text", text)
    if pairs["title"].null_count < pairs.num_rows:
        title = _cleaned(pairs["title"], np.zeros(pairs.num_rows, bool), normalisers)
        pairs = _put(pairs, "title", title)
        titles = pairs["title"]
        emptied = pc.if_else(pc.equal(titles, ""), pa.scalar(None, pa.string()), titles)
        pairs = pairs.set_column(PAIR.get_field_index("title"), PAIR.field("title"), emptied)
    if pairs["negatives"].null_count < pairs.num_rows:
        negatives = _clean_negatives(pairs, text.texts, code["document"], normalisers)
        field = PAIR.get_field_index("negatives")
        pairs = pairs.set_column(field, PAIR.field("negatives"), negatives)
    return pairs, stats


def code_sides(pairs: pa.Table, side: str) -> np.ndarray:
    """Which queries or documents are declared as source code."""
    columns = [pairs[f"{side}_{part}"] for part in ("language", "script")]
    # No language or no script gives null: a side that is not declared is no code.
    tags = pc.binary_join_element_wise(*columns, "_").combine_chunks().dictionary_encode()
    known = [is_code(*tag.split("_")) for tag in tags.dictionary.to_pylist()]
    code = pa.array([*known, False]).take(tags.indices.fill_null(len(known)))
    return code.to_numpy(zero_copy_only=False)


def _cleaned(
    column: pa.Array | pa.ChunkedArray, code: np.ndarray, normalisers: Sequence[str]
) -> Cleaned:
    texts = pl.Series(pl.from_arrow(column))
    if not texts.null_count():
        return clean_column(texts, code, normalisers=normalisers)
    present = texts.is_not_null().to_numpy()
    cleaned = clean_column(texts.drop_nulls(), code[present], normalisers=normalisers)
    places = np.flatnonzero(present)
    positions = np.full(len(texts), -1)
    positions[present] = np.arange(len(places))
    back = pl.Series(positions, dtype=pl.Int64).replace(-1, None)
    changed = {name: places[rows] for name, rows in cleaned.changed.items()}
    return Cleaned(texts=cleaned.texts.gather(back), changed=changed)


def _put(pairs: pa.Table, name: str, cleaned: Cleaned) -> pa.Table:
    if not len(cleaned.rows):
        return pairs
    return pairs.set_column(PAIR.get_field_index(name), PAIR.field(name), _arrow(cleaned.texts))


def _arrow(texts: pl.Series) -> pa.Array:
    return texts.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def _counted(sources: pa.ChunkedArray, sides: Sequence[Cleaned]) -> Counter[str]:
    stats: Counter[str] = Counter()
    changed = [(name, rows) for side in sides for name, rows in side.changed.items()]
    changed.append(("normalised", np.unique(np.concatenate([side.rows for side in sides]))))
    for name, rows in changed:
        for source, count in Counter(sources.take(pa.array(rows, pa.int64())).to_pylist()).items():
            stats[f"{source}/{name}"] += count
    return stats


def _clean_negatives(
    pairs: pa.Table, texts: pl.Series, code: np.ndarray, normalisers: Sequence[str]
) -> pa.ListArray:
    lists = pairs["negatives"].combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy()
    sides = pc.list_flatten(lists)
    text = _cleaned(
        pc.fill_null(pc.struct_field(sides, "text"), ""), code[parents], normalisers
    ).texts
    title = _cleaned(pc.struct_field(sides, "title"), np.zeros(len(sides), bool), normalisers).texts
    kept = ((text != "") & (text != texts.gather(parents))).to_numpy()
    title = title.replace("", None)
    fields = [_arrow(title.filter(kept)), _arrow(text.filter(kept))]
    items = pa.StructArray.from_arrays(fields, fields=list(sides.type))
    return list_array(items, np.bincount(parents[kept], minlength=pairs.num_rows))
