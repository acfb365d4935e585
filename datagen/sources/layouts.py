"""Pairs out of files in the layout of another trainer, local or by URI, without a map of columns.

The layout is named, or told by the columns of the first file, and then said in the source's
configuration. A layout is a map of columns and an adapter (see `layout_table`); the files are read
in units of bounded memory: row groups of Parquet, ranges of lines, batches of Arrow, translation
units. Where rows name documents by id, each unit streams the documents and keeps those it needs.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.codes import standard_tag
from datagen.schema import TASKS, UserError, rejected_row
from datagen.sources import SourceRows, check_choice, files, tmx
from datagen.sources.adapted import needed_columns
from datagen.sources.adapters import adapt, check, collect, named
from datagen.sources.automodel import Gathered, gather
from datagen.sources.formats import (
    DataFile,
    file_errors,
    open_arrow,
    records,
    sound,
    tables,
)
from datagen.sources.layout_table import LAYOUTS, TYPES, detect_layout, layout_columns
from datagen.sources.lines import BadLine, Decoded
from datagen.sources.messages import read_messages
from datagen.sources.parquet import parts, read_table
from datagen.sources.ranges import line_ranges, range_records
from datagen.sources.shapes import ADAPTERS
from datagen.store import resolve

BATCHES_PER_UNIT = 16  # of Arrow files; datasets writes 1,000 rows each
log = logging.getLogger("embedmix")

Numbered = list[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutSource:
    """Files or folders of one layout.

    `split` is that of a folder written by `save_to_disk`; `documents` are files or folders with the
    columns id and text, where rows name them by id. `options` are those of the layout's adapter:
    `min_score` of scored pairs, `languages` of a translation memory.
    """

    name: str
    paths: tuple[str, ...]
    layout: str | None = None
    task: str | None = None  # what the layout says, unless given
    split: str | None = None
    documents: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    instruction: str | None = None
    licence: str | None = None
    language: str | None = None
    query_language: str | None = None
    document_language: str | None = None

    def __post_init__(self) -> None:
        if self.task is not None:
            check_choice(self.task, TASKS, what="task")
        if self.layout is not None:
            check_choice(self.layout, LAYOUTS, what="layout")

    @cached_property
    def _gathered(self) -> Gathered:
        return gather(self.paths, split=self.split, documents=self.documents)

    @cached_property
    def _spec(self) -> dict[str, Any]:
        """How the rows are read, as JSON: layout, adapter, columns, options and constants."""
        name, columns = self._layout()
        layout = LAYOUTS[name]
        options = {**layout.options, **self.options}
        if name == "tmx" and "languages" not in options:
            options["languages"] = _two_languages(self._gathered.files[0])
        if name == "tmx":
            options["languages"] = [standard_tag(tag) for tag in options["languages"]]
        missing = [option for option in layout.needed if option not in options]
        if missing:
            raise UserError(
                found=f"source {self.name!r} of layout {name} without option {missing[0]}",
                expected=f"{missing[0]}, e.g. min_score 0.8 where scores go up to 1",
                do=f"give options={{{missing[0]!r}: ...}}",
                exit_status=2,
            )
        check(layout.adapter, columns, options)
        log.info("%s: layout %s (%s)", self.name, name, layout.about)
        constants = ("licence", "language", "query_language", "document_language")
        return {
            "source": self.name,
            "layout": name,
            "adapter": layout.adapter,
            "task": self.task or layout.task,
            "columns": columns,
            "options": options,
            "instruction": self.instruction or self._gathered.instruction,
            "code": False,
            **{constant: getattr(self, constant) for constant in constants},
        }

    def _layout(self) -> tuple[str, dict[str, str]]:
        first = self._gathered.files[0]
        by_format = {layout.format: name for name, layout in LAYOUTS.items() if layout.format}
        if first.format in by_format:
            name = by_format[first.format]
            if self.layout not in (None, name):
                raise UserError(
                    found=f"{first.uri} is of layout {name}, not {self.layout}",
                    expected="files of the layout that is named",
                    do="mend the layout or the paths",
                    exit_status=2,
                )
            return name, {n: columns[0] for n, columns in LAYOUTS[name].columns.items()}
        found = _columns_of(first)
        documents = bool(self._gathered.documents)
        name = self.layout or detect_layout(found, where=first.uri, documents=documents)
        if LAYOUTS[name].adapter == "by_ids" and not documents:
            raise UserError(
                found=f"source {self.name!r}: rows that name documents by id, and no documents",
                expected="files with the columns id and text",
                do="give them as `documents`",
                exit_status=2,
            )
        return name, layout_columns(name, found, where=first.uri)

    def config(self) -> dict[str, Any]:
        gathered = self._gathered
        return {
            "kind": "layout",
            **self._spec,
            "split": self.split,
            "content": [{"file": f.name, **files.identity(f)} for f in gathered.files],
            "documents": [{"file": f.name, **files.identity(f)} for f in gathered.documents],
        }

    def plan(self) -> list[dict[str, Any]]:
        spec = self._spec
        documents = [_place(file) for file in self._gathered.documents]
        base = {"kind": "layout", "source": self.name, "spec": spec, "documents": documents}
        wholes = [_place(file) for file in self._gathered.files]
        if ADAPTERS[spec["adapter"]].whole:
            return [{**base, "parts": [{**file, "part": None} for file in wholes]}]
        return [
            {**base, "parts": [{**place, "part": part}]}
            for file, place in zip(self._gathered.files, wholes, strict=True)
            for part in _parts(file, spec["columns"])
        ]


def _place(file: DataFile) -> dict[str, str]:
    # Workers run in other folders: a local path must be absolute there.
    return {"uri": file.uri if "://" in file.uri else resolve(file.uri)[1], "name": file.name}


def _columns_of(file: DataFile) -> list[str]:
    if file.format == "parquet":
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri), pq.ParquetFile(place, filesystem=filesystem) as parquet:
            return list(parquet.schema_arrow.names)
    return list(next(tables(file)).table.column_names)


def _two_languages(file: DataFile) -> list[str]:
    found = tmx.languages_of(file)
    if len(found) != 2:
        raise UserError(
            found=f"{file.uri} has the languages " + ", ".join(found),
            expected="two of them to pair",
            do='give options={"languages": ["en", "de"]}',
            exit_status=2,
        )
    return found


def _parts(file: DataFile, columns: Mapping[str, str]) -> Sequence[Mapping[str, int] | None]:
    """What the units of one file are; None is all of it."""
    if file.format == "parquet":
        filesystem, place = resolve(file.uri)
        with file_errors(file.uri), pq.ParquetFile(place, filesystem=filesystem) as parquet:
            needed_columns(columns, parquet.schema_arrow.names, where=file.uri)
            return parts(parquet.metadata)
    if file.format == "jsonl":
        return line_ranges(file)
    if file.format == "tmx":
        return tmx.tu_ranges(file)
    if file.format == "arrow":
        with file_errors(file.uri), open_arrow(file) as (_, batches):
            count = sum(1 for _ in batches)
        return [{"batch": start} for start in range(0, count, BATCHES_PER_UNIT)]
    return [None]


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one unit."""
    spec, rows = unit["spec"], SourceRows()
    records: Numbered = []
    for place in unit["parts"]:
        file = DataFile(uri=place["uri"], name=place["name"])
        for found, rejected in _records(file, place["part"], spec):
            records += found
            rows.quarantined += rejected
    rows.rows_in = len(rows.quarantined)
    texts = {"documents": _wanted(records, unit)} if unit["documents"] else None
    for task, group in _by_task(records, spec, rows):
        made = adapt(group, {**spec, "task": task}, texts=texts)
        rows.rows_in += made.rows_in
        rows.pairs += made.pairs
        rows.quarantined += made.quarantined
        rows.dropped += made.dropped
    return rows


