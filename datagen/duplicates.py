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
    BANDS,
    DEFAULT_BACKEND,
    TextKeys,
    candidate_pairs,
    components,
    fast_keys,
    slow_keys,
    verified,
)

PIECE = 1 << 12  # texts that a thread works on at once: bounds what is in memory beside the texts
SLOW_PIECE = 1 << 11
PAIRS = 1 << 10  # candidates verified at once: their texts are folded beside the others


def find_duplicates(
    texts: pl.Series, *, similarity: float, backend: str = DEFAULT_BACKEND
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text the position of the one that stays for it, their Jaccard, and whether equal."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        same, form, pairs = _proposed(texts, backend, pool)
        verify = partial(_verified, texts, similarity=similarity)
        parts = [(pairs[:0], np.empty(0)), *pool.map(verify, _together(pairs, len(texts)))]
        edges, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        first = components(len(texts), edges)[form]
        jaccard = _known(edges, scores, first, form)
        chained = np.flatnonzero(np.isnan(jaccard))  # only others connect them
        ends = np.stack([first, form], axis=1)
        for start in range(0, len(chained), PIECE):
            some = chained[start : start + PIECE]
            jaccard[some] = _similarities(texts, ends[some])
    return first, jaccard, same == first


def load_kernels() -> None:
    """Load the compiled code now rather than with the first texts."""
    text = "ten words are enough to be signed and to be compared"
    find_duplicates(pl.Series([text, text + "."]), similarity=0.8)


def _proposed(
    texts: pl.Series, backend: str, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text the first that is plainly equal and the first of its form; pairs of firsts that
    share a band."""
    plain, form = np.empty((2, len(texts), 2), np.uint64)
    bands, signed = np.empty((len(texts), BANDS), np.uint32), np.zeros(len(texts), bool)

    def put(keys: TextKeys, at: np.ndarray) -> None:
        plain[at], form[at] = keys.plain, keys.form
        bands[at[keys.where]] = keys.bands
        signed[at[keys.where]] = True

    def work(start: int) -> np.ndarray:
        keys, slow = fast_keys(texts.slice(start, PIECE), backend=backend)
        put(keys, np.arange(start, start + len(keys.plain)))
        return slow + start

    def work_slow(start: int) -> None:
        some = slow[start : start + SLOW_PIECE]
        put(slow_keys(texts.gather(some), backend=backend), some)

    slow = np.concatenate([[], *pool.map(work, range(0, len(texts), PIECE))]).astype(np.int64)
    list(pool.map(work_slow, range(0, len(slow), SLOW_PIECE)))
    same = pool.submit(_first, plain)
    first = _first(form)
    heads = np.flatnonzero(signed & (first == np.arange(len(texts))))
    return same.result(), first, candidate_pairs(bands, heads, run=pool.map)


def _first(hashes: np.ndarray) -> np.ndarray:
    """For each row of hashes [n, 2] the position of the first one equal to it."""
    rows = np.arange(len(hashes))
    # The second half only matters where the first is equal, which is rare: sorting one is enough.
    order = np.argsort(hashes[:, 0])
    values = hashes[order, 0]
    alike = np.zeros(len(order) + 1, bool)
    np.equal(values[1:], values[:-1], out=alike[1:-1])
    some = np.sort(order[alike[1:] | alike[:-1]])
    order = some[np.lexsort((hashes[some, 1], hashes[some, 0]))]  # stable: first comes first
    starts = np.ones(len(order), bool)
    starts[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    rows[order] = order[starts][np.cumsum(starts) - 1]
    return rows


def _together(pairs: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The pairs in parts; those that others connect lie together, so that a text is folded once and
    not for each of its pairs."""
    order = np.argsort(components(count, pairs)[pairs[:, 0]], kind="stable")
    for start in range(0, len(pairs), PAIRS):
        yield pairs[order[start : start + PAIRS]]


def _verified(
    texts: pl.Series, pairs: np.ndarray, *, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    from datagen.fold_kernel import fold_texts

    rows, local = np.unique(pairs, return_inverse=True)
    folded = fold_texts(texts.gather(rows))
    near, scores = verified(folded, local.reshape(-1, 2), similarity=similarity)
    return rows[near], scores


def _known(
    edges: np.ndarray, scores: np.ndarray, first: np.ndarray, form: np.ndarray
) -> np.ndarray:
    """The Jaccard of each form with its first: 1.0 for itself, NaN where no edge joins the two."""
    jaccard = np.where(first == form, 1.0, np.nan)
    if len(edges):
        count = np.int64(len(form))
        names = edges[:, 0] * count + edges[:, 1]
        order = np.argsort(names)
        wanted = first * count + form
        at = order[np.minimum(np.searchsorted(names, wanted, sorter=order), len(names) - 1)]
        there = names[at] == wanted
        jaccard[there] = scores[at[there]]
    return jaccard


def _similarities(texts: pl.Series, pairs: np.ndarray) -> np.ndarray:
    from datagen.fold_kernel import fold_texts
    from datagen.shingles import similarities

    rows, local = np.unique(pairs, return_inverse=True)
    return similarities(fold_texts(texts.gather(rows)), local.reshape(-1, 2))
