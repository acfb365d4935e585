"""Rows of tables to pairs, by a map of columns: shared by the sources that read plain tables."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from datagen.codes import UNKNOWN_SCRIPT, standard_tag
from datagen.schema import TASKS, UserError, rejected_row
from datagen.sources import SourceRows, check_choice, make_pair

COLUMNS = (
    "query",
    "text",
    "title",
    "negatives",  # a text, or a list of texts or of {title, text}
    "score",
    "instruction",
    "licence",
    "language",  # of both sides
    "query_language",
    "document_language",
)
REQUIRED_COLUMNS = ("query", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSource:
    """How the rows of a source of tables become pairs.

    `columns` maps names of COLUMNS to columns of the table. Languages are tags such as `deu_Latn`;
    a column wins over the constant. With `labels` (classification) every other label is a negative.
    """

    name: str
    task: str
    columns: Mapping[str, str]
    instruction: str | None = None
    licence: str | None = None
    language: str | None = None
    query_language: str | None = None
    document_language: str | None = None
    labels: tuple[str, ...] = ()
    code: bool = False  # documents are source code, and their language a programming language

    def __post_init__(self) -> None:
        check_choice(self.task, TASKS, what="task")
        for column in self.columns:
            check_choice(column, COLUMNS, what="column of pairs")
        missing = [name for name in REQUIRED_COLUMNS if name not in self.columns]
        if missing:
            raise UserError(
                found=f"source {self.name!r} maps no column to {' and '.join(missing)}",
                expected="a column for query and one for text",
                do="complete `columns`",
                exit_status=2,
            )

    def row_map(self) -> dict[str, Any]:
        """What a unit needs to make pairs, as JSON."""
        fields = [f.name for f in dataclasses.fields(TableSource) if f.name != "name"]
        row_map = {name: getattr(self, name) for name in fields}
        return {
            "source": self.name,
            **row_map,
            "columns": dict(self.columns),
            "labels": [*self.labels],
        }


class RowError(Exception):
    """One row that cannot become a pair."""

    def __init__(self, reason: str, error: str):
        super().__init__(error)
        self.reason = reason


def check_columns(columns: Mapping[str, str], found: Iterable[str], *, where: str) -> None:
    """UserError unless the table has all mapped columns."""
    found = list(found)
    missing = [column for column in columns.values() if column not in found]
    if missing:
        raise UserError(
            found=f"{where} has columns " + (", ".join(found) or "none"),
            expected="columns " + ", ".join(missing),
            do="mend the column map of the source",
        )


def read_records(
    records: Iterable[tuple[str, Mapping[str, Any]]], row_map: Mapping[str, Any]
) -> SourceRows:
    """Pairs of (row name, record); a record that does not fit is quarantined."""
    rows = SourceRows()
    for row, record in records:
        rows.rows_in += 1
        try:
            rows.pairs.append(_to_pair(record, row_map, row=row))
        except RowError as error:
            rejected = {
                "source": row_map["source"],
                "provenance": {"row": row},
                "record": dict(record),
            }
            rows.quarantined.append(rejected_row(rejected, reason=error.reason, error=str(error)))
    return rows


def _to_pair(record: Mapping[str, Any], row_map: Mapping[str, Any], *, row: str) -> dict[str, Any]:
    columns: Mapping[str, str] = row_map["columns"]
    values = {name: record.get(column) for name, column in columns.items()}
    text = values["text"]
    negatives = _negatives(values.get("negatives"))
    if row_map["labels"]:
        negatives += [{"title": None, "text": v} for v in row_map["labels"] if v != text]
    return make_pair(
        row_map["source"],
        row_map["task"],
        query=values["query"],
        text=text,
        row=row,
        query_tag=_tag(values, row_map, side="query_language"),
        document_tag=_document_tag(values, row_map),
        title=_text(values.get("title"), "title"),
        negatives=negatives or None,
        score=_number(values.get("score")),
        instruction=_text(values.get("instruction"), "instruction") or row_map["instruction"],
        licence=_text(values.get("licence"), "licence") or row_map["licence"],
    )


def _tag(values: Mapping[str, Any], row_map: Mapping[str, Any], *, side: str) -> str | None:
    candidates = (values.get(side), values.get("language"), row_map[side], row_map["language"])
    tag = _text(next((value for value in candidates if value), None), side)
    return standard_tag(tag) if tag else None


def _document_tag(values: Mapping[str, Any], row_map: Mapping[str, Any]) -> str | None:
    if not row_map["code"]:
        return _tag(values, row_map, side="document_language")
    language = values.get("document_language") or row_map["document_language"] or "code"
    return f"{_text(language, 'document_language')}_{UNKNOWN_SCRIPT}"


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    raise RowError(f"{name}_not_text", f"{name} is {type(value).__name__}, not text")


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RowError("score_not_a_number", f"score is {value!r}") from error


def _negatives(value: Any) -> list[dict[str, str | None]]:
    values = value if isinstance(value, list) else [value] if value else []
    negatives = []
    for item in values:
        side = item if isinstance(item, Mapping) else {"text": item}
        if not isinstance(side.get("text"), str):
            raise RowError("negatives_not_text", f"a negative is {type(item).__name__}, not text")
        negatives.append({"title": _text(side.get("title"), "title"), "text": side["text"]})
    return negatives
