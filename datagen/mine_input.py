"""Queries and documents of plain files as the tables that mining works on.

Ids are the user's own, text or whole numbers. Documents whose texts are equal or nearly so share a
cluster whatever their ids, and so do equal queries: a copy of a positive is never a negative. Rows
without text or positives are set aside with their reason; what contradicts itself (an id twice, a
positive that is no document) is the user's to mend before anything is encoded.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.duplicates import find_duplicates
from datagen.schema import DOCUMENT, QUERY, UserError, query_id, rejected_row
from datagen.sources.files import read_rows
from datagen.steps import Context, LedgerRow, Step
from datagen.store import encode_shard

TASK = "retrieval"
SIMILARITY = 0.8  # Jaccard of shingles from which two documents are near-duplicates
_ROWS_PER_SHARD = 65_536


@dataclass(frozen=True, kw_only=True)
class MiningInput:
    """Tables of schema.QUERY and schema.DOCUMENT, the user's ids, and bad rows."""

    queries: pa.Table
    documents: pa.Table
    query_ids: pa.ChunkedArray  # as they came, in the order of `queries`
    doc_id_type: pa.DataType
    quarantine: list[dict[str, Any]]

    def step(self) -> Step:
        """A step that writes the two tables, known by their content."""
        digest = hashlib.sha256()
        for table in (self.queries, self.documents):
            digest.update(encode_shard(table))
        return Step(
            name="read",
            version=1,
            config={"content": digest.hexdigest()},
            inputs={},
            work=self._write,
            summary="write queries and documents as shards",
        )

    def _write(self, context: Context) -> None:
        context.write("queries", self.queries, QUERY, rows_per_shard=_ROWS_PER_SHARD)
        context.write("documents", self.documents, DOCUMENT, rows_per_shard=_ROWS_PER_SHARD)
        for unit, table in (("queries", self.queries), ("documents", self.documents)):
            bad = Counter(row["reason"] for row in self.quarantine if row["source"] == unit)
            context.ledger.append(
                LedgerRow(
                    source=unit,
                    unit=unit,
                    rows_in=len(table) + bad.total(),
                    kept=len(table),
                    quarantined=bad,
                )
            )


def read_mining_input(queries: Sequence[str], documents: Sequence[str]) -> MiningInput:
    """Read and check the files; UserError names what does not fit, with examples."""
    quarantine: list[dict[str, Any]] = []
    asked = _read(queries, ("query_id", "query", "positives"), "queries", quarantine)
    docs = _read(documents, ("doc_id", "text"), "documents", quarantine)
    lists = asked.schema.field("positives").type
    if not (pa.types.is_list(lists) or pa.types.is_large_list(lists)):
        raise UserError(
            found=f"positives of type {lists}",
            expected="a list of doc_id in each row",
            do="gather the positives of a query in one row, as a list",
            exit_status=2,
        )
    docs = _keep(docs, _has_text(docs, "text"), "documents", "text_empty", quarantine)
    asked = _keep(asked, _has_text(asked, "query"), "queries", "query_empty", quarantine)
    lengths = pc.fill_null(pc.list_value_length(asked["positives"]), 0)
    asked = _keep(asked, pc.greater(lengths, 0), "queries", "no_positive", quarantine)
    _refuse_empty(asked, docs)
    doc_ids, query_ids = _ids(docs, "doc_id"), _ids(asked, "query_id")
    positives = _texts(asked["positives"])
    _refuse_unknown(asked, positives, doc_ids)
    return MiningInput(
        queries=_query_table(asked, query_ids, positives),
        documents=_document_table(docs, doc_ids),
        query_ids=asked["query_id"],
        doc_id_type=docs.schema.field("doc_id").type,
        quarantine=quarantine,
    )


def _read(
    paths: Sequence[str], columns: Sequence[str], what: str, quarantine: list[dict[str, Any]]
) -> pa.Table:
    table, bad = read_rows(paths)
    quarantine += [{**row, "source": what} for row in bad]
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(
            found=f"the {what} have the columns {', '.join(table.column_names)}",
            expected=", ".join(columns) + f" (missing: {', '.join(missing)})",
            do="rename the columns of the file",
            exit_status=2,
        )
    return table


def _has_text(table: pa.Table, column: str) -> pa.ChunkedArray:
    try:
        texts = table[column].cast(pa.string())
    except pa.ArrowInvalid as error:
        raise UserError(
            found=f"{column} of type {table[column].type}: {error}",
            expected="text",
            do="write the column as UTF-8 text",
            exit_status=2,
        ) from error
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.fill_null(pc.greater(pc.utf8_length(trimmed), 0), False)


