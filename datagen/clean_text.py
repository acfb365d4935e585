"""Normalise texts and source code, a column at a time.

Natural text goes through named normalisers, each of which can be switched off: HTML entities,
mojibake, line ends and control characters, NFC, blanks. Each has a pattern that finds, in a whole
column at once, every text that it could change; only these become Python strings. Most columns have
few, so that cleaning costs little more than reading: some 500 MB/s and core for clean text.

Mojibake (UTF-8 that was read as Latin-1 or Windows-1252) is mended only where the whole text can be
put back, and carries signs that such texts and no others have; `ftfy` goes further and guesses.
"""

import dataclasses
import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

# White space other than the newline, as Python's str.split() sees it; Rust's \s lacks U+001C-001F.
_BLANK = "\t\x0b\x0c\r\x1c-\x1f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});"
_ENTITIES = re.compile(_ENTITY)
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_LONG_BLANKS = f"[{_BLANK}]{{2,}}|[{_BLANK.replace(' ', '')}]"
_BLANKS = re.compile(_LONG_BLANKS)
_NEWLINES = re.compile(r" +\n *|\n +")
_GAPS = re.compile(r"\n{3,}")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_ZERO_WIDTH_SPACE = (
    "\u200b"  # parts words in Thai, Lao, Tibetan, Burmese and Khmer; noise elsewhere
)
_WRITTEN_WITHOUT_BLANKS = re.compile("[\u0e00-\u109f\u1780-\u17ff]")

# What is not NFC has a mark, or one of these: forms with a canonical twin, and Hangul parts.
_NOT_NFC = (
    r"[\p{M}\x{374}\x{37e}\x{387}\x{958}-\x{fff}\x{1161}-\x{11ff}\x{1f71}-\x{1fff}\x{2000}\x{2001}"
    r"\x{2126}\x{212a}\x{212b}\x{2329}\x{232a}\x{2adc}\x{f900}-\x{fadf}\x{fb1d}-\x{fb4f}"
    r"\x{1d15e}-\x{1d1c0}\x{2f800}-\x{2fa1f}]"
)


def _cp1252(code: int) -> str:
    return bytes([code]).decode("cp1252", "ignore")


def _removed_characters() -> dict[int, str | None]:
    removed: dict[int, str | None] = dict.fromkeys([*range(0x20), 0x7F])
    # C1 controls are what Windows-1252 quotes and dashes become when read as Latin-1.
    removed.update({code: _cp1252(code) or None for code in range(0x80, 0xA0)})
    for kept in (0x09, 0x0A):
        del removed[kept]
    removed[0xAD] = None  # soft hyphen
    removed.update(dict.fromkeys([0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F)]))  # bidi marks
    removed.update(dict.fromkeys([*range(0x2066, 0x206A), 0x2060]))  # isolates, word joiner
    # Byte order mark, object placeholder, no characters
    removed.update(dict.fromkeys([0xFEFF, 0xFFFC, 0xFFFE, 0xFFFF]))
    return removed


_REMOVED = _removed_characters()
_REMOVED_CLASS = "".join(rf"\x{{{code:x}}}" for code in [*_REMOVED, ord(_ZERO_WIDTH_SPACE)])
_CHARACTERS = rf"[{_REMOVED_CLASS}\x{{2028}}\x{{2029}}]"

# Bytes of UTF-8 as Windows-1252 shows them, and as Latin-1 does where that has no character.
_AS_BYTES = {ord(_cp1252(code)): code for code in range(0x80, 0xA0) if _cp1252(code)}
_CONTINUATION = "[\x80-\xbf" + "".join(map(chr, sorted(_AS_BYTES))) + "]"
_MOJIBAKE = f"[\xc2-\xf4]{_CONTINUATION}"
# Latin letters, signs and quotes give themselves away; of other scripts it takes a few letters.
_SIGN = re.compile(f"[\xc2\xc3]{_CONTINUATION}|\xe2[\x80\u20ac]{_CONTINUATION}")
_SEQUENCES = re.compile(_MOJIBAKE)
_MIN_SEQUENCES = 4
_C1 = re.compile("[\x80-\x9f]")


def resolve_entities(text: str) -> str:
    """`&amp;` and `&#38;` as `&`; a name that HTML does not have stays."""
    return _ENTITIES.sub(lambda match: html.unescape(match.group()), text)


