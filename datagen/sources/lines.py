"""Rows out of the bytes of JSONL, CSV and TSV files, with the lines that could not be read.

Lines end at the newline byte alone (U+2028 and its kin are text, not line ends) and are decoded one
by one, so a broken line costs that line. A CSV record whose quotes do not close would swallow what
follows: it costs its first line, and reading goes on at the next one.

A file is read block by block and each block becomes a table, so that beside the rows themselves no
more than a block is in memory; a line without end is cut, rejected and passed over.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.schema import UserError

MAX_FIELD_CHARACTERS = 1_000_000  # of a CSV field; bounds what an unclosed quote can swallow
MAX_LINE_BYTES = 1 << 26
MAX_BAD_BYTES = 4_000  # kept of a line that could not be read
BLOCK_BYTES = 1 << 24
BLOCK_ROWS = 16_384
BOM = b"\xef\xbb\xbf"

Read = Callable[[int], bytes]  # of a stream: at most so many bytes, none at its end


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that could not be read; `line` counts from 1."""

    line: int
    reason: str
    error: str
    data: bytes


Records = tuple[list[tuple[int, dict[str, Any]]], list[BadLine]]  # (number, object); bad lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """Rows of one file; `positions[i]` is row i's line (from 1) or, in tables, its row (from 0)."""

    table: pa.Table
    positions: Sequence[int] | np.ndarray
    bad: Sequence[BadLine] = ()


