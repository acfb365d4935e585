"""Translation memories (TMX): units of two or more segments, each in a language of its own.

The file is not parsed as one document. Its head is searched for what a translation memory has no
need of (declared entities, with which a few lines can fill any memory); then every `<tu>` is cut
out of the stream of bytes and parsed by itself, without a document type, so a broken one costs
itself. Cuts are counted once, when the work is planned. Memory is that of a unit; some 50 MB/s.

Text inside native codes (`bpt`, `ept`, `it`, `ph`, `ut`) is markup and left out, the text that they
stand around is kept. UTF-16, as some tools write it, is read as well. Format: TMX 1.4b.
"""

import codecs
import contextlib
import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datagen.codes import standard_tag
from datagen.schema import UserError
from datagen.sources import BYTES_PER_UNIT, ROWS_PER_UNIT
from datagen.sources.formats import DataFile, reading
from datagen.sources.lines import BLOCK_BYTES, MAX_BAD_BYTES, BadLine, Read

MAX_TU_BYTES = 1 << 24
HEAD_BYTES = 1 << 16
CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_START = re.compile(rb"<tu(?=[\s>])")
_END = re.compile(rb"</tu\s*>")


def tu_ranges(file: DataFile) -> list[dict[str, int]]:
    """Byte ranges of some thousand translation units each, with the number of the first (from 1).

    Offsets are those of the text as UTF-8, decompressed.
    """
    ranges: list[dict[str, int]] = []
    start = first = number = 0
    with _utf8(file) as read:
        for position in _starts(read):
            if number and (number - first >= ROWS_PER_UNIT or position - start >= BYTES_PER_UNIT):
                ranges.append({"start": start, "stop": position, "first": first + 1})
                start, first = position, number
            number += 1
            if number == 1:
                start = position
    if number:
        ranges.append({"start": start, "stop": -1, "first": first + 1})
    return ranges


def _starts(read: Read) -> Iterator[int]:
    offset, rest = 0, b""
    while block := read(BLOCK_BYTES):
        data = rest + block
        for match in _START.finditer(data):
            yield offset + match.start()
        rest = data[-3:]  # `<tu` without what follows it: never a whole match
        offset += len(data) - len(rest)


def read_tus(
    file: DataFile, part: Mapping[str, int], *, languages: Sequence[str]
) -> tuple[list[tuple[int, dict[str, Any]]], list[BadLine]]:
    """(number, {first, second}) of each unit of a range, and those that cannot be parsed.

    `languages` are the two tags to pair, `en` also standing for `en-GB`; a unit without one of them
    has None there.
    """
    records, bad = [], []
    wanted = [standard_tag(language).split("_")[0] for language in languages]
    for number, data in enumerate(_tus(file, part), part["first"]):
        segments, problem = _segments(data)
        if problem:
            reason = "unit_too_long" if len(data) > MAX_TU_BYTES else "broken_xml"
            bad.append(
                BadLine(line=number, reason=reason, error=problem, data=data[:MAX_BAD_BYTES])
            )
            continue
        found = {tag.split("_")[0]: text for tag, text in reversed(segments)}
        first, second = (found.get(language) for language in wanted)
        records.append((number, {"first": first, "second": second}))
    return records, bad


def languages_of(file: DataFile) -> list[str]:
    """Tags of the first unit, in its order; UserError when there is none that can be read."""
    parts = tu_ranges(file)[:1]
    for data in _tus(file, parts[0]) if parts else ():
        segments, problem = _segments(data)
        if not problem:
            return list(dict.fromkeys(tag for tag, _ in segments))
    raise UserError(
        found=f"{file.uri} has no translation unit that can be read",
        expected="<tu> elements with a <tuv xml:lang> for each language",
        do="check the file",
    )