def _keep(
    table: pa.Table,
    good: pa.ChunkedArray,
    what: str,
    reason: str,
    quarantine: list[dict[str, Any]],
) -> pa.Table:
    for record in table.filter(pc.invert(good)).to_pylist():
        quarantine.append({**rejected_row(record, reason=reason), "source": what})
    return table.filter(good)


def _refuse_empty(queries: pa.Table, documents: pa.Table) -> None:
    if not len(queries) or not len(documents):
        raise UserError(
            found=f"{len(queries)} usable queries, {len(documents)} usable documents",
            expected="at least one of each",
            do="check that the files hold rows with text, and queries with positives",
        )


def _ids(table: pa.Table, column: str) -> list[str]:
    kind = table[column].type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise UserError(
            found=f"{column} of type {kind}",
            expected="text or whole numbers",
            do="write the ids as one of them",
            exit_status=2,
        )
    ids = table[column].cast(pa.string()).to_pylist()
    repeated = [str(name) for name, count in Counter(ids).items() if count > 1 or name is None]
    if repeated:
        raise UserError(
            found=f"{len(repeated)} values of {column} that are empty or stand more than once, "
            f"such as {', '.join(repeated[:5])}",
            expected=f"each {column} once",
            do="merge or rename the rows",
        )
    return ids


def _texts(lists: pa.ChunkedArray) -> list[list[str]]:
    return lists.cast(pa.list_(pa.string())).to_pylist()


def _refuse_unknown(queries: pa.Table, positives: list[list[str]], doc_ids: list[str]) -> None:
    known = set(doc_ids)
    names = queries["query_id"].to_pylist()
    lost = [
        f"{doc} (of query {name})"
        for name, row in zip(names, positives, strict=True)
        for doc in row
        if doc not in known
    ]
    if lost:
        raise UserError(
            found=f"{len(lost)} positives that are not among the documents, such as "
            + ", ".join(lost[:5]),
            expected="the doc_id of a document for every positive",
            do="add the documents, or take the ids out of `positives`",
        )


def _query_table(rows: pa.Table, ids: list[str], positives: list[list[str]]) -> pa.Table:
    texts = rows["query"].cast(pa.string())
    same = _first_with_same(ids, [query_id(TASK, text) for text in texts.to_pylist()])
    instruction = rows["instruction"] if "instruction" in rows.column_names else None
    return _table(
        QUERY,
        len(rows),
        query_id=ids,
        source="queries",
        task=TASK,
        origin="public",
        language=rows["language"] if "language" in rows.column_names else None,
        instruction=instruction,
        query=texts,
        positives=[list(dict.fromkeys(row)) for row in positives],
        given_negatives=[[] for _ in ids],
        cluster=same,
    )


def _document_table(rows: pa.Table, ids: list[str]) -> pa.Table:
    texts = rows["text"].cast(pa.string())
    return _table(
        DOCUMENT,
        len(rows),
        doc_id=ids,
        source="documents",
        origin="public",
        task=TASK,
        title=rows["title"] if "title" in rows.column_names else None,
        text=texts,
        language=rows["language"] if "language" in rows.column_names else None,
        cluster=_clusters(ids, texts.to_pylist()),
    )


def _clusters(ids: list[str], texts: list[str]) -> list[str]:
    """The cluster of each document: the id of the first that it equals or resembles.

    Chains of near-duplicates are one cluster: whatever resembles a positive is in the positive's.
    """
    first, _, _ = find_duplicates(pl.Series(texts, dtype=pl.String), similarity=SIMILARITY)
    return [ids[i] for i in first]


def _table(schema: pa.Schema, count: int, **columns: Any) -> pa.Table:
    """A table of the schema from columns, or values for all rows; null where none is given."""
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if isinstance(value, pa.ChunkedArray):
            arrays.append(value.cast(field.type))
        elif isinstance(value, list):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.array([value] * count, field.type))
    return pa.table(arrays, schema=schema)


def _first_with_same(ids: list[str], keys: Sequence[Hashable]) -> list[str]:
    """For each row the id of the first row with the same key."""
    first: dict[Hashable, str] = {}
    return [first.setdefault(key, name) for name, key in zip(ids, keys, strict=True)]