def line_blocks(read: Read, *, first_line: int = 1) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first one, lines) of each block of a stream.

    A line longer than MAX_LINE_BYTES is cut to one byte more than that; its rest is passed over.
    """
    number, rest, passing = first_line, b"", False
    while block := read(BLOCK_BYTES):
        if passing:
            end = block.find(b"\n")
            if end < 0:
                continue
            block, passing = block[end:], False
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_LINE_BYTES:
            rest, passing = rest[: MAX_LINE_BYTES + 1], True
        if lines:
            yield number, lines
            number += len(lines)
    if rest:
        yield number, [rest]


def decode_jsonl(data: bytes) -> Decoded:
    """Rows of JSON lines as a table."""
    return join_decoded([as_table(*parse_lines(data.split(b"\n")))])


def jsonl_records(read: Read, *, first_line: int = 1) -> Iterator[Records]:
    """The objects of a stream of JSON lines, block by block."""
    for number, lines in line_blocks(read, first_line=first_line):
        yield parse_lines(lines, first_line=number)


def as_table(records: list[tuple[int, dict[str, Any]]], bad: list[BadLine]) -> Decoded:
    return Decoded(
        table=_table([record for _, record in records]),
        positions=[line for line, _ in records],
        bad=bad,
    )


def join_decoded(parts: Sequence[Decoded]) -> Decoded:
    """The parts of one file as one table; a column of several types is made one as in a block."""
    if len(parts) == 1:
        return parts[0]
    positions = [np.asarray(part.positions, np.int64) for part in parts]
    return Decoded(
        table=_joined([part.table for part in parts if part.table.num_rows]),
        positions=np.concatenate([np.zeros(0, np.int64), *positions]),
        bad=[bad for part in parts for bad in part.bad],
    )


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        names = list(dict.fromkeys(name for table in tables for name in table.column_names))
        return pa.table({name: _joined_column(tables, name) for name in names})


def _joined_column(tables: Sequence[pa.Table], name: str) -> pa.Array | pa.ChunkedArray:
    parts = [t.select([name]) if name in t.column_names else t.select([]) for t in tables]
    try:
        with_nulls = [
            p if p.num_columns else pa.table({name: pa.nulls(t.num_rows)})
            for p, t in zip(parts, tables, strict=True)
        ]
        return pa.concat_tables(with_nulls, promote_options="permissive")[name]
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return _column([value for part in with_nulls for value in part[name].to_pylist()])


def value_records(values: Sequence[Any], *, escapes: bool) -> Iterator[Records]:
    """The objects in a list of JSON values, numbered from 1 as lines are."""
    for start in range(0, len(values), BLOCK_ROWS):
        records, bad = [], []
        for number, value in enumerate(values[start : start + BLOCK_ROWS], start + 1):
            reason, error = row_problem(value, escapes=escapes)
            if reason:
                data = json.dumps(value).encode()[:MAX_BAD_BYTES]
                bad.append(BadLine(line=number, reason=reason, error=error, data=data))
            else:
                records.append((number, value))
        yield records, bad


def parse_lines(lines: Sequence[bytes], *, first_line: int = 1) -> Records:
    """(line number, object) of every line, and the bad lines; blank lines are no rows."""
    records, bad = [], []
    for number, line in enumerate(lines, first_line):
        line = line.removeprefix(BOM) if number == 1 else line
        if not line.strip():
            continue
        value, reason, error = _json_object(line)
        if reason:
            bad.append(BadLine(line=number, reason=reason, error=error, data=line[:MAX_BAD_BYTES]))
        else:
            records.append((number, value))
    return records, bad


def _json_object(line: bytes) -> tuple[dict[str, Any], str, str]:
    """(row, reason, error); reason is empty when the row is good."""
    if len(line) > MAX_LINE_BYTES:
        return {}, "line_too_long", f"the line has more than {MAX_LINE_BYTES:,} bytes"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeError as error:
        return {}, "invalid_utf8", str(error)[:300]
    except (ValueError, RecursionError) as error:
        return {}, "broken_json", str(error)[:300]
    return value, *row_problem(value, escapes=b"\\u" in line)


def row_problem(value: Any, *, escapes: bool) -> tuple[str, str]:
    """(reason, error) for a JSON value that is no row; both are empty when it is one.

    `escapes` says whether it was written with any: only they can make a lone surrogate, which is
    legal JSON, but no text.
    """
    if not isinstance(value, dict):
        return "not_an_object", f"the line is a JSON {type(value).__name__}, not an object"
    try:
        if escapes:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        return "invalid_utf8", str(error)[:300]
    except RecursionError as error:
        return "broken_json", str(error)[:300]
    return "", ""


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        # Values without a common Arrow type (1 and "a") all become text: JSON for what is not text.
        return pa.array(
            [
                v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False)
                for v in values
            ]
        )


def decode_delimited(data: bytes, *, delimiter: str, where: str) -> Decoded:
    """Rows of a CSV or TSV file, all columns as text; the first record names the columns."""
    read = io.BytesIO(data).read
    return join_decoded(list(delimited_tables(read, delimiter=delimiter, where=where)))


def delimited_tables(read: Read, *, delimiter: str, where: str) -> Iterator[Decoded]:
    """Rows of a stream of CSV or TSV, all columns as text, a table for each block.

    The first record names the columns. A TSV line whose quotes do not close is read with its quotes
    as plain characters: few writers of TSV quote at all.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    names: list[str] | None = None
    number, lines = 1, list[str]()
    for block, last in _text_blocks(read):
        lines += block
        start = 0
        if names is None:
            header = next(_records(lines, delimiter=delimiter, last=last), None)
            if header is None:
                continue
            names, start = _column_names(header, where=where), header.end
        found = list(_records(lines, delimiter=delimiter, start=start, width=len(names), last=last))
        yield _delimited_table(found, names, lines, first_line=number)
        # A record that the block cuts is read again with the next one.
        done = found[-1].end if found else start
        number, lines = number + done, lines[done:]


def _text_blocks(read: Read) -> Iterator[tuple[list[str], bool]]:
    """(lines with their newlines, whether they are the last) of each block."""
    held: list[str] | None = None
    for number, lines in line_blocks(read):
        if held is not None:
            yield held, False
        if number == 1:
            lines[0] = lines[0].removeprefix(BOM)
        held = [line.decode("utf-8", "surrogateescape") + "\n" for line in lines]
    if held is not None:
        yield held, True