def _tus(file: DataFile, part: Mapping[str, int]) -> Iterator[bytes]:
    """The bytes of every unit that starts inside the range; one without end up to the next."""
    with _utf8(file) as read:
        _pass_over(read, part["start"])
        left = part["stop"] - part["start"] if part["stop"] >= 0 else None
        buffer = b""
        while block := read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
            left = None if left is None else left - len(block)
            *whole, buffer = _START.split(buffer + block)
            yield from (_cut(b"<tu" + body) for body in whole if body.strip())
            # What follows the last start may go on; the split has taken the start off.
            buffer = (b"<tu" + buffer)[: MAX_TU_BYTES + 1] if buffer else b""
        if buffer:
            yield _cut(buffer)


def _cut(data: bytes) -> bytes:
    end = _END.search(data)
    return data[: end.end()] if end else data


def _pass_over(read: Read, count: int) -> None:
    while count and (block := read(min(count, BLOCK_BYTES))):
        count -= len(block)


def _segments(data: bytes) -> tuple[list[tuple[str, str]], str]:
    """([(tag, text)], what is wrong with the unit)."""
    if len(data) > MAX_TU_BYTES:
        return [], f"the unit has more than {MAX_TU_BYTES:,} bytes"
    try:
        unit = ET.fromstring(data)
    except (ET.ParseError, ValueError) as error:
        return [], str(error)[:300]
    found = []
    for variant in unit.iter("tuv"):
        tag, segment = variant.get(XML_LANG) or variant.get("lang"), variant.find("seg")
        if tag and segment is not None:
            found.append((standard_tag(tag), "".join(_text(segment)).strip()))
    return found, ""


def _text(element: ET.Element) -> Iterator[str]:
    if element.tag not in CODES:
        yield element.text or ""
        for child in element:
            yield from _text(child)
            yield child.tail or ""


@contextlib.contextmanager
def _utf8(file: DataFile) -> Iterator[Read]:
    """The file as UTF-8, its head checked."""
    with reading(file) as read:
        head = read(HEAD_BYTES)
        encoding = _encoding(head, file)
        _check_head(head.decode(encoding, "replace"), file)
        stream = _Stream(source=read, held=head)
        if encoding != "utf-8":
            stream.decoder = codecs.getincrementaldecoder(encoding)("strict")
        try:
            yield stream.read
        except UnicodeDecodeError as error:
            raise UserError(
                found=f"{file.uri} is not valid {encoding}: {error}",
                expected="the encoding that it declares",
                do="convert the file to UTF-8",
            ) from error


def _encoding(head: bytes, file: DataFile) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    declared = re.match(rb"(?:\xef\xbb\xbf)?<\?xml[^>]*encoding=[\"']([\w.-]+)", head)
    name = declared[1].decode() if declared else "utf-8"
    try:
        return codecs.lookup(name).name
    except LookupError as error:
        raise UserError(
            found=f"{file.uri} is in the encoding {name!r}",
            expected="UTF-8, UTF-16 or another encoding that Python knows",
            do="convert the file to UTF-8",
        ) from error


def _check_head(head: str, file: DataFile) -> None:
    before, _, _ = head.partition("<body")
    if "<!ENTITY" in before:
        raise UserError(
            found=f"{file.uri} declares XML entities",
            expected="a translation memory without: they can make a few lines fill any memory",
            do="check where the file is from; write the texts out",
        )
    if "<tmx" not in before:
        raise UserError(
            found=f"{file.uri} does not start as a translation memory does",
            expected="<tmx> with a <body> of <tu> elements",
            do="check the file",
        )


@dataclasses.dataclass(kw_only=True)
class _Stream:
    """A stream whose first bytes have been read, as UTF-8."""

    source: Read
    held: bytes
    decoder: codecs.IncrementalDecoder | None = None
    buffer: bytearray = dataclasses.field(default_factory=bytearray)

    def read(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data, self.held = self.held or self.source(count), b""
            if self.decoder is not None:
                self.buffer += self.decoder.decode(data, not data).encode("utf-8")
            else:
                self.buffer += data
            if not data:
                break
        found = bytes(self.buffer[:count])
        del self.buffer[:count]
        return found