def mend_mojibake(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1, once or more often, as it was."""
    while _SIGN.search(text) or len(_SEQUENCES.findall(text)) >= _MIN_SEQUENCES:
        try:
            mended = text.translate(_AS_BYTES).encode("latin-1").decode("utf-8")
        except UnicodeError:
            return text
        if _C1.search(mended):
            return text
        text = mended
    return text


def drop_controls(text: str) -> str:
    """Every line end as `\\n`; no control, formatting or byte order characters."""
    text = _LINE_ENDS.sub("\n", text).translate(_REMOVED)
    if _ZERO_WIDTH_SPACE in text and not _WRITTEN_WITHOUT_BLANKS.search(text):
        text = text.replace(_ZERO_WIDTH_SPACE, "")
    return text


def compose(text: str) -> str:
    """NFC."""
    return unicodedata.normalize("NFC", text)


def join_blanks(text: str) -> str:
    """One blank for each run of them, none around newlines and at the ends, one empty line."""
    return _GAPS.sub("\n\n", _NEWLINES.sub("\n", _BLANKS.sub(" ", text))).strip(" \n")


def join_blanks_of_column(texts: pl.Series) -> pl.Series:
    """`join_blanks` on every text: the one change that a fifth of all documents needs."""
    text = texts.str.replace_all(_LONG_BLANKS, " ").str.replace_all(_NEWLINES.pattern, "\n")
    return text.str.replace_all(_GAPS.pattern, "\n\n").str.strip_chars(" \n")


def _one_by_one(change: Callable[[str], str]) -> Callable[[pl.Series], pl.Series]:
    return lambda texts: pl.Series(texts.name, [change(text) for text in texts], dtype=pl.String)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normaliser:
    """One change of a text; `pattern` (of Rust's regex) is found in every text that it changes."""

    pattern: str
    change: Callable[[str], str]
    column: Callable[[pl.Series], pl.Series] | None = None  # the same for a column, where faster


NORMALISERS: Mapping[str, Normaliser] = {
    "entities": Normaliser(pattern=_ENTITY, change=resolve_entities),
    "mojibake": Normaliser(pattern=_MOJIBAKE, change=mend_mojibake),
    "controls": Normaliser(pattern=_CHARACTERS, change=drop_controls),
    "nfc": Normaliser(pattern=_NOT_NFC, change=compose),
    "blanks": Normaliser(
        pattern=rf"{_LONG_BLANKS}| \n|\n |\n\n\n|^[ \n]|[ \n]$",
        change=join_blanks,
        column=join_blanks_of_column,
    ),
}


def clean_text(text: str, normalisers: Sequence[str] = tuple(NORMALISERS)) -> str:
    """The text as it is kept."""
    for name in normalisers:
        text = NORMALISERS[name].change(text)
    return text


def clean_code(code: str) -> str:
    """Source code without trailing blanks and outer blank lines; idempotent."""
    lines = _TRAILING.sub("", code.replace("\r\n", "\n").removeprefix("\ufeff"))
    return lines.strip("\n")


_CODE = Normaliser(pattern=r"\r\n|[ \t](?:\n|$)|^\x{feff}|^\n|\n$", change=clean_code)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A cleaned column, and the rows that each normaliser changed."""

    texts: pl.Series
    changed: Mapping[str, np.ndarray]

    @property
    def rows(self) -> np.ndarray:
        """All rows that were changed, in order."""
        return np.unique(np.concatenate([*self.changed.values(), np.empty(0, np.int64)]))


def clean_column(
    texts: pl.Series, code: np.ndarray, *, normalisers: Sequence[str] = tuple(NORMALISERS)
) -> Cleaned:
    """`clean_code` on the rows where `code` is set, `clean_text` on the others."""
    changed: dict[str, np.ndarray] = {}
    rows = np.flatnonzero(~code)
    rows = rows[_dirty(_take(texts, rows), normalisers)]
    for name in normalisers:
        texts, changed[name] = _apply(texts, rows, NORMALISERS[name])
    texts, changed["code"] = _apply(texts, np.flatnonzero(code), _CODE)
    return Cleaned(texts=texts, changed={name: rows for name, rows in changed.items() if len(rows)})


def _dirty(texts: pl.Series, normalisers: Sequence[str]) -> np.ndarray:
    """Positions of the texts that a normaliser could change."""
    dirty = np.zeros(len(texts), bool)
    patterns = [NORMALISERS[name].pattern for name in normalisers if name != "nfc"]
    if patterns:
        dirty |= texts.str.contains("|".join(patterns)).to_numpy()
    if "nfc" in normalisers:
        # Most languages have marks, and most of their texts are NFC all the same.
        marked = np.flatnonzero(~dirty & texts.str.contains(_NOT_NFC).to_numpy())
        strings = _take(texts, marked).to_list()
        dirty[marked] = [not unicodedata.is_normalized("NFC", text) for text in strings]
    return np.flatnonzero(dirty)


def _take(texts: pl.Series, rows: np.ndarray) -> pl.Series:
    return texts if len(rows) == len(texts) else texts.gather(rows)


def _apply(
    texts: pl.Series, rows: np.ndarray, normaliser: Normaliser
) -> tuple[pl.Series, np.ndarray]:
    """The column normalised in the given rows, and the rows where that made a difference."""
    if not len(rows):
        return texts, rows
    found = rows[_take(texts, rows).str.contains(normaliser.pattern).to_numpy()]
    before = texts.gather(found)
    after = (normaliser.column or _one_by_one(normaliser.change))(before)
    differs = (after != before).to_numpy()
    if not differs.any():
        return texts, found[:0]
    place = np.arange(len(texts))
    place[found] = len(texts) + np.arange(len(found))
    return pl.concat([texts, after]).gather(place), found[differs]
