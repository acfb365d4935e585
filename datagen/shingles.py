"""Shingles of folded texts, their signatures and their Jaccard, as compiled loops over bytes.

A folded text is cut into overlapping runs of three words, or of six characters where the script
writes no blanks between words; its ends are padded, so a word at an end weighs as much as one
inside. With these, a changed word keeps Jaccard >= 0.8 from 25 words (about 60 Chinese characters)
on: a word in a long text, never the subject of a question.

A signature is the minimum over the shingles of functions `a * hash + b` in 32 bits, permutations of
the hashes; the compiler makes vector instructions of that loop. One core does 300 MB/s of both.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import polars as pl

from datagen.fold import MINIMUM_CHARACTERS
from datagen.fold_kernel import (
    blend,
    blend_other,
    buffers,
    compiled,
    decode,
    finish,
    item,
    scratch,
)
from datagen.fold_tables import DENSE, DIGIT, SIZE, tables
from datagen.minhash import PERMUTATIONS, mix

CHARACTER_SHINGLE = 6
ROW_BITS = 20
_BASE = 0x9E3779B97F4A7C15
_BLANK, _UNDERSCORE = 0x20, 0x5F


@compiled
def _is_unsegmented(data, start, stop, classes):
    beyond, size = 0, stop - start
    for at in range(start, stop):
        beyond += item(data, at) >= 0x80
    # A third of n characters in three bytes or more each: at least 4 of 7 bytes are beyond ASCII.
    if beyond * 7 < size * 4:
        return False
    dense, characters, at = 0, 0, start
    while at < stop:
        characters += 1
        if item(data, at) < 0x80:
            at += 1
            continue
        point, at = decode(data, at)
        dense += point >= SIZE or item(classes, point) & DENSE != 0  # above SIZE: ideographs
    return dense * 3 >= characters


@compiled
def _word_shingles(data, start, stop, flat, to):
    """Writes the hashes of the runs of three words; the ends count as two words each."""
    one = two = np.uint64(2)
    at = start
    while at < stop + 2:
        token = np.uint64(1)
        if at >= stop:
            token = np.uint64(3)
            at += 1
        else:
            while at < stop and item(data, at) != _BLANK:
                token = blend(token, np.uint64(item(data, at)))
                at += 1
            at += at < stop
            token = finish(token)
        flat[to] = finish(blend(blend(blend(np.uint64(0), one), two), token))
        to += 1
        one, two = two, token
    return to


@compiled
def _character_shingles(data, start, stop, flat, to):
    """Writes the hashes of the runs of six characters; the ends count as two characters each."""
    one = two = three = four = five = np.uint64(2)
    seen, at = 2, start
    while at < stop + 2:
        token = np.uint64(3)
        if at >= stop:
            at += 1
        else:
            point, at = decode(data, at)
            token = finish(np.uint64(point + 4))
        seen += 1
        if seen >= CHARACTER_SHINGLE:
            value = blend(blend(blend(np.uint64(0), one), two), three)
            flat[to] = finish(blend(blend(blend(value, four), five), token))
            to += 1
        one, two, three, four, five = two, three, four, five, token
    return to


@compiled
def _shingle_rows(data, offsets, classes, flat, ends):
    to = 0
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        if _is_unsegmented(data, start, stop, classes):
            to = _character_shingles(data, start, stop, flat, to)
        else:
            to = _word_shingles(data, start, stop, flat, to)
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
def _functions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    count = np.arange(seed, seed + 2 * PERMUTATIONS, dtype=np.uint64)
    numbers = (mix(count * np.uint64(_BASE)) >> np.uint64(32)).astype(np.uint32)
    return numbers[:PERMUTATIONS] | np.uint32(1), numbers[PERMUTATIONS:]


@compiled
def _sign_rows(flat, offsets, factors, terms, rows):
    for row in range(len(offsets) - 1):
        least = rows[row]
        least[:] = 0xFFFFFFFF
        for at in range(offsets[row], offsets[row + 1]):
            value = np.uint32(flat[at] >> np.uint64(32))
            for k in range(PERMUTATIONS):  # a constant: the minima can stay in registers
                least[k] = min(least[k], np.uint32(value * factors[k] + terms[k]))


def sign(flat: np.ndarray, offsets: np.ndarray, *, seed: int) -> np.ndarray:
    """Signatures [texts, PERMUTATIONS], uint32, of flat shingle hashes, in scratch memory."""
    count = len(offsets) - 1
    rows = scratch.array("signatures", count * PERMUTATIONS, np.uint32).reshape(count, -1)
    _sign_rows(flat, offsets, *_functions(seed), rows)
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
def _distinct(flat, offsets, stops):
    """Writes each different value of a sorted row once, at its start; `stops` is where they end."""
    for row in range(len(offsets) - 1):
        to = offsets[row]
        for at in range(offsets[row], offsets[row + 1]):
            if at == offsets[row] or flat[at] != flat[to - 1]:
                flat[to] = flat[at]
                to += 1
        stops[row] = to


@compiled
def _jaccard(flat, starts, stops, pairs, least, result):
    for n in range(len(pairs)):
        i, end_i = starts[pairs[n, 0]], stops[pairs[n, 0]]
        j, end_j = starts[pairs[n, 1]], stops[pairs[n, 1]]
        both = end_i - i + end_j - j
        # Jaccard j leaves (1 - j) / (1 + j) of both without a partner. One more, as this rounds.
        allowed = int(both * (1 - least) / (1 + least)) + 1
        common, alone = 0, 0
        while i < end_i and j < end_j and alone <= allowed:
            one, other = flat[i], flat[j]
            i += one <= other
            j += other <= one
            common += one == other
            alone += one != other
        if alone > allowed:
            result[n] = 0.0
        else:
            result[n] = common / (both - common) if both else 1.0


class Sets(NamedTuple):
    """The different shingles of each text: sorted hashes, and where those of each begin and end."""

    keys: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def shingle_sets(folded: pl.Series) -> Sets:
    """The shingles of up to 2 ** ROW_BITS folded texts, by the upper 44 bits of their hashes."""
    if len(folded) >> ROW_BITS:
        raise ValueError(f"{len(folded)} texts at once, at most {1 << ROW_BITS}")
    flat, offsets = shingle_bytes(*buffers(folded))
    # numpy's sort of one array, the row in the upper bits, is six times a compiled sort of each.
    row = np.repeat(np.arange(len(folded), dtype=np.uint64), np.diff(offsets))
    keys = flat >> np.uint64(ROW_BITS) | row << np.uint64(64 - ROW_BITS)
    keys.sort()
    keys <<= np.uint64(ROW_BITS)
    stops = np.empty(len(folded), np.int64)
    _distinct(keys, offsets, stops)
    return Sets(keys, offsets[:-1], stops)


def jaccard(sets: Sets, pairs: np.ndarray, *, least: float = 0.0) -> np.ndarray:
    """Jaccard [n] of pairs [n, 2] of texts.

    What is below `least` may be given as 0.0: most pairs that bands propose are seen to be far
    apart after a few shingles.
    """
    result = np.empty(len(pairs))
    _jaccard(*sets, pairs, least, result)
    return result


def similarities(folded: pl.Series, pairs: np.ndarray, *, least: float = 0.0) -> np.ndarray:
    """`jaccard` of pairs [n, 2] of positions in `folded`."""
    rows, local = np.unique(pairs, return_inverse=True)
    return jaccard(shingle_sets(folded.gather(rows)), local.reshape(-1, 2), least=least)


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
            point = item(data, at)
            if point < 0x80:
                at += 1
            else:
                point, at = decode(data, at)
            if tight and point == _BLANK:
                if not digit:
                    continue
                point = _UNDERSCORE
            digit = point < SIZE and item(classes, point) & DIGIT != 0
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
