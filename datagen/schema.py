"""The record types of embedmix: Arrow schemas, content ids, validation, and the error users see.

A mix is built from three record types. A *pair* is one query with one positive document, text
inline, as a source gives it; ingest, clean and language work on pairs. Dedup splits pairs into
*queries* (which name their positives by id) and *documents* (each text once). The finished mix
stores the same two with row numbers instead of ids.

Ids are content hashes, so exact duplicates meet by construction, ids are the same on any cluster
shape, and embeddings can be cached by id. Everything here is plain Python and Arrow.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

TASKS = ("retrieval", "bitext", "sts", "classification", "clustering", "pair_classification")
SYMMETRIC_TASKS = frozenset({"sts", "bitext", "clustering"})
IN_BATCH_TASKS = frozenset({"retrieval"})
ORIGINS = ("public", "synthetic")
STAGES = ("pretrain", "finetune")

MAX_QUERY_CHARACTERS = 20_000
MAX_DOCUMENT_CHARACTERS = 200_000

DOCUMENT_SIDE = pa.struct([("title", pa.string()), ("text", pa.string())])

# `row` names the row inside its source; the rest is null for public rows.
PROVENANCE = pa.struct(
    [
        ("row", pa.string()),
        ("llm", pa.string()),
        ("llm_licence", pa.string()),
        ("prompt", pa.string()),
        ("seed_document", pa.string()),
        ("sampling", pa.string()),
        ("seed", pa.int64()),
    ]
)

PAIR = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("instruction", pa.string()),
        pa.field("query", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        # Negatives that the source itself gives: wrong labels, the third text of a triplet.
        pa.field("negatives", pa.list_(DOCUMENT_SIDE)),
        # The source's own graded relevance, in its own unit (STS: 0 to 5); null when it has none.
        pa.field("score", pa.float32()),
        # ISO 639-3 and ISO 15924: what the source declares; the language step fills what is null.
        pa.field("query_language", pa.string()),
        pa.field("query_script", pa.string()),
        pa.field("document_language", pa.string()),
        pa.field("document_script", pa.string()),
        # What the detector found, e.g. `deu_Latn`, and its confidence in 0..1.
        pa.field("query_detected", pa.string()),
        pa.field("query_detected_score", pa.float32()),
        pa.field("document_detected", pa.string()),
        pa.field("document_detected_score", pa.float32()),
        pa.field("licence", pa.string()),
        pa.field("provenance", PROVENANCE),
    ]
)

QUERY = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("script", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("query", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string()), nullable=False),  # doc_id, sorted
        pa.field("given_negatives", pa.list_(pa.string()), nullable=False),  # doc_id, in order
        pa.field(
            "cluster", pa.string(), nullable=False
        ),  # query_id of the cluster's representative
        pa.field("licence", pa.string()),
        pa.field("provenance", PROVENANCE),
    ]
)

DOCUMENT = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("script", pa.string()),
        pa.field("cluster", pa.string(), nullable=False),  # doc_id of the cluster's representative
    ]
)

MINED = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string()), nullable=False),
        pa.field("positive_scores", pa.list_(pa.float32()), nullable=False),
        pa.field("negatives", pa.list_(pa.string()), nullable=False),  # best score first
        pa.field("negative_scores", pa.list_(pa.float32()), nullable=False),
        pa.field("given_negatives", pa.int32()),  # how many of the first the source names
    ]
)

MIX_DOCUMENT = pa.schema(
    [
        DOCUMENT.field(n)
        for n in ("doc_id", "source", "title", "text", "language", "script", "cluster")
    ]
)

# Positives and negatives are row numbers of the documents table (all shards in order).
MIX_ROW = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("script", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("query", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.int64()), nullable=False),
        pa.field("positive_scores", pa.list_(pa.float32()), nullable=False),
        pa.field("negatives", pa.list_(pa.int64()), nullable=False),
        pa.field("negative_scores", pa.list_(pa.float32()), nullable=False),
        pa.field("given_negatives", pa.int32()),  # how many of the first the source names
        pa.field("in_batch", pa.bool_(), nullable=False),
        pa.field("symmetric", pa.bool_(), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("provenance", PROVENANCE),
    ]
)

# A row that could not be used, with the error and the row as JSON (cut at MAX_RECORD_CHARACTERS).
QUARANTINE = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
    ]
)

# A usable row that a rule removed; the same shape, so that both can be read with one tool.
DROPPED = QUARANTINE

MAX_RECORD_CHARACTERS = 4_000


class UserError(Exception):
    """A mistake that the user can mend: what was found, what was expected, what to do."""

    def __init__(self, *, found: str, expected: str, do: str, exit_status: int = 1):
        super().__init__(f"found: {found}\nexpected: {expected}\ndo: {do}")
        self.found, self.expected, self.do, self.exit_status = found, expected, do, exit_status

    def fields(self) -> dict[str, Any]:
        """The arguments that make it again in another process."""
        return {
            "found": self.found,
            "expected": self.expected,
            "do": self.do,
            "exit_status": self.exit_status,
        }


def normalise(text: str) -> str:
    """NFC with every run of white space as one blank: what ids are computed on."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _digest(parts: Iterable[str]) -> str:
    # The unit separator cannot be forged by a text: normalise() has already turned it into a blank.
    joined = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


