"""Evaluation tasks on disk: a folder with task.json and parquet tables, read and checked.

Every task of a run is checked before the model is loaded, so that a missing column costs a second
and not an evaluation. A folder may be local or a URI.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datagen.schema import TASKS, UserError
from datagen.store import Folder
from trainer.scoring import METRICS, mteb_metadata, score_task

log = logging.getLogger("embedmix")

TASK_FILE = "task.json"
# Per type, its tables and their columns. `?` marks a column that may be absent or null.
TABLES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "retrieval": {
        "queries": {"query_id": "text", "text": "text"},
        "documents": {"doc_id": "text", "title": "text?", "text": "text"},
        "qrels": {"query_id": "text", "doc_id": "text", "score": "integer"},
    },
    "sts": {"pairs": {"text_a": "text", "text_b": "text", "score": "number"}},
    "bitext": {"pairs": {"text_a": "text", "text_b": "text"}},
    "classification": {
        "train": {"text": "text", "label": "text"},
        "test": {"text": "text", "label": "text"},
    },
    "clustering": {"items": {"text": "text", "label": "text"}},
    "pair_classification": {"pairs": {"text_a": "text", "text_b": "text", "label": "integer"}},
}
_ARROW = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64()}
_TEXT_MAY_BE = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)
_ID_MAY_BE = (*_TEXT_MAY_BE, pa.types.is_integer, pa.types.is_boolean)  # ids and labels


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """One task with its tables in memory; `digest` is the sha256 of its files."""

    name: str
    type: str
    languages: tuple[str, ...]
    instruction: str | None
    folder: str
    digest: str
    tables: Mapping[str, pa.Table]

    @property
    def two_sided(self) -> bool:
        """Whether queries and documents are told apart."""
        return self.type == "retrieval"

    @property
    def rows(self) -> dict[str, int]:
        return {name: table.num_rows for name, table in self.tables.items()}

    @property
    def metadata(self) -> Any:
        """As mteb has it."""
        return mteb_metadata(self)

    @property
    def main_metric(self) -> str:
        return METRICS[self.type][2]

    def load(self) -> None:
        """The tables are in memory."""

    def score(self, encoder: Any, *, batch_size: int) -> dict[str, Any]:
        """All scores of mteb, and `main_score`."""
        return score_task(self, encoder, batch_size=batch_size)

    def unload(self) -> None:
        """The tables stay."""


def find_tasks(places: str | Sequence[str], *, only: Sequence[str] = ()) -> list[str]:
    """Task folders behind the given places: a task, a folder of tasks, or a folder with `tasks/`.

    Sorted inside a place, each folder once; `only` keeps the named types. Raises UserError when a
    place holds no task, or two tasks have one name.
    """
    unknown = sorted(set(only) - set(TASKS))
    if unknown:
        raise UserError(
            found=f"task type {', '.join(unknown)}",
            expected="one of " + ", ".join(TASKS),
            do="mend the list of types",
            exit_status=2,
        )
    folders: dict[str, str] = {}  # name -> folder
    for place in [places] if isinstance(places, str) else places:
        for uri in _task_folders(place):
            head = _read_head(Folder(uri))
            known = folders.setdefault(head["name"], uri)
            if Folder(known).path() != Folder(uri).path():
                raise UserError(
                    found=f"two tasks named {head['name']!r}: {known} and {uri}",
                    expected="one name per task, since results are kept by name",
                    do=f"rename one of them in its {TASK_FILE}",
                )
            if only and head["type"] not in only:
                del folders[head["name"]]
    if not folders:
        raise UserError(
            found=f"no task of type {', '.join(only)} in {places}",
            expected="at least one",
            do="name other types or other folders",
        )
    return list(folders.values())


def _task_folders(place: str) -> list[str]:
    if Folder(place).exists(TASK_FILE):
        return [place]
    for root in (Folder(place), Folder(place).folder("tasks")):
        found = [root.folder(n) for n in root.names() if root.folder(n).exists(TASK_FILE)]
        if found:
            return [folder.uri for folder in found]
    raise UserError(
        found=f"no {TASK_FILE} in {place}, {place}/* or {place}/tasks/*",
        expected="a task folder, or a folder of task folders",
        do="check the path given as --tasks",
    )


def _read_head(folder: Folder) -> dict[str, Any]:
    """The content of task.json, checked."""
    where = f"{folder.uri}/{TASK_FILE}"
    try:
        head = folder.read_json(TASK_FILE)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _broken(where, f"not JSON: {error}", "a JSON object") from error
    if not isinstance(head, dict):
        raise _broken(where, f"a JSON {type(head).__name__}", "a JSON object")
    for key in ("name", "type"):
        if not isinstance(head.get(key), str) or not head[key]:
            raise _broken(where, f"{key} is {head.get(key)!r}", "text")
    if head["type"] not in TABLES:
        raise _broken(where, f"unknown type {head['type']!r}", "one of " + ", ".join(TABLES))
    languages = head.get("languages", [])
    if not isinstance(languages, list) or not all(isinstance(x, str) for x in languages):
        raise _broken(where, f"languages is {languages!r}", "a list of codes such as deu_Latn")
    if not isinstance(head.get("instruction"), str | None):
        raise _broken(where, f"instruction is {head['instruction']!r}", "text or null")
    return head


def _broken(where: str, found: str, expected: str) -> UserError:
    return UserError(found=f"{where}: {found}", expected=expected, do="mend the task folder")


def load_task(uri: str) -> EvaluationTask:
    """Read a task folder; UserError names the file and column of the first fault."""
    folder = Folder(uri)
    head = _read_head(folder)
    digest = hashlib.sha256(folder.read_bytes(TASK_FILE))
    tables = {}
    for name, columns in TABLES[head["type"]].items():
        where = f"{uri}/{name}.parquet"
        if not folder.exists(f"{name}.parquet"):
            raise _broken(where, "no such file", f"the table {name!r} of a {head['type']} task")
        data = folder.read_bytes(f"{name}.parquet")
        digest.update(hashlib.sha256(data).digest())
        tables[name] = _read_table(data, columns, where=where)
    task = EvaluationTask(
        name=head["name"],
        type=head["type"],
        languages=tuple(head.get("languages", [])),
        instruction=head.get("instruction"),
        folder=uri,
        digest=digest.hexdigest(),
        tables=tables,
    )
    _CHECKS[task.type](task)
    return task


def _read_table(data: bytes, columns: Mapping[str, str], *, where: str) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise _broken(where, f"not readable as parquet: {error}", "a parquet file") from error
    if not table.num_rows:
        raise _broken(where, "no rows", "at least one row")
    return pa.table(
        {
            name: _read_column(table, name, kind, where=where)
            for name, kind in columns.items()
            if name in table.column_names or not kind.endswith("?")
        }
    )


def _read_column(table: pa.Table, name: str, kind: str, *, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise _broken(where, f"no column {name!r}", f"a column {name!r} of {kind}")
    column, wanted = table[name], kind.rstrip("?")
    if column.null_count and kind.endswith("?"):
        column = pc.fill_null(column, "")
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise _broken(where, f"column {name!r} is null in row {row}", wanted)
    textual = _TEXT_MAY_BE if name.startswith("text") else _ID_MAY_BE
    if wanted == "text" and not any(test(column.type) for test in textual):
        raise _broken(where, f"column {name!r} is {column.type}", wanted)
    if wanted != "text" and any(test(column.type) for test in _TEXT_MAY_BE):
        raise _broken(where, f"column {name!r} is {column.type}", wanted)
    try:
        return column.cast(_ARROW[wanted])
    except pa.ArrowException as error:
        raise _broken(where, f"column {name!r}: {error}", wanted) from error


def _check_retrieval(task: EvaluationTask) -> None:
    for name, key in (("queries", "query_id"), ("documents", "doc_id")):
        column = task.tables[name][key]
        if pc.count_distinct(column).as_py() < len(column):
            counts = pc.value_counts(column)
            repeated = next(c for c in counts.to_pylist() if c["counts"] > 1)
            where = f"{task.folder}/{name}.parquet"
            found = f"{key} {repeated['values']!r} occurs {repeated['counts']} times"
            raise _broken(where, found, f"each {key} once")
    qrels = task.tables["qrels"]
    for name, key in (("queries", "query_id"), ("documents", "doc_id")):
        known = pc.is_in(qrels[key], value_set=task.tables[name][key].combine_chunks())
        matched = pc.sum(known).as_py()
        if not matched:
            where = f"{task.folder}/qrels.parquet"
            found = f"no {key} is one of {name}.parquet (first: {qrels[key][0].as_py()!r})"
            raise _broken(where, found, f"ids of {name}.parquet")
        if matched < qrels.num_rows:
            gone = qrels.num_rows - matched
            log.warning("%s: %d qrels name a %s that is absent", task.name, gone, key)


def _check_labels(task: EvaluationTask) -> None:
    for name, table in task.tables.items():
        found = pc.count_distinct(table["label"]).as_py()
        if found < 2 and name != "test":
            where = f"{task.folder}/{name}.parquet"
            raise _broken(where, "column 'label' has one value", "at least two labels")


def _check_pair_labels(task: EvaluationTask) -> None:
    found = sorted(pc.unique(task.tables["pairs"]["label"]).to_pylist())
    if found != [0, 1]:
        where = f"{task.folder}/pairs.parquet"
        raise _broken(where, f"column 'label' has the values {found[:5]}", "both 0 and 1")


def _check_pairs(task: EvaluationTask) -> None:
    if task.tables["pairs"].num_rows < 2:
        raise _broken(f"{task.folder}/pairs.parquet", "one row", "at least two rows")


_CHECKS = {
    "retrieval": _check_retrieval,
    "sts": _check_pairs,
    "bitext": _check_pairs,
    "classification": _check_labels,
    "clustering": _check_labels,
    "pair_classification": _check_pair_labels,
}
