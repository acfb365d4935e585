"""Evaluation tasks on disk: which texts they test with, and which texts belong together.

A task folder has `task.json` (name, type, ...) and Parquet tables by type: retrieval (queries,
documents, qrels), sts, bitext and pair_classification (pairs), classification (test; its train
table is training data and no secret) and clustering (items).
"""

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import UserError
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
# `titled`: a document with its title in front; it is the same text once more.
TEXTS = {"kind": pl.String, "text": pl.String, "titled": pl.Boolean}
PAIRS = {"a": pl.String, "b": pl.String}


@dataclass(frozen=True, kw_only=True)
class TaskTexts:
    """The texts of one task: columns TEXTS (kind is query or document), and those it pairs."""

    name: str
    texts: pl.DataFrame
    pairs: pl.DataFrame  # columns PAIRS


@dataclass(frozen=True)
class TaskFolder:
    """A task folder as an evaluation set."""

    folder: Folder

    @property
    def place(self) -> str:
        return self.folder.uri

    def identity(self) -> tuple[str, str]:
        return task_digest(self.folder)

    def read(self) -> TaskTexts:
        return read_task(self.folder)


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
        documents = tables["documents"]
        titled = "title" in documents.schema.names
        return retrieval_texts(
            name,
            queries=strings(tables["queries"], id="query_id", text="text"),
            documents=strings(documents, id="doc_id", title="title" if titled else "", text="text"),
            relevant=relevant(tables["qrels"], query="query_id", document="doc_id"),
        )
    (table,) = tables.values()
    first, second = next(iter(columns.values()))
    pairs = strings(table, a=first, b=second)
    texts = [as_texts("query", pairs["a"])]
    if first == "text_a":
        texts.append(as_texts("document", pairs["b"]))
    return TaskTexts(name=name, texts=pl.concat(texts), pairs=pairs)


def retrieval_texts(
    name: str, *, queries: pl.DataFrame, documents: pl.DataFrame, relevant: pl.DataFrame
) -> TaskTexts:
    """The texts of queries (id, text), documents (id, title, text) and pairs (query, document)."""
    titled = documents.filter(pl.col("title") != "")
    whole = titled.select(pl.col("title") + "\n" + pl.col("text")).to_series()
    texts = [
        as_texts("query", queries["text"]),
        as_texts("document", documents["text"]),
        as_texts("document", whole).with_columns(titled=pl.lit(True)),
    ]
    asked = queries.unique("id", keep="last").select("id", a="text")
    answers = documents.unique("id", keep="last").select("id", b="text")
    pairs = relevant.join(asked, left_on="query", right_on="id", maintain_order="left")
    pairs = pairs.join(answers, left_on="document", right_on="id", maintain_order="left")
    return TaskTexts(name=name, texts=pl.concat(texts), pairs=pairs.select(PAIRS.keys()))


def as_texts(kind: str, texts: pl.Series) -> pl.DataFrame:
    """Columns TEXTS for texts of one kind."""
    text = texts.alias("text").to_frame()
    frame = text.with_columns(kind=pl.lit(kind), titled=pl.lit(False)).select(TEXTS.keys())
    return frame.cast({"text": pl.String})


def strings(rows: pa.Table, **columns: str) -> pl.DataFrame:
    """Columns of a table as text, under new names; "" for null and for a column named "" ."""
    found = {}
    for name, column in columns.items():
        values = rows[column] if column else pa.nulls(rows.num_rows, pa.string())
        found[name] = pl.Series(name, pl.from_arrow(values)).cast(pl.String).fill_null("")
    return pl.DataFrame(found)


def relevant(qrels: pa.Table, *, query: str, document: str) -> pl.DataFrame:
    """The (query, document) ids of relevance judgements whose score is above zero."""
    pairs = strings(qrels, query=query, document=document)
    scores = pl.Series(pl.from_arrow(qrels["score"])).cast(pl.Float64, strict=False)
    return pairs.filter((scores > 0).fill_null(False))


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