def _records(
    file: DataFile, part: Mapping[str, int] | None, spec: Mapping[str, Any]
) -> Iterator[tuple[Numbered, list[dict[str, Any]]]]:
    """Pieces of (named records, QUARANTINE rows)."""
    bad: Sequence[BadLine]
    if file.format == "tmx":
        found, bad = tmx.read_tus(file, part or {}, languages=spec["options"]["languages"])
        yield _named(file, found), _rejected(file, bad, spec)
    elif file.format == "po":
        messages = read_messages(file, language=spec["options"]["language"])
        yield _named(file, messages), []
    elif file.format == "parquet" and part is not None:
        with file_errors(file.uri):
            table = _parquet_part(file, part, spec)
        yield _piece(sound(table, file, first=part["first_row"]), file, spec)
    elif file.format == "arrow" and part is not None:
        for piece in _arrow_part(file, part):
            needed_columns(spec["columns"], piece.table.column_names, where=file.uri)
            yield _piece(piece, file, spec)
    else:
        for found, bad in range_records(file, part) if part else records(file):
            needed_columns(_must(spec), _names(found), where=file.uri)
            yield _named(file, found), _rejected(file, bad, spec)


def _names(numbered: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
    return sorted({name for _, record in numbered for name in record})


def _must(spec: Mapping[str, Any]) -> dict[str, str]:
    """The columns that every file must have: in lines, others may be absent."""
    required = ADAPTERS[spec["adapter"]].required
    return {name: column for name, column in spec["columns"].items() if name in required}


def _named(file: DataFile, numbered: Any) -> Numbered:
    return [(f"{file.name}{file.mark}{number}", record) for number, record in numbered]


def _rejected(
    file: DataFile, bad: Sequence[BadLine], spec: Mapping[str, Any]
) -> list[dict[str, Any]]:
    return [files.rejected_line(file, line, source=spec["source"]) for line in bad]


def _parquet_part(file: DataFile, part: Mapping[str, int], spec: Mapping[str, Any]) -> pa.Table:
    filesystem, place = resolve(file.uri)
    with pq.ParquetFile(place, filesystem=filesystem) as parquet:
        names = parquet.schema_arrow.names
        needed = needed_columns(spec["columns"], names, where=file.uri)
        needed += ["type"] if spec["layout"] == "flagembedding" and "type" in names else []
        return read_table(parquet, dict(part), needed)


def _arrow_part(file: DataFile, part: Mapping[str, int]) -> Iterator[Decoded]:
    first = 0
    with file_errors(file.uri), open_arrow(file) as (_, batches):
        for number, batch in enumerate(batches):
            if number >= part["batch"] + BATCHES_PER_UNIT:
                return
            if number >= part["batch"]:
                yield sound(pa.Table.from_batches([batch]), file, first=first)
            first += batch.num_rows


def _piece(
    piece: Decoded, file: DataFile, spec: Mapping[str, Any]
) -> tuple[Numbered, list[dict[str, Any]]]:
    numbered = zip(piece.positions, piece.table.to_pylist(), strict=True)
    return _named(file, numbered), _rejected(file, piece.bad, spec)


def _by_task(
    records: Numbered, spec: Mapping[str, Any], rows: SourceRows
) -> Iterator[tuple[str, Numbered]]:
    """The records in runs of one task; what FlagEmbedding calls the type of a row decides it."""
    groups: dict[str, Numbered] = {spec["task"]: []}
    for row, record in records:
        kind = record.get("type") if spec["layout"] == "flagembedding" else None
        if kind in (None, "", "normal"):
            groups[spec["task"]].append((row, record))
        elif kind in TYPES:
            groups.setdefault(TYPES[kind], []).append((row, record))
        else:
            error = f"type {kind!r} is none of normal, " + ", ".join(TYPES)
            rejected = {"source": spec["source"], "provenance": {"row": row}, "record": record}
            rows.quarantined.append(rejected_row(rejected, reason="unknown_type", error=error))
            rows.rows_in += 1
    yield from groups.items()


def _wanted(records: Numbered, unit: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{id: {title, text}} of the documents that the records name."""
    spec = unit["spec"]
    adapter = ADAPTERS[spec["adapter"]]
    pairs = (adapter.wanted(named(record, spec["columns"])) for _, record in records)
    ids = {str(identifier) for role, identifier in chain(*pairs) if role == "documents"}
    columns = {"id": "id", "title": "title", "text": "text"}
    pieces = (
        _with_columns(piece.table, columns, where=place["uri"])
        for place in unit["documents"]
        for piece in tables(DataFile(uri=place["uri"], name=place["name"]))
        if piece.table.num_rows
    )
    return collect(pieces, columns, wanted=ids)


def _with_columns(table: pa.Table, columns: Mapping[str, str], *, where: str) -> pa.Table:
    return table.select(needed_columns(columns, table.column_names, where=where))
