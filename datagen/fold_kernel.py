"""`fold` and `plain` as one compiled pass over the bytes of a column: the fast way to the same.

One walk over a text sees whether lookups suffice (it is in NFC, and nothing in it composes) and
whether it is code, hashes its plain form and writes its folded form.
What needs more than lookups, one text in a thousand of real data, takes the way through `fold`.
Loops release the GIL, so threads share the cores. 300 MB/s and core; `fold` does 15.
"""

import threading
from typing import Any, NamedTuple

import numba
import numpy as np
import polars as pl
import pyarrow as pa

from datagen.fold import CODE_CHARACTERS, fold_plain, plain
from datagen.fold_tables import (
    CODE_SIGN,
    COMPLEX,
    DIGIT,
    DROP,
    LETTER,
    PUNCT,
    SIZE,
    SPACE,
    tables,
)

NATURAL, STRAIGHT, SLOW = 0, 1, 2
_LOW = (1 << 21) - 1
_HYPHEN, _BRACKET, _MINUS = 0x2D, 0x28, 0x2212
_ONE, _OTHER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd, bits in disorder
_START, _SPACE, _OPEN, _REST = 0, 1, 2, 3  # what precedes a hyphen
_WORD, _NUMBER, _GAP, _MARK, _ALL = 1, 2, 4, 8, 15  # what a walk runs over
_KINDS = np.zeros(128, np.uint8)
for _kind, _signs in (
    (_WORD, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    (_NUMBER, b"0123456789"),
    (_GAP, b" "),
    (_MARK, b",.;:!?"),
):
    _KINDS[list(_signs)] = _kind


def compiled(function: Any) -> Any:
    """Compiled at the first call, kept on disk, run without the GIL.

    Types are inferred, hence not written. What is kept is dated by its own file alone: after a
    change here, touch the files that call it.
    """
    return numba.njit(cache=True, nogil=True, boundscheck=False)(function)


@compiled
def item(data, at):
    """What is at a place that is not negative; a signed index would be looked at for that."""
    return np.int64(data[np.uint64(at)])


@compiled
def decode(data, at):
    """The code point at a byte, and the byte after it."""
    first = item(data, at)
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (item(data, at + 1) & 0x3F), at + 2
    second = item(data, at + 1) & 0x3F
    third = item(data, at + 2) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, at + 3
    return (first & 7) << 18 | second << 12 | third << 6 | (item(data, at + 3) & 0x3F), at + 4


@compiled
def _put(out, at, value):
    out[np.uint64(at)] = value


@compiled
def _encode(point, out, at):
    if point < 0x80:
        _put(out, at, point)
        return at + 1
    if point < 0x800:
        _put(out, at, 0xC0 | point >> 6)
        _put(out, at + 1, 0x80 | point & 0x3F)
        return at + 2
    if point < 0x10000:
        _put(out, at, 0xE0 | point >> 12)
        _put(out, at + 1, 0x80 | point >> 6 & 0x3F)
        _put(out, at + 2, 0x80 | point & 0x3F)
        return at + 3
    _put(out, at, 0xF0 | point >> 18)
    _put(out, at + 1, 0x80 | point >> 12 & 0x3F)
    _put(out, at + 2, 0x80 | point >> 6 & 0x3F)
    _put(out, at + 3, 0x80 | point & 0x3F)
    return at + 4


@compiled
def _composes(pairs, first, second):
    pair = first << 21 | second
    at = np.searchsorted(pairs, pair)
    return at < len(pairs) and pairs[at] == pair


@compiled
def blend(value, part):
    """The hash of a sequence and one more part of it; `finish` it at the end."""
    return (value ^ part) * _ONE


@compiled
def blend_other(value, part):
    """A second hash beside `blend`'s, for 128 bits."""
    return (value ^ part) * _OTHER


@compiled
def finish(value):
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def _fold_row(  # noqa: C901
    data, start, stop, tables, out, to
):
    """(way, hash, hash, characters, end of what is written) of one text.

    One walk finds out which way folds the text, hashes its plain form, and writes its folded form
    as most texts have it (NATURAL); where that is not the way, what is written does not count.
    """
    classes, combining, trailing, maybe, last, emitted, letters, _, pairs = tables
    one, other = np.uint64(1), np.uint64(2)
    characters, signs, option, wants_blank = 0, 0, False, False
    # What a mark could compose with, the class of the mark inside it, and of the mark before.
    starter, inner, ccc = -1, 0, 0
    kept_starter, kept_inner, kept_ccc = -1, 0, 0  # the same in the text without what is dropped
    # 0: elsewhere, 1: at a word's start, 2: after "-", 3: after "-" and a letter, 4: after "--"
    state = 1
    begin, at = to, start
    blank, marks, minus, previous = False, False, False, _START  # of what is written
    while at < stop:
        point, after = decode(data, at)
        if state <= 1 and point < SIZE and item(letters, point):
            # Words, numbers and common marks with one blank between them: most of what there is. In
            # ASCII nothing branches on what comes next, which is not predictable.
            if wants_blank:
                wants_blank = False
                characters += 1
                one = blend(one, np.uint64(0x20))
                other = blend_other(other, np.uint64(0x20))
            gap, mark, allowed = np.int64(blank), np.int64(0), _WORD
            one_before, other_before = one, other
            while at < stop:
                point = item(data, at)
                if point < 0x80:
                    kind = item(_KINDS, point)
                    if not kind & allowed:
                        break
                    allowed = _ALL ^ (kind & _GAP)  # two blanks are for the other way
                    written = (kind | kind >> 1) & 1
                    gap |= (kind >> 1) & mark  # 1.5 is not 15
                    mark = kind >> 3
                    _put(out, to, 0x20)
                    to += gap & written
                    _put(out, to, point | 0x20)
                    to += written
                    gap = (gap | kind >> 2) & (written ^ 1)
                    at += 1
                else:
                    point, after = decode(data, at)
                    if point >= SIZE or not item(letters, point):
                        break
                    out[to] = 0x20
                    to = _encode(item(letters, point), out, to + gap)
                    gap, mark, allowed = np.int64(0), np.int64(0), _ALL
                    at = after
                characters += 1
                one_before, other_before, starter = one, other, point
                one = blend(one, np.uint64(point))
                other = blend_other(other, np.uint64(point))
            if allowed != _ALL:  # it ended with a blank, which may be one of several
                one, other = one_before, other_before
                at, characters = at - 1, characters - 1
            kept_starter = starter
            inner = ccc = kept_inner = kept_ccc = state = 0
            blank, marks, minus, previous = gap != 0, mark != 0, False, _REST
            continue
        at = after
        if point >= SIZE or item(classes, point) & COMPLEX:
            return SLOW, one, other, 0, begin
        kind = item(classes, point)
        if kind & SPACE:
            wants_blank = characters > 0
            option |= state == 3
            state = 1
            starter, inner, ccc, kept_starter, kept_inner, kept_ccc = -1, 0, 0, -1, 0, 0
            if not kind & DROP:
                blank, marks, minus, previous = to > begin, False, False, _SPACE
            continue
        if wants_blank:
            wants_blank = False
            characters += 1
            one = blend(one, np.uint64(0x20))
            other = blend_other(other, np.uint64(0x20))
        one = blend(one, np.uint64(point))
        other = blend_other(other, np.uint64(point))
        characters += 1
        signs += kind & CODE_SIGN != 0
        if state == 1:
            state = 2 if point == _HYPHEN else 0
        elif state == 2:
            state = 3 if kind & LETTER else 4 if point == _HYPHEN else 0
        elif state:
            option |= state == 4 and kind & LETTER != 0
            state = 0
        if point < 0x80:
            starter, inner, ccc = point, 0, 0
            if not kind & DROP:
                kept_starter, kept_inner, kept_ccc = point, 0, 0
        else:
            own = item(combining, point)
            if own or item(maybe, point):
                for base, within, above in (
                    (starter, inner, ccc),
                    (kept_starter, kept_inner, kept_ccc),
                ):
                    # A mark that composes with nothing goes before the one inside and out again.
                    if own and (above > own or (within > own and item(maybe, point))):
                        return SLOW, one, other, 0, begin
                    free = above == 0 or (own and above < own)
                    if free and base >= 0 and _composes(pairs, base, point):
                        return SLOW, one, other, 0, begin
            if own:
                ccc = own
                if not kind & DROP:
                    kept_ccc = own
            else:
                starter, inner, ccc = point, item(trailing, point), 0
                if not kind & DROP:
                    kept_starter, kept_inner, kept_ccc = (
                        item(last, point),
                        item(trailing, item(last, point)),
                        0,
                    )
        left = np.int64(0) if kind & DROP else item(emitted, point)
        while left:
            point = left & _LOW
            left >>= 21
            kind = item(classes, point)
            if kind & SPACE:
                blank, marks, minus, previous = to > begin, False, False, _SPACE
                continue
            if kind & PUNCT:
                minus = point == _HYPHEN and previous != _REST
                marks = True
                previous = _OPEN if point == _BRACKET else _REST
                continue
            digit = kind & DIGIT != 0
            if to > begin and (blank or (digit and marks and not minus)):
                out[to] = 0x20
                to += 1
            if digit and minus:
                to = _encode(_MINUS, out, to)
            to = _encode(point, out, to)
            blank, marks, minus, previous = False, False, False, _REST
    option |= state == 3
    code = characters < CODE_CHARACTERS and (option or signs * 20 >= characters)
    return STRAIGHT if code else NATURAL, finish(one), finish(other), characters, to


@compiled
def _write_straight(data, start, stop, tables, out, to):
    classes, straight = tables.classes, tables.straight
    begin, blank, at = to, False, start
    while at < stop:
        point, at = decode(data, at)
        if classes[point] & SPACE:
            blank = to > begin
            continue
        if blank:
            out[to] = 0x20
            to += 1
            blank = False
        to = _encode(straight[point], out, to)
    return to


@compiled
def _fold_rows(data, offsets, tables, out, ends, hashes, sizes):
    ways, to = np.empty(len(offsets) - 1, np.uint8), 0
    for row in range(len(ways)):
        start, stop = offsets[row], offsets[row + 1]
        begin = to
        way, one, other, sizes[row], to = _fold_row(data, start, stop, tables, out, to)
        if way == STRAIGHT:
            to = _write_straight(data, start, stop, tables, out, begin)
        if to == begin and stop > start:
            way = SLOW
        ways[row], hashes[row, 0], hashes[row, 1] = way, one, other
        ends[row + 1] = to
    return ways


class Scratch(threading.local):
    """Arrays that each thread uses again and again: fresh pages cost more than what is done in
    them."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, size: int, dtype: Any) -> np.ndarray:
        """`size` items that hold anything; valid until the thread asks for the name again."""
        found = self._arrays.get(name)
        if found is None or len(found) < size:
            found = self._arrays[name] = np.empty(size + size // 4, dtype)
        return found[:size]


scratch = Scratch()


class Folded(NamedTuple):
    """Folded texts as bytes and ends [n + 1], and of their `plain` forms the 128-bit hashes [n, 2]
    and the characters [n]."""

    data: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    sizes: np.ndarray


def fold_fast(texts: pl.Series) -> tuple[Folded, np.ndarray]:
    """The texts folded, in scratch memory, and the positions of those that need `fold_slow`."""
    data, offsets = buffers(texts)
    out = scratch.array("folded", 3 * int(offsets[-1] - offsets[0]) + 8, np.uint8)
    ends, hashes = np.zeros(len(texts) + 1, np.int64), np.empty((len(texts), 2), np.uint64)
    sizes = np.empty(len(texts), np.int64)
    ways = _fold_rows(data, offsets, tables(), out, ends, hashes, sizes)
    return Folded(out[: ends[-1]], ends, hashes, sizes), np.flatnonzero(ways == SLOW)


def fold_slow(texts: pl.Series) -> Folded:
    """Any texts folded: composed first (NFC), which is all that most lack, else by definition."""
    composed = texts.str.normalize("NFC")
    found, slow = fold_fast(composed)
    if not len(slow):
        return found
    rest = fold_defined(composed.gather(slow))
    found.hashes[slow], found.sizes[slow] = rest.hashes, rest.sizes
    folded = _strings(found.data.copy(), found.ends)
    folded = folded.scatter(slow, _strings(rest.data, rest.ends))
    return Folded(*buffers(folded), found.hashes, found.sizes)


def fold_defined(texts: pl.Series) -> Folded:
    """The texts folded by the definition."""
    clear = texts.alias("text").to_frame().select(plain(pl.col("text")))["text"]
    hashes = np.empty((len(texts), 2), np.uint64)
    _hash_rows(*buffers(clear), hashes)
    sizes = clear.str.len_chars().to_numpy().astype(np.int64)
    return Folded(*buffers(fold_plain(clear)), hashes, sizes)


def fold_texts(texts: pl.Series) -> pl.Series:
    """What `fold` gives, mostly the fast way."""
    found, slow = fold_fast(texts)
    folded = _strings(found.data.copy(), found.ends)
    if len(slow):
        rest = fold_slow(texts.gather(slow))
        folded = folded.scatter(slow, _strings(rest.data, rest.ends))
    return folded


def _strings(data: np.ndarray, ends: np.ndarray) -> pl.Series:
    array = pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(data))
    return pl.Series("text", array)


@compiled
def _hash_rows(data, offsets, hashes):
    for row in range(len(offsets) - 1):
        one, other = np.uint64(1), np.uint64(2)
        at, stop = offsets[row], offsets[row + 1]
        while at < stop:
            point, at = decode(data, at)
            one = blend(one, np.uint64(point))
            other = blend_other(other, np.uint64(point))
        hashes[row, 0], hashes[row, 1] = finish(one), finish(other)


def buffers(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and int64 offsets of a column of text without nulls."""
    array = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, np.int64)[array.offset :][: len(array) + 1]
    return np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), offsets
