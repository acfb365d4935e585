"""What each code point becomes under `fold`, as arrays that a compiled loop can look up.

`python -m datagen.fold_tables` makes the tables from `fold`'s own expressions and from the Unicode
data of Python, and a test that they are still the same; making them in each process would take a
quarter of a second. A text with a code point that needs more than a lookup (jamo, compatibility
forms that combine, superscripts, code points that were unknown then) is flagged COMPLEX and takes
the way through the expressions.
"""

import functools
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from datagen.fold import CODE, INVISIBLE, PUNCTUATION, QUOTES, RAISED, UNSEGMENTED

SIZE = 0x20000  # code points above (rare ideographs) are COMPLEX
SPACE, DROP, PUNCT, DIGIT, CODE_SIGN, LETTER, COMPLEX, DENSE = (1 << i for i in range(8))
FILE = "fold_tables.npz"
_BITS = 21  # of a code point; three fit into 64 bits


class Tables(NamedTuple):
    """Arrays over code points, and the sorted pairs `first << 21 | second` that compose."""

    classes: np.ndarray  # uint8: flags
    combining: np.ndarray  # uint8: canonical combining class
    trailing: np.ndarray  # uint8: combining class of the last mark in a composed letter
    maybe: np.ndarray  # bool: may compose with what precedes
    last: np.ndarray  # int32: what the compatibility form ends with
    emitted: np.ndarray  # int64: up to three code points, lower case, the first in the low bits
    letters: np.ndarray  # int32: lower case of a letter that nothing else can happen to, else 0
    straight: np.ndarray  # int32: quotes in one form, for commands and formulas
    pairs: np.ndarray  # int64


@functools.cache
def tables() -> Tables:
    """The tables, read once per process."""
    with np.load(Path(__file__).with_name(FILE), allow_pickle=False) as arrays:
        return Tables(**arrays)


def make_tables() -> Tables:
    """The tables, by the definitions."""
    points = np.array([c for c in range(SIZE) if not 0xD800 <= c < 0xE000])
    texts = [chr(c) for c in points]
    maybe, pairs = _compositions()
    classes = _classes(points, texts, maybe)
    last, emitted = np.arange(SIZE, dtype=np.int32), np.arange(SIZE, dtype=np.int64)
    combining, trailing = np.zeros((2, SIZE), dtype=np.uint8)
    column = pl.Series("text", texts)
    lower = (
        column.str.normalize("NFKC").str.to_lowercase().str.replace_many(["ß", "ς"], ["ss", "σ"])
    )
    for c, text, form in zip(points.tolist(), texts, lower.to_list(), strict=True):
        combining[c] = unicodedata.combining(text)
        trailing[c] = unicodedata.combining(unicodedata.normalize("NFD", text)[-1])
        wide = unicodedata.normalize("NFKC", text)
        if (form == text and wide == text) or classes[c] & DROP:
            continue
        last[c] = ord(wide[-1])
        if _is_complex(c, text, wide, form, maybe):
            classes[c] |= COMPLEX
        else:
            emitted[c] = sum(ord(part) << (_BITS * i) for i, part in enumerate(form))
    straight = np.arange(SIZE, dtype=np.int32)
    for quotes, plain_quote in QUOTES.items():
        straight[[ord(c) for c in quotes]] = ord(plain_quote)
    is_letter = classes & ~np.uint8(DENSE) == LETTER
    alone = is_letter & (combining == 0) & (trailing == 0) & ~maybe & (last == np.arange(SIZE))
    alone &= (emitted > 0) & (emitted < SIZE)
    alone[alone] = is_letter[emitted[alone]]
    letters = np.where(alone, emitted, 0).astype(np.int32)
    return Tables(classes, combining, trailing, maybe, last, emitted, letters, straight, pairs)


def _is_complex(c: int, text: str, wide: str, form: str, maybe: np.ndarray) -> bool:
    """Whether a code point that folding changes needs more than a lookup."""
    if wide != text and (maybe[c] or unicodedata.combining(text)):
        return True
    if unicodedata.normalize("NFC", text) != text or not 1 <= len(form) <= 3:
        return True
    if any(ord(p) >= SIZE for p in wide + form):
        return True
    # Lower case is taken last: its marks (İ becomes two code points) compose with nothing.
    return any(maybe[ord(p)] or unicodedata.combining(p) for p in wide)


def _compositions() -> tuple[np.ndarray, np.ndarray]:
    maybe, pairs = np.zeros(SIZE, dtype=bool), []
    for c in range(SIZE):
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            one, other = (int(part, 16) for part in parts)
            if unicodedata.normalize("NFC", chr(one) + chr(other)) == chr(c):
                pairs.append(one << _BITS | other)
                maybe[other] = True
    return maybe, np.array(sorted(pairs), dtype=np.int64)


def _classes(points: np.ndarray, texts: list[str], maybe: np.ndarray) -> np.ndarray:
    column, classes = pl.Series("text", texts), np.zeros(SIZE, dtype=np.uint8)
    patterns = {
        SPACE: r"\s",
        DROP: INVISIBLE,
        PUNCT: PUNCTUATION,
        DIGIT: r"\d",
        CODE_SIGN: CODE,
        LETTER: r"\pL",
        COMPLEX: RAISED,
        DENSE: UNSEGMENTED,
    }
    for flag, pattern in patterns.items():
        classes[points[column.str.contains(pattern).to_numpy()]] |= flag
    known = np.array([unicodedata.category(text) != "Cn" for text in texts])
    changed = np.array([unicodedata.normalize("NFC", text) != text for text in texts])
    classes[points[~known | changed]] |= COMPLEX
    classes[0x1100:0x1200] |= COMPLEX  # jamo compose by arithmetic
    classes[0] |= COMPLEX  # no code point is how `emitted` says that nothing follows
    return classes


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name(FILE), **make_tables()._asdict())
