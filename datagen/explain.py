"""Matches of decontamination side by side: the training text and the evaluation text.

Words that the other text lacks are in [brackets]; both excerpts start a little before the longest
run of words that they share. Every line is as wide as it is shown (East Asian letters take two
columns, marks none), each cell is isolated from the writing direction of the other, and control
characters are escaped, so that no text can upset the terminal.
"""

import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import UserError
from datagen.store import MANIFEST, Folder, read_manifest, read_table

FILES = ("removed.parquet", "matches.parquet", "rows.parquet")
TABLES = ("removed", "matches")
LEAD, UNITS, LINES = 6, 1000, 12  # words before what is shared; compared; lines shown
MINIMUM_WIDTH = 40
_JOINERS = "\u200c\u200d"  # invisible, but part of words
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff"
)
_UNIT = re.compile(rf"[{_DENSE}]|[^\s{_DENSE}]+")
_ISOLATE, _END = "\u2068", "\u2069"


def explain(output: str, *, count: int = 10, width: int | None = None) -> str:
    """The first `count` matches in a folder that decontamination wrote, the least alike first."""
    rows = [row for row in _matches(Folder(output)).to_pylist() if row["task"] is not None]
    rows.sort(key=lambda row: row["similarity"])
    columns = max(width or shutil.get_terminal_size((100, 24)).columns, MINIMUM_WIDTH)
    blocks = [_block(number, row, columns) for number, row in enumerate(rows[:count], 1)]
    return "\n".join([*blocks, f"{len(rows)} matches, {min(count, len(rows))} shown"])


def _matches(folder: Folder) -> pa.Table:
    if folder.exists(MANIFEST):
        written = {shard.table for shard in read_manifest(folder).shards}
        name = next((name for name in TABLES if name in written), None)
        if name is not None:
            return read_table(folder, name)
    for name in FILES:
        if folder.exists(name):
            return pq.read_table(pa.BufferReader(folder.read_bytes(name)))
    raise UserError(
        found=f"{folder.uri} holds no matches",
        expected="a folder that `datagen decontaminate` or the build step of that name wrote",
        do="run it first, or check --output",
        exit_status=2,
    )


def _block(number: int, row: Mapping[str, Any], width: int) -> str:
    column = row.get("matched_column")
    if column is None:  # of a build step
        where, text = "query" if row["doc_id"] is None else "document", row["text"]
    else:
        where, text = f"column {column}", row.get(f"input_{column}", row.get(column))
    source = f", source {row['source']}" if row.get("source") else ""
    head = f"{number}. {row['kind']} of {row['task']}: similarity {row['similarity']:.2f}, {where}"
    body = side_by_side(text or "", row["matched_text"] or "", width=width)
    return "\n".join([escape(head + source), *body, ""])


def side_by_side(one: str, other: str, *, width: int) -> list[str]:
    """Lines of two texts beside each other, at most `width` columns wide."""
    half = (width - 3) // 2
    cells = [list(wrapped(text.split(), half)) for text in marked(one, other)]
    lines = [["training text", "evaluation text"], ["-" * half, "-" * half]]
    for i in range(min(max(map(len, cells)), LINES)):
        lines.append([cell[i] if i < len(cell) else "" for cell in cells])
    if max(map(len, cells)) > LINES:
        lines.append(["..." if len(cell) > LINES else "" for cell in cells])
    return [f"{_cell(left, half)} | {_cell(right, half)}".rstrip() for left, right in lines]


def _cell(text: str, width: int) -> str:
    return f"{_ISOLATE}{text}{_END}" + " " * (width - display_width(text))


@dataclass(frozen=True)
class _Unit:
    """A word, or a letter where words have no blanks between them."""

    text: str
    form: str  # what is compared: no case, no punctuation
    blank: bool  # whether a blank follows


def _units(text: str) -> list[_Unit]:
    shown = escape(text)
    return [
        _Unit(found.group(), _form(found.group()), shown[found.end() : found.end() + 1].isspace())
        for found in islice(_UNIT.finditer(shown), UNITS)
    ]


def _form(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LMN")


def marked(one: str, other: str) -> tuple[str, str]:
    """Both texts around what they share, with what the other lacks in brackets."""
    units = _units(one), _units(other)
    a, b = ([unit.form for unit in side] for side in units)
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    longest = max(block.size for block in blocks)
    first = next(block for block in blocks if 4 * block.size >= longest)
    shared: tuple[set[int], set[int]] = set(), set()
    for block in blocks:
        shared[0].update(range(block.a, block.a + block.size))
        shared[1].update(range(block.b, block.b + block.size))
    starts = (first.a - LEAD, first.b - LEAD) if longest else (0, 0)
    left, right = (_render(*side) for side in zip(units, shared, starts, strict=True))
    return left, right


def _render(units: Sequence[_Unit], shared: set[int], start: int) -> str:
    text, inside = "... " if start > 0 else "", False
    for i in range(max(start, 0), len(units)):
        unit, after = units[i], units[i + 1 : i + 2]
        own = i not in shared and bool(unit.form)
        more = own and bool(after) and i + 1 not in shared and bool(after[0].form)
        text += ("[" if own and not inside else "") + unit.text + ("]" if own and not more else "")
        text += " " if unit.blank else ""
        inside = more
    return text


def escape(text: str) -> str:
    """The text with control and formatting characters spelled out, white space aside."""
    return "".join(
        f"\\u{ord(letter):04x}"
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co")
        and not letter.isspace()
        and letter not in _JOINERS
        else letter
        for letter in text
    )


def display_width(text: str) -> int:
    """Columns that a terminal needs for the text."""
    return sum(map(_letter_width, text))


def _letter_width(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def wrapped(words: Sequence[str], width: int) -> Iterator[str]:
    """Lines of at most `width` columns; a word that is wider is cut."""
    line = ""
    for word in words:
        for piece in _cut(word, width):
            longer = f"{line} {piece}" if line else piece
            if display_width(longer) > width:
                yield line
                longer = piece
            line = longer
    if line:
        yield line


def _cut(word: str, width: int) -> Iterator[str]:
    piece, used = "", 0
    for letter in word:
        used += _letter_width(letter)
        if used > width:
            yield piece
            piece, used = "", _letter_width(letter)
        piece += letter
    yield piece


def match_table(matches: Mapping[str, Mapping[str, int]]) -> str:
    """Matches of each evaluation task (lines) by source (columns), largest sums first."""
    if not matches:
        return "no text matches an evaluation set"
    sources = sorted({source for row in matches.values() for source in row})
    lines = [["evaluation set", *sources, "all"]]
    for task, row in sorted(matches.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        counts = [row.get(source, 0) for source in sources]
        lines.append([task, *map(str, counts), str(sum(counts))])
    widths = [max(display_width(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell + gap if i == 0 else gap + cell
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            for gap in [" " * (width - display_width(cell))]
        )
        for line in lines
    )
