"""Pairs out of a data set of any layout that an adapter knows, from the Hub or from a local copy.

Each table of the adapter is a list of file patterns: the rows, and for layouts that name texts by
id the tables that hold them. A unit is a slice of the rows of one file, or all rows of a table for
adapters that must see it whole; it reads its files from the Hub's cache. The other tables are
streamed once per unit and only the texts that its rows name are kept, so memory does not grow with
them. A file with one huge row group is decoded from its start by every slice: that is why slices
are larger here than those of other sources.

Subsets of `nvidia/embed-nemotron-dataset-v1` say in their own metadata whether their texts are
withheld; the texts are then taken by row number out of the repository that is named there.
"""

import dataclasses
import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import TASKS, UserError
from datagen.sources import SourceRows, check_choice, files, hub
from datagen.sources.adapters import adapt, check, collect, named
from datagen.sources.formats import DataFile, decode, file_errors, tables
from datagen.sources.shapes import ADAPTERS
from datagen.sources.tables import check_columns

SLICE_ROWS = 20_000
BATCH_ROWS = 4_000
METADATA, RESTORE = "dataset_metadata.json", "source_config.json"  # beside a released subset
TEXT_COLUMNS = {"id": "_id", "title": "title", "text": "text"}

Place = Mapping[str, str]  # {repo, commit} or {folder}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedSource:
    """A data set read by an adapter; `tables` gives the file patterns of each of its tables.

    `texts` names the columns id, title and text of the tables that hold texts. A `released` subset
    is described by metadata beside its rows. With `folder`, a local copy is read and not the Hub.
    """

    name: str
    task: str
    adapter: str
    columns: Mapping[str, str]
    tables: Mapping[str, Sequence[str]]
    repo: str
    revision: str = "main"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] = dataclasses.field(default_factory=lambda: TEXT_COLUMNS)
    instruction: str | None = None
    licence: str | None = None
    language: str | None = None
    query_language: str | None = None
    document_language: str | None = None
    code: bool = False  # documents are source code
    released: bool = False
    max_rows_per_file: int | None = None  # evenly spaced over the file
    folder: str | None = None

    def __post_init__(self) -> None:
        check_choice(self.task, TASKS, what="task")
        check(self.adapter, self.columns, self.options)
        missing = [role for role in ADAPTERS[self.adapter].tables if not self.tables.get(role)]
        if missing:
            raise UserError(
                found=f"source {self.name!r} names no files of its {' and '.join(missing)}",
                expected="file patterns for " + ", ".join(ADAPTERS[self.adapter].tables),
                do="complete `tables`",
                exit_status=2,
            )

    def config(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        del fields["folder"]  # the same content elsewhere is the same source
        place = self._place()
        config = {"kind": "adapted", **fields, "content": place}
        if self.folder:
            config["content"] = self._content()
        if self.released:
            _, spec, texts = self._resolved()
            config["instruction"] = spec["instruction"]
            config["texts_in"] = {r: t["place"] for r, t in texts.items() if t["place"] != place}
        return config

    def plan(self) -> list[dict[str, Any]]:
        chosen, spec, texts = self._resolved()
        place = self._place()
        base = {"kind": "adapted", "source": self.name, "place": place, "spec": spec}
        base["texts"] = texts
        if ADAPTERS[self.adapter].whole:
            return [{**base, "files": chosen["rows"], "part": None}]
        return [
            {**base, "files": [name], "part": part}
            for name in chosen["rows"]
            for part in self._parts(place, name)
        ]

    def _resolved(self) -> tuple[dict[str, list[str]], dict[str, Any], dict[str, dict[str, Any]]]:
        """(files of each table, how to read the rows, where their texts are)."""
        place = self._place()
        found = _list_files(place)
        chosen = {role: _matching(found, self.tables[role], place=place) for role in self.tables}
        spec, texts = self._spec(), self._texts(chosen, place)
        if self.released:
            spec, texts = _released(spec, texts, place=place, rows=chosen["rows"][0])
        return chosen, spec, texts

    def _content(self) -> list[dict[str, Any]]:
        chosen, place = self._resolved()[0], self._place()
        names = sorted({name for names in chosen.values() for name in names})
        return [
            {"file": name, **files.identity(DataFile(uri=_local(place, name), name=name))}
            for name in names
        ]

    def _place(self) -> dict[str, str]:
        if self.folder:
            return {"folder": str(Path(self.folder).absolute())}
        return {"repo": self.repo, "commit": hub.resolve_commit(self.repo, self.revision)}

    def _spec(self) -> dict[str, Any]:
        fields = ("adapter", "task", "instruction", "licence", "language", "query_language",
                  "document_language", "code")  # fmt: skip
        spec = {name: getattr(self, name) for name in fields}
        return {
            **spec, "source": self.name, "columns": dict(self.columns),
            "options": dict(self.options),
        }  # fmt: skip

    def _texts(self, chosen: Mapping[str, list[str]], place: Place) -> dict[str, dict[str, Any]]:
        return {
            role: {"place": place, "files": names, "columns": dict(self.texts), "prefix": None}
            for role, names in chosen.items()
            if role != "rows"
        }

    def _parts(self, place: Place, name: str) -> list[dict[str, int] | None]:
        """Slices of the rows that are taken: `of` rows in the file, the taken ones by number."""
        if not name.endswith(".parquet"):
            return [None]
        rows = _parquet_rows(place, name, self.columns)
        taken = min(rows, self.max_rows_per_file or rows)
        starts = range(0, taken, SLICE_ROWS)
        return [
            {"of": rows, "taken": taken, "start": start, "stop": min(start + SLICE_ROWS, taken)}
            for start in starts
        ]


def _list_files(place: Place) -> list[str]:
    if "folder" in place:
        root = Path(place["folder"])
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    with hub.hub_errors(place["repo"], place["commit"]):
        hub.api().auth_check(place["repo"], repo_type="dataset")
        return sorted(
            hub.api().list_repo_files(place["repo"], repo_type="dataset", revision=place["commit"])
        )


def _matching(names: Sequence[str], patterns: Sequence[str], *, place: Place) -> list[str]:
    """The data files that any of the patterns names, sorted."""
    known = [name for name in sorted(names) if DataFile(uri=name, name=name).format]
    found = [n for n in known if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
    if not found:
        raise UserError(
            found=f"{_name(place)}: no data file matches " + " or ".join(patterns[:10])
            + "; it has " + (", ".join(known[:10]) or "none"),
            expected="the files of that table",
            do="check the revision, or the local copy",
        )  # fmt: skip
    return found


def _name(place: Place) -> str:
    return place.get("folder") or f"{place['repo']}@{place['commit'][:7]}"


def _local(place: Place, name: str) -> str:
    """Where the file is on this machine; fetched into the Hub's cache when it is not there."""
    if "folder" in place:
        return os.path.join(place["folder"], name)
    with hub.hub_errors(place["repo"], place["commit"]):
        return hub.api().hf_hub_download(
            place["repo"], name, repo_type="dataset", revision=place["commit"]
        )


def _parquet_rows(place: Place, name: str, columns: Mapping[str, str]) -> int:
    if "folder" in place:
        with file_errors(name), pq.ParquetFile(_local(place, name)) as parquet:
            needed_columns(columns, parquet.schema_arrow.names, where=name)
            return int(parquet.metadata.num_rows)
    with hub.open_parquet(place["repo"], place["commit"], name) as parquet:
        needed_columns(columns, parquet.schema_arrow.names, where=f"{_name(place)}/{name}")
        return int(parquet.metadata.num_rows)


def needed_columns(columns: Mapping[str, str], names: Sequence[str], *, where: str) -> list[str]:
    """The columns of the table that the map names; UserError for one that is not there.

    A title is taken where the table has one.
    """
    needed: list[str] = []
    for name, column in columns.items():
        matches = [n for n in names if n == column or fnmatch.fnmatchcase(n, column)]
        head = column.partition(".")[0]
        matches = matches or [n for n in names if n == head]
        if not matches and name != "title":
            check_columns({column: column}, names, where=where)
        needed += matches
    return sorted(set(needed))


def _released(
    spec: dict[str, Any], texts: dict[str, dict[str, Any]], *, place: Place, rows: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The subset's own instruction, and where its texts are when the release has only ids."""
    folder = os.path.dirname(rows)
    metadata = _json(place, f"{folder}/{METADATA}")
    spec = {**spec, "instruction": metadata.get("query_instruction") or spec["instruction"]}
    if not metadata.get("ids_only"):
        return spec, texts
    restore = _json(place, f"{folder}/{RESTORE}")
    return {**spec, "options": {**spec["options"], "ids_only": True}}, _restored(restore)


def _json(place: Place, name: str) -> dict[str, Any]:
    with file_errors(name), open(_local(place, name), "rb") as stream:
        return json.load(stream)


def _upstream(repo: str) -> Place:
    return {"repo": repo, "commit": hub.resolve_commit(repo, "main")}


def _restored(restore: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Where the texts `q_<row>` and `d_<row>` of a subset are, by its `source_config.json`."""
    place = _upstream(restore["source_repo"])
    names = _list_files(place)
    tables: dict[str, tuple[str | None, str, str]]
    if restore["loader_config"] == "mteb":
        tables = {
            "queries": ("queries", "queries", "text"),
            "documents": ("corpus", "corpus", "text"),
        }
    else:
        where = (restore.get("subset"), restore["split"])
        tables = {
            "queries": (*where, restore["query_column"]),
            "documents": (*where, restore["document_column"]),
        }
    texts = {}
    for (role, (subset, split, column)), prefix in zip(tables.items(), ("q_", "d_"), strict=True):
        patterns = hub.file_patterns(subset, split) + ([f"{subset}.*"] if subset else [])
        texts[role] = {
            "place": place,
            "files": _matching(names, patterns, place=place),
            "columns": {"text": column},
            "prefix": prefix,
        }
    return texts


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one unit."""
    place, spec, rows = unit["place"], unit["spec"], SourceRows()
    records: list[tuple[str, dict[str, Any]]] = []
    for name in unit["files"]:
        found, unread, rejected = _records(place, name, unit["part"], spec=spec)
        records += found
        rows.quarantined += rejected
        rows.dropped.update({"over_source_cap": unread} if unread else {})
    rows.rows_in = len(rows.quarantined) + rows.dropped.total()
    made = adapt(records, spec, texts=_wanted_texts(records, unit))
    return SourceRows(
        rows_in=rows.rows_in + made.rows_in,
        pairs=made.pairs,
        quarantined=rows.quarantined + made.quarantined,
        dropped=rows.dropped + made.dropped,
    )


def _records(
    place: Place, name: str, part: dict[str, int] | None, *, spec: Mapping[str, Any]
) -> tuple[list[tuple[str, dict[str, Any]]], int, list[dict[str, Any]]]:
    """(rows with their names, how many were passed over, QUARANTINE rows of broken lines)."""
    if not name.endswith(".parquet"):
        file = DataFile(uri=_local(place, name), name=name)
        decoded = decode(file)
        needed_columns(spec["columns"], decoded.table.column_names, where=name)
        table = zip(decoded.positions, decoded.table.to_pylist(), strict=True)
        rows = [(f"{name}:{position}", record) for position, record in table]
        bad = [files.rejected_line(file, line, source=spec["source"]) for line in decoded.bad]
        return rows, 0, bad
    with file_errors(name), pq.ParquetFile(_local(place, name)) as parquet:
        total = parquet.metadata.num_rows
        part = part or {"of": total, "taken": total, "start": 0, "stop": total}
        needed = needed_columns(spec["columns"], parquet.schema_arrow.names, where=name)
        first, last = _row(part, part["start"]), _row(part, part["stop"])
        wanted = {_row(part, i) for i in range(part["start"], part["stop"])}
        rows = [
            (f"{name}#{row}", record)
            for row, record in _stream(parquet, needed, first=first, last=last)
            if row in wanted
        ]
    return rows, last - first - len(rows), []


def _row(part: Mapping[str, int], number: int) -> int:
    """The row of the file that is the `number`-th to be taken."""
    return number * part["of"] // part["taken"] if part["taken"] else 0


def _stream(
    parquet: pq.ParquetFile, columns: list[str], *, first: int, last: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    position = 0
    for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns):
        start, stop = max(first - position, 0), min(last - position, batch.num_rows)
        if start < stop:
            yield from enumerate(batch.slice(start, stop - start).to_pylist(), position + start)
        position += batch.num_rows
        if position >= last:
            return


def _wanted_texts(
    records: Sequence[tuple[str, dict[str, Any]]], unit: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Only the texts that the records name."""
    adapter = ADAPTERS[unit["spec"]["adapter"]]
    ids: dict[str, set[str]] = {role: set() for role in unit["texts"]}
    for _, record in records:
        for role, identifier in adapter.wanted(named(record, unit["spec"]["columns"])):
            if role in ids:
                ids[role].add(str(identifier))
    return {
        role: collect(_batches(table), table["columns"], wanted=ids[role], prefix=table["prefix"])
        for role, table in unit["texts"].items()
    }


def _batches(table: Mapping[str, Any]) -> Iterator[pa.Table]:
    for name in table["files"]:
        file = DataFile(uri=_local(table["place"], name), name=name)
        for piece in tables(file, list(table["columns"].values())):
            needed_columns(table["columns"], piece.table.column_names, where=name)
            yield piece.table
