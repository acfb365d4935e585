"""Sources: where pairs come from.

A source is a frozen dataclass that names what to read, says what identifies its content (`config`,
which enters the step's fingerprint) and cuts the work into units (`plan`): JSON dicts of some
thousand rows each, every one with its `kind`. The module-level reader of that kind turns a unit
into `SourceRows` on any worker. `datagen.ingest` knows the readers by kind.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from datagen.schema import UserError, split_language

ROWS_PER_UNIT = 16_384  # starting and committing a unit costs some 20 ms
BYTES_PER_UNIT = 1 << 26  # where rows are large, fewer of them; a worker holds a few times this


class Source(Protocol):
    """One origin of pairs."""

    @property
    def name(self) -> str:
        """What the pairs and the ledger call it."""
        ...

    def config(self) -> dict[str, Any]:
        """Everything that decides its rows, as JSON, with the identity of the content it reads."""
        ...

    def plan(self) -> list[dict[str, Any]]:
        """The units to read, in a fixed order."""
        ...


@dataclasses.dataclass(kw_only=True)
class SourceRows:
    """What reading one unit gave: `rows_in` = pairs + table + quarantined + dropped.

    Pairs are rows as `make_pair` gives them, or, from a reader that makes whole columns, a table of
    schema PAIR.
    """

    rows_in: int = 0
    pairs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    table: pa.Table | None = None
    quarantined: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # rejected_row
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason

    def records(self) -> list[dict[str, Any]]:
        """All pairs, one by one."""
        return self.pairs if self.table is None else self.table.to_pylist() + self.pairs


def make_pair(
    source: str,
    task: str,
    *,
    query: Any,
    text: Any,
    row: str,
    query_tag: str | None = None,
    document_tag: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A row of schema.PAIR; tags are like `deu_Latn`, `row` is its place in the source."""
    query_language, query_script = split_language(query_tag)
    document_language, document_script = split_language(document_tag)
    return {
        "source": source,
        "task": task,
        "origin": "public",
        "query": query,
        "text": text,
        "query_language": query_language,
        "query_script": query_script,
        "document_language": document_language,
        "document_script": document_script,
        "provenance": {"row": row},
        **fields,
    }


def content_order(*parts: str) -> str:
    """A hash that orders or halves rows by their content alone, 32 hex digits."""
    return hashlib.blake2b(
        "\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16
    ).hexdigest()


def cap(pairs: Sequence[dict[str, Any]], limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """At most `limit` of the pairs, chosen by content and kept in order; and how many were cut."""
    if limit is None or len(pairs) <= limit:
        return list(pairs), 0
    hashes = [content_order(str(pair["query"]), str(pair["text"])) for pair in pairs]
    chosen = sorted(range(len(pairs)), key=lambda i: (hashes[i], i))[:limit]
    return [pairs[i] for i in sorted(chosen)], len(pairs) - limit


def installed_package(package: str, folder: str) -> tuple[str, Path]:
    """Version and folder of an installed package, found without importing it."""
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise UserError(
            found=f"the package {package} is not installed",
            expected="it, as the data of a source",
            do=f"pip install {package}",
        ) from error
    return found.version, Path(str(found.locate_file(folder)))


def check_choice(value: str, known: Collection[str], *, what: str) -> None:
    """UserError (exit status 2) unless the value is one of the known ones."""
    if value not in known:
        raise UserError(
            found=f"{what} {value!r}",
            expected="one of " + ", ".join(sorted(known)),
            do=f"name a known {what}",
            exit_status=2,
        )
