"""Evaluation tasks on disk: which texts they test with, and which texts belong together.

A task folder has `task.json` (name, type, ...) and Parquet tables by type: retrieval (queries,
documents, qrels), sts, bitext and pair_classification (pairs), classification (test; its train
table is training data and no secret) and clustering (items).
"""

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import UserError, format_document
from datagen.store import Folder

TASK = "task.json"
# Tables of each type that hold test texts, with the columns that are needed of them.
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "retrieval": {
        "queries": ("query_id", "text"),
        "documents": ("doc_id", "text"),
        "qrels": ("query_id", "doc_id", "score"),
    },
    "sts": {"pairs": ("text_a", "text_b")},
    "bitext": {"pairs": ("text_a", "text_b")},
    "pair_classification": {"pairs": ("text_a", "text_b")},
    "classification": {"test": ("text", "label")},
    "clustering": {"items": ("text", "label")},
}


@dataclass(frozen=True, kw_only=True)
class TaskTexts:
    """The texts of one task: (kind, text) with kind query or document, and (query, document)."""

    name: str
    texts: tuple[tuple[str, str], ...]
    pairs: tuple[tuple[str, str], ...]


def find_tasks(uri: str) -> list[Folder]:
    """The task folders behind a path: itself, the folders in it, or those in its `tasks`."""
    folder = Folder(uri)
    if folder.exists(TASK):
        return [folder]
    places = [folder.folder(name) for name in folder.names()]
    places += [folder.folder(f"tasks/{name}") for name in folder.folder("tasks").names()]
    tasks = [place for place in places if place.exists(TASK)]
    if not tasks:
        raise UserError(
            found=f"{uri}: no {TASK} there, in its folders or in the folders of its `tasks`",
            expected=f"an evaluation task (a folder with {TASK} and its Parquet tables), or "
            "a folder of them",
            do="check the path",
            exit_status=2,
        )
    return tasks


def task_digest(folder: Folder) -> tuple[str, str]:
    """Name of a task and sha256 over its description and the tables that are read of it."""
    name, tables = _description(folder)
    digest = hashlib.sha256(folder.read_bytes(TASK))
    for table, needed in tables.items():
        digest.update(_read(folder, table, needed)[1])
    return name, digest.hexdigest()


def read_task(folder: Folder) -> TaskTexts:
    """All texts of one task folder; UserError when a table or column is missing."""
    name, columns = _description(folder)
    tables = {table: _read(folder, table, needed)[0] for table, needed in columns.items()}
    if "queries" in tables:
        return _retrieval(name, **tables)
    (table,) = tables.values()
    first, second = next(iter(columns.values()))
    pairs = list(zip(_strings(table[first]), _strings(table[second]), strict=True))
    texts = [("query", a) for a, _ in pairs]
    if first == "text_a":
        texts += [("document", b) for _, b in pairs]
    return TaskTexts(name=name, texts=tuple(texts), pairs=tuple(pairs))


def _retrieval(name: str, queries: pa.Table, documents: pa.Table, qrels: pa.Table) -> TaskTexts:
    asked = dict(zip(queries["query_id"].to_pylist(), _strings(queries["text"]), strict=True))
    bodies = dict(zip(documents["doc_id"].to_pylist(), _strings(documents["text"]), strict=True))
    texts = [("query", text) for text in asked.values()]
    texts += [("document", text) for text in bodies.values()]
    if "title" in documents.schema.names:
        titles = _strings(documents["title"])
        whole = zip(titles, bodies.values(), strict=True) if len(titles) == len(bodies) else ()
        texts += [("document", format_document(title, text)) for title, text in whole if title]
    relevant = qrels.filter(pa.compute.greater(qrels["score"], 0)) if qrels.num_rows else qrels
    ids = zip(relevant["query_id"].to_pylist(), relevant["doc_id"].to_pylist(), strict=True)
    pairs = [(asked[q], bodies[d]) for q, d in ids if q in asked and d in bodies]
    return TaskTexts(name=name, texts=tuple(texts), pairs=tuple(pairs))


def _strings(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _description(folder: Folder) -> tuple[str, dict[str, tuple[str, ...]]]:
    try:
        task = folder.read_json(TASK)
        name, tables = str(task.get("name") or posixpath.basename(folder.uri)), TABLES[task["type"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            found=f"{folder.uri}/{TASK}: {error!r}",
            expected="a JSON object with `type` one of " + ", ".join(TABLES),
            do="mend the task's description",
            exit_status=2,
        ) from error
    return name, tables


def _read(folder: Folder, table: str, needed: Sequence[str]) -> tuple[pa.Table, bytes]:
    """A table of a task, and the bytes of its file."""
    name = f"{table}.parquet"
    try:
        data = folder.read_bytes(name)
        rows = pq.read_table(pa.BufferReader(data))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            found=f"{folder.uri}/{name} cannot be read: {str(error).splitlines()[0][:200]}",
            expected="the task's Parquet table",
            do="fetch or write the task again",
            exit_status=2,
        ) from error
    if missing := [column for column in needed if column not in rows.schema.names]:
        raise UserError(
            found=f"{folder.uri}/{name} without the columns {', '.join(missing)}",
            expected=", ".join(needed),
            do="write the table with these columns",
            exit_status=2,
        )
    return rows, data
