"""Duplicates among the texts of one column: which of them stands for each.

The texts stay where they are; keys of some 130 bytes a text are made piece by piece, by threads,
and the texts that bands propose are folded once more to verify them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import polars as pl

from datagen.minhash import (
    DEFAULT_BACKEND,
    TextKeys,
    candidate_pairs,
    components,
    text_keys,
    verified,
)

PIECE = 1 << 14  # texts that a thread works on at once: bounds what is in memory beside the texts
PAIRS = 1 << 15  # candidates verified at once


def find_duplicates(
    texts: pl.Series, *, similarity: float, backend: str = DEFAULT_BACKEND
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text the position of the one that stays for it, their Jaccard, and whether equal."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        plain, form, _, where, bands = _keys(texts, backend, pool)
        same, form = _first(plain), _first(form)
        heads = np.flatnonzero(form[where] == where)
        pairs = where[heads][candidate_pairs(bands[heads])]
        verify = partial(_verified, texts, similarity=similarity)
        edges = np.concatenate([pairs[:0], *pool.map(verify, _together(pairs, len(texts)))])
    first = components(len(texts), edges)[form]
    scores, changed = np.ones(len(texts)), np.flatnonzero(form != first)
    scores[changed] = _similarities(texts, np.stack([first, form], axis=1)[changed])
    return first, scores, same == first


def _keys(texts: pl.Series, backend: str, pool: ThreadPoolExecutor) -> TextKeys:
    starts = range(0, max(len(texts), 1), PIECE)
    parts = list(
        pool.map(lambda start: text_keys(texts.slice(start, PIECE), backend=backend), starts)
    )
    where = [keys.where + start for keys, start in zip(parts, starts, strict=True)]
    columns = dict(zip(TextKeys._fields, zip(*parts, strict=True), strict=True))
    return TextKeys(**{n: np.concatenate(c) for n, c in {**columns, "where": where}.items()})


def _together(pairs: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The pairs in parts of about PIECE; those that others connect lie together, so that a text is
    folded once and not for each of its pairs."""
    order = np.argsort(components(count, pairs)[pairs[:, 0]], kind="stable")
    for start in range(0, len(pairs), PAIRS):
        yield pairs[order[start : start + PAIRS]]


def _verified(texts: pl.Series, pairs: np.ndarray, *, similarity: float) -> np.ndarray:
    from datagen.fold_kernel import fold_texts

    rows, local = np.unique(pairs, return_inverse=True)
    folded = fold_texts(texts.gather(rows))
    near, _ = verified(folded, local.reshape(-1, 2), similarity=similarity)
    return rows[near]


def _similarities(texts: pl.Series, pairs: np.ndarray) -> np.ndarray:
    from datagen.fold_kernel import fold_texts
    from datagen.shingles import similarities

    rows, local = np.unique(pairs, return_inverse=True)
    folded = fold_texts(texts.gather(rows))
    return similarities(folded, local.reshape(-1, 2))


def _first(hashes: np.ndarray) -> np.ndarray:
    """For each row of hashes [n, 2] the position of the first one equal to it."""
    frame = pl.DataFrame({"a": hashes[:, 0], "b": hashes[:, 1]}).with_row_index("at")
    return frame.select(pl.col("at").first().over("a", "b"))["at"].to_numpy().astype(np.int64)
