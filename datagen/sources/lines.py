"""Rows out of the bytes of JSONL, CSV and TSV files, with the lines that could not be read.

Lines end at the newline byte alone (U+2028 and its kin are text, not line ends) and are decoded one
by one, so a broken line costs that line. A CSV record whose quotes do not close would swallow what
follows: it costs its first line, and reading goes on at the next one.
"""

import csv
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from datagen.schema import UserError

MAX_FIELD_CHARACTERS = 1_000_000  # of a CSV field; bounds what an unclosed quote can swallow
BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that could not be read; `line` counts from 1."""

    line: int
    reason: str
    error: str
    data: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """Rows of one file; `positions[i]` is row i's line (from 1) or, in tables, its row (from 0)."""

    table: pa.Table
    positions: Sequence[int]
    bad: Sequence[BadLine] = ()


def decode_jsonl(data: bytes) -> Decoded:
    """Rows of JSON lines as a table."""
    records, bad = parse_jsonl(data)
    return Decoded(
        table=_table([record for _, record in records]),
        positions=[line for line, _ in records],
        bad=bad,
    )


def parse_jsonl(
    data: bytes, *, first_line: int = 1
) -> tuple[list[tuple[int, dict[str, Any]]], list[BadLine]]:
    """(line number, object) of every line, and the bad lines; blank lines are no rows."""
    records, bad = [], []
    for number, line in enumerate(data.split(b"\n"), first_line):
        line = line.removeprefix(BOM) if number == 1 else line
        if not line.strip():
            continue
        value, reason, error = _json_object(line)
        if reason:
            bad.append(BadLine(line=number, reason=reason, error=error, data=line))
        else:
            records.append((number, value))
    return records, bad


def _json_object(line: bytes) -> tuple[dict[str, Any], str, str]:
    """(row, reason, error); reason is empty when the row is good."""
    try:
        value = json.loads(line.decode("utf-8"))
        if not isinstance(value, dict):
            return {}, "not_an_object", f"the line is a JSON {type(value).__name__}, not an object"
        # A lone surrogate such as "\ud800" is legal JSON, but no text.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        return {}, "invalid_utf8", str(error)[:300]
    except (ValueError, RecursionError) as error:
        return {}, "broken_json", str(error)[:300]
    return value, "", ""


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
    """Rows of a CSV or TSV file, all columns as text; the first record names the columns.

    A TSV line whose quotes do not close is read with its quotes as plain characters: few writers of
    TSV quote at all.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    lines = data.removeprefix(BOM).decode("utf-8", "surrogateescape").split("\n")
    lines = [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
    records = _records(lines, delimiter=delimiter)
    header = next(records, None)
    if header is None:
        return Decoded(table=pa.table({}), positions=[])
    names = _column_names(header, where=where)
    rows, positions, bad = [], [], []
    for record in _records(lines, delimiter=delimiter, start=header.end, width=len(names)):
        if record.problem:
            line = lines[record.start].encode("utf-8", "surrogateescape").rstrip(b"\r\n")
            bad.append(
                BadLine(
                    line=record.start + 1, reason=record.reason, error=record.problem, data=line
                )
            )
        else:
            rows.append(record.fields)
            positions.append(record.start + 1)
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    arrays = [pa.array(column, pa.string()) for column in columns]
    return Decoded(table=pa.table(arrays, names=names), positions=positions, bad=bad)


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
    lines: Sequence[str], *, delimiter: str, start: int = 0, width: int | None = None
) -> Iterator[_Record]:
    """Every record from line `start` on; after a bad one, reading resumes at the line behind it."""
    reader = _reader(lines, start, delimiter)
    base = start
    while start < len(lines):
        fields, problem = _next_fields(reader)
        end = max(base + reader.line_num, start + 1)
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
