"""Shingles of folded texts, their signatures and their Jaccard, as compiled loops over bytes.

A folded text is cut into overlapping runs of three words, or of six characters where the script
writes no blanks between words; its ends are padded, so a word at an end weighs as much as one
inside. With these, a changed word keeps Jaccard >= 0.8 from 25 words (about 60 Chinese characters)
on: a word in a long text, never the subject of a question.

A signature is the minimum over the shingles of functions `a * hash + b` (the high half of the
product); the compiler makes vector instructions of that loop. One core does 100 MB/s of both.
"""

from functools import lru_cache

import numpy as np
import polars as pl

from datagen.fold import MINIMUM_CHARACTERS
from datagen.fold_kernel import blend, blend_other, buffers, compiled, decode, finish, scratch
from datagen.fold_tables import DENSE, DIGIT, SIZE, tables
from datagen.minhash import mix

WORD_SHINGLE, CHARACTER_SHINGLE = 3, 6
_BASE = 0x9E3779B97F4A7C15
_BLANK, _UNDERSCORE = 0x20, 0x5F


@compiled
def _is_unsegmented(data, start, stop, classes):
    dense, characters, at = 0, 0, start
    while at < stop:
        characters += 1
        if data[at] < 0x80:
            at += 1
            continue
        point, at = decode(data, at)
        dense += point >= SIZE or classes[point] & DENSE != 0  # above SIZE: ideographs
    return dense * 3 >= characters


@compiled
def _shingle_row(data, start, stop, dense, window, flat, to):
    """Writes the hashes of the runs of len(window) tokens; the ends count as two tokens each."""
    width = len(window)
    window[0] = window[1] = np.uint64(2)
    seen, at = 2, start
    while at < stop + 2:
        token = np.uint64(1)
        if at >= stop:
            token = np.uint64(3)
            at += 1
        elif dense:
            point, at = decode(data, at)
            token = finish(np.uint64(point + 4))
        else:
            while at < stop and data[at] != _BLANK:
                token = blend(token, np.uint64(data[at]))
                at += 1
            at += at < stop
            token = finish(token)
        window[seen % width] = token
        seen += 1
        if seen >= width:
            value = np.uint64(0)
            for k in range(seen, seen + width):
                value = blend(value, window[k % width])
            flat[to] = finish(value)
            to += 1
    return to


@compiled
def _shingle_rows(data, offsets, classes, flat, ends):
    words = np.empty(WORD_SHINGLE, np.uint64)
    characters = np.empty(CHARACTER_SHINGLE, np.uint64)
    to = 0
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        dense = _is_unsegmented(data, start, stop, classes)
        to = _shingle_row(data, start, stop, dense, characters if dense else words, flat, to)
        ends[row + 1] = to


