"""Tokens and shingles of whole columns of text, for texts in any script, also mixed.

A token is a word, or one letter where the script writes no blanks between words. A shingle is a
run of three words, of four Han or kana letters, or of six Thai, Lao, Khmer or Burmese ones, or what
is as long in mixed text. Case, punctuation, symbols and invisible characters are set aside, and
so are web addresses: a list of links is the same in every language.

Hashes are substring hashes from one prefix sum over the bytes of a block: no loop over tokens.
Cost: about 25 MB of text a second and core, most of it normalisation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl

from datagen.fold import UNSEGMENTED
from datagen.minhash import mix

NO_SHINGLE = 0
_SHINGLE = 12  # units that make a shingle; a word has 4, a letter without blanks 3 or 2
_WORD, _DENSE, _SPARSE = 4, 3, 2
_WORDS = np.array([0, 0, 0.25, 0.5, 1])  # how much of a word a token of that many units is
_DENSE_RANGES = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
)  # fmt: skip
_SPARSE_RANGES = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF))
_BASE, _INVERSE = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 1 << 64)
_BLOCK = 1 << 20  # bytes handled at once: what stays in the cache
_ADDRESS = r"\pL+://[^\s)>\]]+"
_LETTER = rf"({UNSEGMENTED})"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of N texts, flat [T]; those of text i are at offsets[i] to offsets[i + 1]."""

    words: np.ndarray  # hash of each token, uint64
    shingles: np.ndarray  # hash of the shingle that starts at each token, or NO_SHINGLE
    numeric: np.ndarray  # whether the token starts with a digit
    offsets: np.ndarray  # [N + 1]
    lengths: np.ndarray  # [N], in words, as `fold.count_words` counts them


def token_form(texts: pl.Series) -> pl.Series:
    """Each text as its tokens, every one followed by one blank."""
    texts = texts.fill_null("")
    linked = texts.str.contains("://", literal=True)
    if linked.any():
        texts = texts.scatter(
            linked.arg_true(), texts.filter(linked).str.replace_all(_ADDRESS, " ")
        )
    form = (
        texts.str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_all(r"\p{Cf}+", "")
        .str.replace_all(r"[^\p{L}\p{M}\p{N}]+", " ")
    )
    dense = form.str.contains(UNSEGMENTED)
    if dense.any():
        apart = form.filter(dense).str.replace_all(_LETTER, " $1 ").str.replace_all(" +", " ")
        form = form.scatter(dense.arg_true(), apart)
    form = form.str.strip_chars()
    return (form + " ").zip_with(form != "", form)


def tokenise(texts: pl.Series) -> Tokens:
    """The tokens of the texts, in their order."""
    form = token_form(texts)
    parts = [_block(form[start:stop]) for start, stop in blocks(form.str.len_bytes().to_numpy())]
    parts = parts or [_block(form)]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Tokens(
        words=np.concatenate([part.words for part in parts]),
        shingles=np.concatenate([part.shingles for part in parts]),
        numeric=np.concatenate([part.numeric for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        lengths=np.concatenate([part.lengths for part in parts]),
    )


def blocks(costs: np.ndarray, limit: int = _BLOCK) -> Iterator[tuple[int, int]]:
    """Consecutive parts whose costs sum to about `limit` (one item at least)."""
    ends, start = np.cumsum(costs), 0
    while start < len(costs):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + limit, side="right")))
        yield start, stop
        start = stop


def _block(form: pl.Series) -> Tokens:
    array = form.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offset_buffer, data = array.buffers()
    ends = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset :][: len(array) + 1]
    codes = np.frombuffer(data or b"", dtype=np.uint8)[ends[0] : ends[-1]]
    stops = np.flatnonzero(codes == 0x20)  # the blank after each token
    starts = np.concatenate([[0], stops[:-1] + 1]) if len(stops) else stops
    offsets = np.searchsorted(stops, ends - ends[0])
    units = _units(codes, starts)
    reach = np.concatenate([[0], np.cumsum(units)])
    length = np.concatenate([[0], np.cumsum(_WORDS[units])])
    size = 1 << int(len(codes) + 1).bit_length()
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(_byte_codes()[codes] * _powers(_BASE, size)[: len(codes)], out=sums[1:])
    scale = _powers(_INVERSE, size)[starts]
    last = np.searchsorted(reach, reach[:-1] + _SHINGLE)  # one past the shingle's last token
    whole = last <= np.repeat(offsets[1:], np.diff(offsets))
    shingle = mix((sums[stops[np.where(whole, last, 1) - 1]] - sums[starts]) * scale)
    return Tokens(
        words=mix((sums[stops] - sums[starts]) * scale),
        shingles=np.where(whole, shingle, np.uint64(NO_SHINGLE)),
        numeric=(codes[starts] >= 0x30) & (codes[starts] <= 0x39),
        offsets=offsets,
        lengths=np.diff(length[offsets]),
    )


def _units(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Units of each token, told by its first letter."""
    first = codes[starts]
    units = np.full(len(starts), _WORD, dtype=np.int64)
    three = np.flatnonzero((first & 0xF0) == 0xE0)
    at = starts[three]
    point = (first[three].astype(np.int64) & 0x0F) << 12
    point |= (codes[at + 1].astype(np.int64) & 0x3F) << 6
    units[three] = _unit_table()[point | (codes[at + 2] & 0x3F)]
    four = np.flatnonzero(first == 0xF0)
    units[four] = np.where(codes[starts[four] + 1] >= 0xA0, _DENSE, _WORD)  # Han beyond U+20000
    return units


@lru_cache(maxsize=1)
def _unit_table() -> np.ndarray:
    table = np.full(1 << 16, _WORD, dtype=np.int64)
    for ranges, unit in ((_DENSE_RANGES, _DENSE), (_SPARSE_RANGES, _SPARSE)):
        for low, high in ranges:
            table[low : high + 1] = unit
    return table


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


@lru_cache(maxsize=1)
def _byte_codes() -> np.ndarray:
    return mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(_BASE))
