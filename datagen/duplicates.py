"""Duplicates among the texts of one column: which of them stands for each.

The texts stay where they are; keys of some 130 bytes a text are made piece by piece, by threads.
Those that bands propose are folded once more, for their shingles: 8 bytes a word.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

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
)

if TYPE_CHECKING:
    from datagen.shingles import Sets

PIECE = 1 << 12  # texts that a thread works on at once: bounds what is in memory beside the texts
SLOW_PIECE = 1 << 9
_FEW = ["ten words are enough to be signed and to be compared" + end for end in ("", ".")]
SETS = 1 << 10  # texts whose shingles a thread makes at once
PAIRS = 1 << 15  # candidates whose shingles are in memory at once
COMPARED = 1 << 13  # of them by a thread
ALIKE = 1 << 11  # pairs whose subjects are compared at once


def find_duplicates(
    texts: pl.Series, *, similarity: float, backend: str = DEFAULT_BACKEND
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text the position of the one that stays for it, their Jaccard, and whether equal."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, ThreadPoolExecutor(1) as aside:
        aside.submit(_load_comparison)
        same, form, pairs = _proposed(texts, backend, pool)
        edges, scores = _verified(texts, pairs, pool, similarity=similarity)
        first = components(len(texts), edges)[form]
        jaccard = _known(edges, scores, first, form)
        chained = np.flatnonzero(np.isnan(jaccard))  # only others connect them
        ends = np.stack([first, form], axis=1)
        for start in range(0, len(chained), PIECE):
            some = chained[start : start + PIECE]
            jaccard[some] = _similarities(texts, ends[some])
    return first, jaccard, same == first


def load_kernels() -> None:
    """Load the compiled code that every text needs now rather than with the first texts."""
    fast_keys(pl.Series(_FEW), backend=DEFAULT_BACKEND)


def _load_comparison() -> None:
    """Load the compiled code that candidates need, and the slow way, while texts are signed."""
    from datagen.fold_kernel import fold_texts
    from datagen.shingles import similarities
    from datagen.subjects import same_subject

    folded, pairs = fold_texts(pl.Series(_FEW)), np.array([[0, 1]])
    components(2, pairs[similarities(folded, pairs) > 0])
    same_subject(folded, pairs)
    slow_keys(pl.Series(["a m², which only expressions fold"]), backend=DEFAULT_BACKEND)


def _proposed(
    texts: pl.Series, backend: str, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text the first that is plainly equal and the first of its form; pairs of firsts that
    share a band."""
    plain, form = np.empty((2, len(texts), 2), np.uint64)
    bands, signed = np.empty((len(texts), BANDS), np.uint32), np.zeros(len(texts), bool)

    def put(keys: TextKeys, at: np.ndarray | slice, where: np.ndarray) -> None:
        plain[at], form[at] = keys.plain, keys.form
        bands[where], signed[where] = keys.bands, True

    def work(start: int) -> np.ndarray:
        keys, slow = fast_keys(texts.slice(start, PIECE), backend=backend)
        put(keys, slice(start, start + len(keys.plain)), start + keys.where)
        return slow + start

    def work_slow(start: int) -> None:
        some = slow[start : start + SLOW_PIECE]
        keys = slow_keys(texts.gather(some), backend=backend)
        put(keys, some, some[keys.where])

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


def _verified(
    texts: pl.Series, pairs: np.ndarray, pool: ThreadPoolExecutor, *, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are near-duplicates, and their Jaccard.

    Pairs that others connect lie together, so that few texts are folded for more than one part.
    """
    order = np.argsort(components(len(texts), pairs)[pairs[:, 0]], kind="stable")
    parts = [(pairs[:0], np.empty(0))]
    parts += [_alike(texts, pairs[at], pool, similarity=similarity) for at in _parts(order, PAIRS)]
    edges, scores = map(np.concatenate, zip(*parts, strict=True))
    about = partial(_same_subject, texts)
    kept = np.concatenate([np.empty(0, bool), *pool.map(about, _parts(edges, ALIKE))])
    return edges[kept], scores[kept]


def _alike(
    texts: pl.Series, pairs: np.ndarray, pool: ThreadPoolExecutor, *, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Those of some pairs whose shingles are alike, and their Jaccard."""
    from datagen.shingles import jaccard

    rows, local = np.unique(pairs, return_inverse=True)
    sets = _sets(texts, rows, pool)
    compare = partial(jaccard, sets, least=similarity)
    parts = _parts(local.reshape(-1, 2), COMPARED)
    scores = np.concatenate([np.empty(0), *pool.map(compare, parts)])
    alike = np.flatnonzero(scores >= similarity)
    return pairs[alike], scores[alike]


def _sets(texts: pl.Series, rows: np.ndarray, pool: ThreadPoolExecutor) -> "Sets":
    """The shingles of some texts, each folded once."""
    from datagen.fold_kernel import fold_texts
    from datagen.shingles import Sets, shingle_sets

    made = deque(
        pool.map(lambda at: shingle_sets(fold_texts(texts.gather(at))), _parts(rows, SETS))
    )
    keys = np.empty(sum(len(part.keys) for part in made), np.uint64)
    starts, stops, to = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    while made:  # a part goes when it is copied, so memory holds them once
        part = made.popleft()
        keys[to : to + len(part.keys)] = part.keys
        starts.append(part.starts + to)
        stops.append(part.stops + to)
        to += len(part.keys)
    return Sets(keys, np.concatenate(starts), np.concatenate(stops))


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _same_subject(texts: pl.Series, pairs: np.ndarray) -> np.ndarray:
    from datagen.fold_kernel import fold_texts
    from datagen.subjects import same_subject

    rows, local = np.unique(pairs, return_inverse=True)
    return same_subject(fold_texts(texts.gather(rows)), local.reshape(-1, 2))


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
