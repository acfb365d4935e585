"""Evaluation sets in BEIR's layout: corpus, queries, and relevance judgements by split.

Files are `corpus.jsonl`, `queries.jsonl` (also .gz, or Parquet) and `qrels/<split>.tsv`. Queries
that only the training split judges are training data and no secret; the documents all are tested
with.
"""

import hashlib
import posixpath
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from datagen.schema import UserError
from datagen.sources.files import read_rows
from datagen.store import Folder
from datagen.task_folders import TaskTexts, relevant, retrieval_texts, strings

CORPUS, QUERIES, QRELS = "corpus", "queries", "qrels"
EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
TRAIN = "train"
JUDGED = ("query-id", "corpus-id", "score")


@dataclass(frozen=True)
class BeirFolder:
    """A folder in BEIR's layout as an evaluation set."""

    folder: Folder

    @property
    def place(self) -> str:
        return self.folder.uri

    def identity(self) -> tuple[str, str]:
        digest = hashlib.sha256()
        for name in self._files():
            digest.update(name.encode())
            digest.update(self.folder.read_bytes(name))
        return self._name(), digest.hexdigest()

    def _name(self) -> str:
        return posixpath.basename(self.folder.path().rstrip("/"))

    def _files(self) -> list[str]:
        folder = self.folder.folder(QRELS)
        qrels = [f"{QRELS}/{name}" for name in folder.names() if name.endswith(".tsv")]
        return [_table(self.folder, CORPUS), _table(self.folder, QUERIES), *qrels]

    def read(self) -> TaskTexts:
        corpus, queries, *qrels = (self._rows(name) for name in self._files())
        splits = [posixpath.basename(name).split(".")[0] for name in self._files()[2:]]
        tested = [rows for split, rows in zip(splits, qrels, strict=True) if split != TRAIN]
        return beir_texts(self._name(), corpus, queries, tested, where=self.folder.uri)

    def _rows(self, name: str) -> pa.Table:
        place = f"{self.folder.uri.rstrip('/')}/{name}"
        rows, rejected = read_rows([place])
        if rejected:
            raise UserError(
                found=f"{place}: {len(rejected)} lines cannot be read: {rejected[0]['error']}",
                expected="an evaluation set that is whole",
                do="fetch it again",
                exit_status=2,
            )
        return rows


def find_beir(uri: str) -> list[Folder]:
    """The BEIR folders behind a path: itself, or those in it."""
    folder = Folder(uri)
    places = [folder, *(folder.folder(name) for name in folder.names())]
    found = [place for place in places if _table(place, CORPUS) and _table(place, QUERIES)]
    return found[:1] if found[:1] == [folder] else found


def _table(folder: Folder, stem: str) -> str:
    return next((stem + end for end in EXTENSIONS if folder.exists(stem + end)), "")


def beir_texts(
    name: str, corpus: pa.Table, queries: pa.Table, qrels: list[pa.Table], *, where: str
) -> TaskTexts:
    """The texts of a task in BEIR's columns; only judged queries where there are judgements."""
    titled = "title" in corpus.schema.names
    for rows, columns in [(corpus, ("_id", "text")), (queries, ("_id", "text"))] + [
        (rows, JUDGED) for rows in qrels
    ]:
        check_columns(rows, columns, where=where)
    asked = strings(queries, id="_id", text="text")
    none = pl.DataFrame(schema={"query": pl.String, "document": pl.String})
    pairs = [relevant(rows, query="query-id", document="corpus-id") for rows in qrels]
    if qrels:
        judged = pl.concat([strings(rows, id="query-id") for rows in qrels]).unique()
        asked = asked.join(judged, on="id", how="semi", maintain_order="left")
    return retrieval_texts(
        name,
        queries=asked,
        documents=strings(corpus, id="_id", title="title" if titled else "", text="text"),
        relevant=pl.concat([none, *pairs]),
    )


def check_columns(rows: pa.Table, needed: tuple[str, ...], *, where: str) -> None:
    """Raise UserError unless the table has the columns."""
    if missing := [column for column in needed if column not in rows.schema.names]:
        raise UserError(
            found=f"{where}: a table without {', '.join(missing)}; its columns are "
            + ", ".join(rows.schema.names),
            expected=", ".join(needed),
            do="check that this is an evaluation set in BEIR's layout",
            exit_status=2,
        )