def _delimited_table(
    records: Sequence["_Record"], names: list[str], lines: Sequence[str], *, first_line: int
) -> Decoded:
    good = [record for record in records if not record.problem]
    columns = zip(*(record.fields for record in good), strict=True) if good else ((),) * len(names)
    bad = [
        BadLine(
            line=first_line + record.start,
            reason=record.reason,
            error=record.problem,
            data=_bytes(lines[record.start])[:MAX_BAD_BYTES],
        )
        for record in records
        if record.problem
    ]
    return Decoded(
        table=pa.table([pa.array(column, pa.string()) for column in columns], names=names),
        positions=[first_line + record.start for record in good],
        bad=bad,
    )


def _bytes(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape").rstrip(b"\r\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Record:
    """Fields of the lines start..end (exclusive), or what is wrong with line `start`."""

    start: int
    end: int
    fields: list[str]
    reason: str = ""
    problem: str = ""


def _column_names(header: _Record, *, where: str) -> list[str]:
    names = header.fields
    if header.problem or len(set(names)) < len(names) or "" in names:
        raise UserError(
            found=f"{where}: {header.problem or 'header ' + ', '.join(map(repr, names))}",
            expected="a first line with one distinct name for each column",
            do="mend the header",
        )
    return names


def _records(
    lines: Sequence[str],
    *,
    delimiter: str,
    start: int = 0,
    width: int | None = None,
    last: bool = True,
) -> Iterator[_Record]:
    """Every record from line `start` on; after a bad one, reading resumes at the line behind it.

    Unless these are the last lines, a record that reaches their end may go on: it is not given.
    """
    reader = _reader(lines, start, delimiter)
    base = start
    while start < len(lines):
        fields, problem = _next_fields(reader)
        end = max(base + reader.line_num, start + 1)
        if end >= len(lines) and not last:
            return
        record = _checked(lines, start, end, fields, problem, width, delimiter)
        if record is not None:
            yield record
            end = record.end
        if end != base + reader.line_num:
            reader, base = _reader(lines, end, delimiter), end
        start = end


def _reader(lines: Sequence[str], start: int, delimiter: str) -> Any:
    # strict: an unclosed quote is an error, not a field that holds the rest of the file.
    rest = (lines[i] for i in range(start, len(lines)))
    return csv.reader(rest, delimiter=delimiter, strict=True)


def _next_fields(reader: Any) -> tuple[list[str], str]:
    try:
        return next(reader, []), ""
    except csv.Error as error:
        return [], str(error)


def _checked(
    lines: Sequence[str],
    start: int,
    end: int,
    fields: list[str],
    problem: str,
    width: int | None,
    delimiter: str,
) -> _Record | None:
    """The record as it is to be used; None for a blank line."""
    reason = "broken_csv"
    if 4 * len(lines[start]) > MAX_LINE_BYTES and len(_bytes(lines[start])) > MAX_LINE_BYTES:
        reason, problem = "line_too_long", f"the line has more than {MAX_LINE_BYTES:,} bytes"
        return _Record(start=start, end=start + 1, fields=[], reason=reason, problem=problem)
    if not problem and not any(fields) and not lines[start].strip():
        return None
    if not problem and width is not None and len(fields) != width:
        reason, problem = "wrong_field_count", f"{len(fields)} fields, the header has {width}"
    if problem and delimiter == "\t":
        plain = lines[start].rstrip("\r\n").split("\t")
        if len(plain) == width:
            fields, problem, end = plain, "", start + 1
    if not problem and not _is_text("".join(fields)):
        reason, problem = "invalid_utf8", "the line is not valid UTF-8"
    if problem:
        return _Record(start=start, end=start + 1, fields=[], reason=reason, problem=problem)
    return _Record(start=start, end=end, fields=fields)


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
