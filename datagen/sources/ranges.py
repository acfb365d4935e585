"""Ranges of lines of JSONL files: how one large file becomes units of bounded memory.

The cuts are counted once, when the work is planned. A compressed file has no place to start from
but its first byte: every unit expands what lies before its range, so there units are larger, and
data that is to be read fast is better kept in files of some GB.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from datagen.sources import BYTES_PER_UNIT, ROWS_PER_UNIT
from datagen.sources.formats import DataFile, file_errors, reading
from datagen.sources.lines import BLOCK_BYTES, Read, Records, jsonl_records
from datagen.store import resolve

COMPRESSED_UNITS = 2  # times as large


def line_ranges(file: DataFile) -> list[dict[str, int]]:
    """Byte ranges of whole lines, each with the number of its first line (from 1).

    A range ends with ROWS_PER_UNIT lines or the line that makes BYTES_PER_UNIT. Offsets are those
    of the decompressed file.
    """
    times = COMPRESSED_UNITS if file.compression else 1
    ranges, start, first_line, lines, offset = [], 0, 1, 0, 0
    with reading(file) as read:
        while block := read(BLOCK_BYTES):
            ends = offset + 1 + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            offset += len(block)
            while len(ends):
                by_bytes = int(np.searchsorted(ends, start + times * BYTES_PER_UNIT))
                last = min(times * ROWS_PER_UNIT - lines - 1, by_bytes)
                if last >= len(ends):
                    lines += len(ends)
                    break
                stop, lines, ends = int(ends[last]), lines + last + 1, ends[last + 1 :]
                ranges.append({"start": start, "stop": stop, "first_line": first_line})
                start, first_line, lines = stop, first_line + lines, 0
    if start < offset:
        ranges.append({"start": start, "stop": offset, "first_line": first_line})
    return ranges


def range_records(file: DataFile, lines: Mapping[str, int]) -> Iterator[Records]:
    """The rows of one range of lines, piece by piece."""
    with _open_at(file, lines["start"]) as source:
        part = _Part(source=source, left=lines["stop"] - lines["start"])
        yield from jsonl_records(part.read, first_line=lines["first_line"])


@dataclasses.dataclass(kw_only=True)
class _Part:
    """The next `left` bytes of a stream."""

    source: Read
    left: int

    def read(self, count: int) -> bytes:
        data = self.source(min(count, self.left)) if self.left else b""
        self.left -= len(data)
        return data


@contextlib.contextmanager
def _open_at(file: DataFile, start: int) -> Iterator[Read]:
    if file.compression is None:
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri), filesystem.open_input_file(place) as stream:
            stream.seek(start)
            yield stream.read
        return
    with reading(file) as read:
        while start and (block := read(min(start, BLOCK_BYTES))):
            start -= len(block)
        yield read