def shingles(folded: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Shingle hashes of folded texts: flat uint64 [S] and offsets [texts + 1] into them."""
    flat, ends = shingle_bytes(*buffers(folded))
    return flat.copy(), ends


def shingle_bytes(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`shingles` of texts given as bytes and offsets; the hashes are in scratch memory."""
    most = int(offsets[-1] - offsets[0]) + 2 * len(offsets)
    flat, ends = scratch.array("shingles", most, np.uint64), np.zeros(len(offsets), np.int64)
    _shingle_rows(data, offsets, tables().classes, flat, ends)
    return flat[: ends[-1]], ends


@lru_cache(maxsize=4)
def _functions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = mix(np.arange(seed, seed + 2 * count, dtype=np.uint64) * np.uint64(_BASE))
    return numbers[:count] | np.uint64(1), numbers[count:]


@compiled
def _sign_rows(flat, offsets, factors, terms, rows):
    for row in range(len(offsets) - 1):
        least = rows[row]
        least[:] = 0xFFFFFFFF
        for at in range(offsets[row], offsets[row + 1]):
            value = flat[at]
            for k in range(len(factors)):
                high = np.uint32((value * factors[k] + terms[k]) >> np.uint64(32))
                least[k] = min(least[k], high)


def sign(flat: np.ndarray, offsets: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """Signatures [texts, count], uint32, of flat shingle hashes."""
    rows = np.empty((len(offsets) - 1, count), np.uint32)
    _sign_rows(flat, offsets, *_functions(count, seed), rows)
    return rows


@compiled
def _band_rows(rows, bands):
    width = rows.shape[1] // bands.shape[1]
    for row in range(len(rows)):
        for band in range(bands.shape[1]):
            value = np.uint64(band)
            for k in range(band * width, (band + 1) * width):
                value = blend(value, np.uint64(rows[row, k]))
            bands[row, band] = np.uint32(finish(value) >> np.uint64(32))


def band_hashes(rows: np.ndarray, count: int) -> np.ndarray:
    """Hashes [texts, count], uint32, of the bands of signatures."""
    bands = np.empty((len(rows), count), np.uint32)
    _band_rows(rows, bands)
    return bands


@compiled
def _jaccard(flat, offsets, pairs, result):
    for row in range(len(offsets) - 1):
        flat[offsets[row] : offsets[row + 1]].sort()
    for n in range(len(pairs)):
        i, end_i = offsets[pairs[n, 0]], offsets[pairs[n, 0] + 1]
        j, end_j = offsets[pairs[n, 1]], offsets[pairs[n, 1] + 1]
        common, union = 0, 0
        while i < end_i or j < end_j:
            if j >= end_j or (i < end_i and flat[i] < flat[j]):
                value = flat[i]
            else:
                value = flat[j]
                common += i < end_i and flat[i] == value
            union += 1
            while i < end_i and flat[i] == value:
                i += 1
            while j < end_j and flat[j] == value:
                j += 1
        result[n] = common / union if union else 1.0


def similarities(folded: pl.Series, pairs: np.ndarray) -> np.ndarray:
    """True Jaccard [n] of the shingles of pairs [n, 2] of positions in `folded`."""
    rows, local = np.unique(pairs, return_inverse=True)
    flat, offsets = shingles(folded.gather(rows))
    result = np.empty(len(pairs))
    _jaccard(flat, offsets, local.reshape(-1, 2), result)
    return result


@compiled
def _form_rows(data, offsets, classes, hashes, long):
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        characters, at = 0, start
        while at < stop and characters < MINIMUM_CHARACTERS:
            point, at = decode(data, at)
            characters += 1
        tight = long[row] = characters >= MINIMUM_CHARACTERS
        one, other, digit, at = np.uint64(1), np.uint64(2), False, start
        while at < stop:
            point = np.int64(data[at])
            if point < 0x80:
                at += 1
            else:
                point, at = decode(data, at)
            if tight and point == _BLANK:
                if not digit:
                    continue
                point = _UNDERSCORE
            digit = point < SIZE and classes[point] & DIGIT != 0
            one = blend(one, np.uint64(point))
            other = blend_other(other, np.uint64(point))
        hashes[row, 0], hashes[row, 1] = finish(one), finish(other)


def form_hashes(folded: pl.Series) -> np.ndarray:
    """128-bit hashes [n, 2] that are equal for texts that are the same: of the folded form, where
    long ones may differ in their blanks, too.

    "e mail" and "email" meet in a sentence; in a short text, and beside digits, blanks count.
    """
    return form_bytes(*buffers(folded))[0]


def form_bytes(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`form_hashes` of texts given as bytes and offsets, and which are long enough to sign."""
    hashes, long = np.empty((len(offsets) - 1, 2), np.uint64), np.empty(len(offsets) - 1, np.bool_)
    _form_rows(data, offsets, tables().classes, hashes, long)
    return hashes, long


@compiled
def connect(count, edges):
    """The first of all positions [count] that each is connected with: union-find whose roots are
    the first of their members."""
    above = np.arange(count)
    for n in range(len(edges)):
        one, other = edges[n]
        while above[one] != one:
            above[one] = above[above[one]]
            one = above[one]
        while above[other] != other:
            above[other] = above[above[other]]
            other = above[other]
        above[max(one, other)] = min(one, other)
    for at in range(count):
        above[at] = above[above[at]]
    return above
