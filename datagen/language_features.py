"""Texts as letters, scripts and hashed letter n-grams, whole columns at a time.

A column of texts becomes one array of code points. Letters, marks and apostrophes make words; all
else is a boundary, and every run of boundaries is one. Scripts are counted by a table over code
points, n-grams by rolling hashes over the array: some numpy operations for each length of n-gram,
whatever the number of texts, instead of a Python loop over characters.
"""

import dataclasses
import functools
import unicodedata

import numpy as np
import polars as pl
from fontTools.unicodedata import Scripts

from datagen.codes import MIXED_HAN_SHARE, UNKNOWN_SCRIPT, han_variant_of

MAX_CHARACTERS = 500  # of a text that are read; more changes little and costs time
ORDERS = (1, 2, 3, 4)  # lengths of n-grams in letters
HASH_BITS = 20

# Parts of a text that are of no language: addresses, tags, placeholders.
NOT_LANGUAGE = r"https?://\S+|www\.\S+|\S+@\S+|</?[A-Za-z][^<>]*>|%\(\w+\)\w|\{\{?[^{}]*\}\}?|%[sd]"

_BOUNDARY, _APOSTROPHES = ord(" "), "'’ʼ`´"
_TABLE_SIZE = 0x32000  # letters end with the third plane of Han; beyond is emoji and private use
_HAN_START, _HAN_END = 0x2E80, 0xFB00  # where characters can be simplified or traditional
_NO_SCRIPT = frozenset({"Zyyy", "Zinh", "Zzzz"})


@dataclasses.dataclass(frozen=True)
class Letters:
    """Texts as one array of word characters: `codes[i]` belongs to text `text_of[i]`.

    A boundary (blank) closes every word. `scripts` and `shares` name the script of most letters of
    each text, and its share of them: `Zyyy` and 0 for a text without letters.
    """

    codes: np.ndarray  # uint32
    text_of: np.ndarray  # int64, ascending
    scripts: np.ndarray  # str [texts]
    shares: np.ndarray  # float64 [texts]


def clean(texts: pl.Series) -> pl.Series:
    """The texts cut, without addresses and placeholders; null is empty."""
    short = texts.fill_null("").str.slice(0, 2 * MAX_CHARACTERS)
    return short.str.replace_all(NOT_LANGUAGE, " ").str.slice(0, MAX_CHARACTERS)


def read_letters(texts: pl.Series) -> Letters:
    """The word characters of cleaned texts in lower case, and their scripts."""
    kinds, folds = _tables()
    lower = texts.str.to_lowercase()
    lengths = lower.str.len_chars().to_numpy().astype(np.int64) + 1
    joined = "".join(f"{text} " for text in lower)
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    place = np.minimum(codes, _TABLE_SIZE - 1)
    kind = kinds[place]
    scripts, shares = _main_scripts(codes, kind, text_of, count=len(texts))
    keep = kind > 0
    keep[1:] |= kind[:-1] > 0  # the boundary right after a word closes it
    codes = np.where(kind > 0, folds[place], np.uint32(_BOUNDARY))
    return Letters(codes[keep], text_of[keep], scripts, shares)


def select(found: Letters, rows: np.ndarray) -> Letters:
    """The letters of some texts, numbered anew; `rows` is ascending."""
    number = np.full(len(found.scripts), -1)
    number[rows] = np.arange(len(rows))
    owner = number[found.text_of]
    keep = owner >= 0
    return Letters(found.codes[keep], owner[keep], found.scripts[rows], found.shares[rows])


def ngrams(found: Letters) -> tuple[np.ndarray, np.ndarray]:
    """Every n-gram of every text as `(text, bucket)` arrays; none goes across words."""
    codes = np.concatenate([[_BOUNDARY], found.codes]).astype(np.uint32)
    text_of = np.concatenate([[0], found.text_of])
    blank = codes == _BOUNDARY
    owners, buckets = [], []
    for order in ORDERS:
        size = max(len(codes) - order + 1, 0)
        inside = np.ones(size, dtype=bool)
        for step in range(order) if order == 1 else range(1, order - 1):
            inside &= ~blank[step : step + size]
        # The boundary that opens the first word of a text closed the text before: the last
        # character of an n-gram tells whose it is.
        owners.append(text_of[order - 1 :][:size][inside])
        buckets.append(_hashes(codes, order)[inside])
    return np.concatenate(owners), np.concatenate(buckets)