def document_id(title: str | None, text: str) -> str:
    """128-bit content id of a document, 32 hex digits."""
    return _digest(("document", normalise(title or ""), normalise(text)))


def query_id(task: str, query: str, scope: str = "") -> str:
    """128-bit content id of a query, 32 hex digits; `scope` as given by `query_scope`."""
    return _digest(("query", task, normalise(query), scope))


def query_scope(task: str, source: str, document_language: str | None) -> str:
    """What besides task and text makes two queries the same one.

    The same text has one set of answers in retrieval, whichever source asks it; its label depends
    on the data set; its translation on the language asked for.
    """
    if task in ("classification", "clustering", "pair_classification"):
        return source
    return document_language or "" if task == "bitext" else ""


def join_language(language: str | None, script: str | None) -> str | None:
    """`deu`, `Latn` -> `deu_Latn`."""
    return f"{language}_{script}" if language and script else language


def split_language(tag: str | None) -> tuple[str | None, str | None]:
    """`deu_Latn` -> `deu`, `Latn`; a tag without script gives None for it."""
    language, _, script = (tag or "").partition("_")
    return language or None, script or None


def format_query(instruction: str | None, query: str) -> str:
    """The text an encoder sees for a query (Nemotron and F2LLM-v2 use the same template)."""
    return f"Instruct: {instruction}\nQuery: {query}" if instruction else query


def format_document(title: str | None, text: str) -> str:
    """The text an encoder sees for a document."""
    return f"{title}\n{text}" if title else text


def pair_problem(pair: Mapping[str, Any]) -> tuple[str, str] | None:
    """(reason, three-part error) when a pair cannot be used, else None."""
    for field, limit in (("query", MAX_QUERY_CHARACTERS), ("text", MAX_DOCUMENT_CHARACTERS)):
        value = pair.get(field)
        if not isinstance(value, str):
            kind = type(value).__name__
            return f"{field}_not_text", _problem(
                f"{field} is {kind}", "text", "mend the source row"
            )
        if not value.strip():
            return f"{field}_empty", _problem(f"{field} is blank", "text", "mend the source row")
        if len(value) > limit:
            found, expected = f"{field} has {len(value):,} characters", f"at most {limit:,}"
            return f"{field}_too_long", _problem(found, expected, "cut the text into passages")
        try:
            value.encode()
        except UnicodeEncodeError:
            found = f"{field} is not valid Unicode (lone surrogate)"
            return "invalid_unicode", _problem(found, "valid UTF-8", "mend the source's encoding")
    if pair.get("task") not in TASKS:
        found, expected = f"task {pair.get('task')!r}", "one of " + ", ".join(TASKS)
        return "unknown_task", _problem(found, expected, "name the task in the source")
    return None


def _problem(found: str, expected: str, do: str) -> str:
    return str(UserError(found=found, expected=expected, do=do))


def rejected_row(
    record: Mapping[str, Any], *, reason: str, error: str = ""
) -> dict[str, str | None]:
    """One row of QUARANTINE or DROPPED for a record that was not kept."""
    provenance = record.get("provenance") or {}
    text = json.dumps(record, ensure_ascii=True, sort_keys=True, default=_printable)
    return {
        "source": str(record.get("source", "")),
        "row": provenance.get("row"),
        "reason": reason,
        "error": error or reason,
        "record": text[:MAX_RECORD_CHARACTERS],
    }


def _printable(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def empty(schema: pa.Schema) -> pa.Table:
    """A table of no rows."""
    return schema.empty_table()


def check_schema(table: pa.Table, schema: pa.Schema, *, where: str) -> None:
    """Raise UserError unless the table has exactly this schema (metadata aside)."""
    if table.schema.equals(schema, check_metadata=False):
        return
    found = {f.name: str(f.type) for f in table.schema}
    expected = {f.name: str(f.type) for f in schema}
    names = [n for n in {**expected, **found} if found.get(n) != expected.get(n)]
    names = names or [f.name for f in schema if table.schema.field(f.name) != f] or ["column order"]
    raise UserError(
        found=f"{where}: " + ", ".join(f"{n}: {found.get(n, 'absent')}" for n in names),
        expected=", ".join(f"{n}: {expected.get(n, 'absent')}" for n in names),
        do=f"rebuild it with this version of embedmix (schema {SCHEMA_VERSION})",
    )