def _hashes(codes: np.ndarray, order: int) -> np.ndarray:
    size = max(len(codes) - order + 1, 0)
    mixed = np.full(size, np.uint32(order * 0x9E3779B1 & 0xFFFFFFFF))
    for step in range(order):
        mixed ^= codes[step : step + size]
        mixed *= np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(13)
    return mixed >> np.uint32(32 - HASH_BITS)


@functools.cache
def _script_names() -> tuple[str, ...]:
    """The columns of the script counts, in the order that decides a draw."""
    found = set(Scripts.VALUES) - _NO_SCRIPT
    return tuple(sorted(found | {"Hans", "Hant", "Jpan"}))


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: 0 boundary, 1 mark or apostrophe, 2 + script of a letter; what it folds to."""
    number = {name: i + 2 for i, name in enumerate(_script_names())}
    edges = [*(start for start in Scripts.RANGES if start < _TABLE_SIZE), _TABLE_SIZE]
    values = [number.get(name, 1) for name in Scripts.VALUES[: len(edges) - 1]]
    kinds = np.repeat(np.array(values, dtype=np.uint8), np.diff(edges))
    categories = np.array([unicodedata.category(chr(point))[0] for point in range(_TABLE_SIZE)])
    kinds[categories == "M"] = 1
    kinds[(categories != "L") & (categories != "M")] = 0
    folds = np.arange(_TABLE_SIZE, dtype=np.uint32)
    for character in _APOSTROPHES:
        kinds[ord(character)], folds[ord(character)] = 1, ord("'")
    return kinds, folds


@functools.cache
def _han_variants() -> np.ndarray:
    """+1 for traditional characters, -1 for simplified ones, from `_HAN_START`."""
    points = range(_HAN_START, _HAN_END)
    return np.array([han_variant_of(chr(point)) for point in points], dtype=np.int8)


def _main_scripts(
    codes: np.ndarray, kind: np.ndarray, text_of: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    names = _script_names()
    letter = kind >= 2
    cells = text_of[letter] * len(names) + (kind[letter] - 2)
    counts = np.bincount(cells, minlength=count * len(names)).reshape(count, len(names))
    column = {name: i for i, name in enumerate(names)}
    if counts[:, [column["Hani"], column["Hira"], column["Kana"]]].any():
        _merge_han(counts, _traditional(codes, text_of, count=count), column)
    best, total = counts.argmax(axis=1), counts.sum(axis=1)
    shares = counts[np.arange(count), best] / np.maximum(total, 1)
    return np.where(total > 0, np.array(names)[best], UNKNOWN_SCRIPT), shares


def _traditional(codes: np.ndarray, text_of: np.ndarray, *, count: int) -> np.ndarray:
    """Whether each text has more traditional characters than simplified ones."""
    here = (codes >= _HAN_START) & (codes < _HAN_END)
    weights = _han_variants()[codes[here] - _HAN_START]
    return np.bincount(text_of[here], weights=weights, minlength=count) > 0


def _merge_han(counts: np.ndarray, traditional: np.ndarray, column: dict[str, int]) -> None:
    """Han and kana together are `Jpan`, Han and Hangul `Hang`; Han alone is `Hans` or `Hant`."""
    han = counts[:, column["Hani"]].copy()
    kana = counts[:, column["Hira"]] + counts[:, column["Kana"]]
    hangul = counts[:, column["Hang"]]
    counts[:, [column["Hani"], column["Hira"], column["Kana"]]] = 0
    japanese = (kana > 0) & (kana >= MIXED_HAN_SHARE * (han + kana))
    korean = ~japanese & (hangul > 0) & (hangul >= MIXED_HAN_SHARE * (han + hangul))
    chinese = ~japanese & ~korean & (han > 0)
    both = han + kana
    counts[japanese, column["Jpan"]] += both[japanese]
    counts[korean, column["Hang"]] += both[korean]
    counts[chinese & traditional, column["Hant"]] += both[chinese & traditional]
    counts[chinese & ~traditional, column["Hans"]] += both[chinese & ~traditional]
