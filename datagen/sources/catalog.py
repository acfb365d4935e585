"""The data sets of both papers as data: what a recipe can name, and what is known of each.

`catalog.jsonl` holds one row per line: the 157 sources of F2LLM-v2 as its release files hold them
(`f2llm-v2/...`), the fine-tuning table of Llama-Embed-Nemotron-8B with its pretraining source
(`nemotron/...`), the subsets that NVIDIA released (`embed-nemotron-v1/...`), and upstream originals
of both (plain names). A field that is not known is absent and listed in `unknown`; nothing in the
rows is guessed, and `evidence` says where they come from. Papers: arXiv 2511.07025, 2603.19223.

A row is `ready` when an adapter can read it now; else `needs` says what is missing.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datagen.codes import standard_tag
from datagen.schema import UserError
from datagen.sources import check_choice
from datagen.sources.adapted import TEXT_COLUMNS, AdaptedSource
from datagen.sources.shapes import ADAPTERS

FILE = Path(__file__).with_name("catalog.jsonl")
LICENCES = ("commercial",)
COMMERCIAL = frozenset(
    {
        "apache-2.0", "bsd-3-clause", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
        "cc0-1.0", "mit", "odc-by", "psf-2.0",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogRow:
    """One data set; null and empty fields are not known or do not apply."""

    name: str
    papers: Mapping[str, Mapping[str, Any]]  # paper -> {name, samples, format, part} as it has them
    task: str
    repo: str | None = None
    revision: str | None = None  # a commit, else a branch of the Hub
    adapter: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # File patterns of each table of the adapter; `{subset}` stands for the subset.
    tables: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] | None = None  # columns id, title and text of the tables of texts
    # Subset -> languages of query and document, empty when they are not known.
    subsets: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    languages: tuple[str, ...] | None = None
    language_count: int | None = None  # where the paper only counts them
    code: bool = False
    released: bool = False
    max_rows_per_file: int | None = None
    instruction: str | None = None
    licence: str | None = None
    needs: str | None = None
    see: tuple[str, ...] = ()  # rows that hold the same data in another form
    unknown: tuple[str, ...] = ()
    evidence: str | None = None

    @property
    def ready(self) -> bool:
        return self.needs is None

    @property
    def commercial(self) -> bool | None:
        """Whether the licence allows commercial use; None when it is not known or not clear."""
        licences = [part.strip().lower() for part in (self.licence or "").split(",")]
        if any("-nc" in licence for licence in licences):
            return False
        return True if all(licence in COMMERCIAL for licence in licences) else None

    @property
    def by_subset(self) -> bool:
        """Whether a source of it must name one of its subsets."""
        if not self.subsets or self.adapter is None:
            return False
        return ADAPTERS[self.adapter].whole or self.adapter == "bitext"


@functools.cache
def rows() -> tuple[CatalogRow, ...]:
    """All rows, in the order of the file."""
    records: list[dict[str, Any]] = [
        json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()
    ]
    for record in records:
        for name in ("languages", "see", "unknown"):
            if name in record:
                record[name] = tuple(record[name])
    return tuple(CatalogRow(**record) for record in records)


def find(name: str) -> CatalogRow:
    """The row of that name; UserError (exit status 2) with the closest names when there is none."""
    known = {row.name: row for row in rows()}
    if name in known:
        return known[name]
    lower = {row.name.lower(): row.name for row in rows()}
    close = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=5, cutoff=0.5)]
    close += [
        n for low, n in lower.items() if low.split("/")[-1] == name.lower() and n not in close
    ]
    raise UserError(
        found=f"no source named {name!r}",
        expected="one of " + ", ".join(close) if close else f"one of {len(known)} names",
        do="name one of those, or list all with `datagen sources`",
        exit_status=2,
    )


def select(
    *,
    paper: str | None = None,
    task: str | None = None,
    licence: str | None = None,
    ready: bool | None = None,
) -> list[CatalogRow]:
    """The rows for which all that is given holds; `licence` is `commercial` or None."""
    if licence is not None:
        check_choice(licence, LICENCES, what="licence filter")
    return [
        row
        for row in rows()
        if (paper is None or paper in row.papers)
        and (task is None or row.task == task)
        and (licence is None or row.commercial is True)
        and (ready is None or row.ready == ready)
    ]


def catalog_table(licence: str | None = None) -> list[dict[str, str]]:
    """One record of texts per row, for printing; `licence` as in `select`."""
    return [
        {
            "name": row.name,
            "task": row.task,
            "samples": " / ".join(f"{p} {f['samples']:,}" for p, f in row.papers.items()),
            "languages": ", ".join(row.languages or ()) or str(row.language_count or ""),
            "licence": row.licence or "unknown",
            "commercial": {True: "yes", False: "no", None: "unknown"}[row.commercial],
            "adapter": row.adapter or "",
            "status": "ready" if row.ready else f"needs: {row.needs}",
            "unknown": ", ".join(row.unknown),
        }
        for row in select(licence=licence)
    ]


def source_named(name: str, **changes: Any) -> AdaptedSource:
    """The source of a row, or of one of its subsets as `<row>/<subset>`.

    `changes` replace fields of the source, such as `folder` for a local copy. Raises UserError
    (exit status 2) for an unknown name and for a row that cannot be read yet.
    """
    row, subset = _split(name)
    if not row.ready:
        raise UserError(
            found=f"source {row.name!r} cannot be read: {row.needs}",
            expected="a row that is ready",
            do="use " + " or ".join(row.see)
            if row.see
            else "leave it out, or read your own copy "
            "with a source of files or of the Hub and its columns",
            exit_status=2,
        )
    if row.by_subset and subset is None:
        raise UserError(
            found=f"source {row.name!r} without a subset",
            expected=f"{row.name}/<subset> with one of " + ", ".join(row.subsets),
            do="name one source for each subset",
            exit_status=2,
        )
    return to_source(row, subset=subset, **changes)


def _split(name: str) -> tuple[CatalogRow, str | None]:
    known = {row.name: row for row in rows()}
    head, _, subset = name.rpartition("/")
    if name in known or head not in known:
        return find(name), None
    row = known[head]
    if subset not in row.subsets:
        check_choice(subset, row.subsets, what=f"subset of {head}")
    return row, subset


def to_source(row: CatalogRow, *, subset: str | None = None, **changes: Any) -> AdaptedSource:
    """The source of a ready row; with `subset`, of that one alone and with its languages."""
    assert row.adapter is not None and row.repo is not None
    languages = list(row.subsets[subset] if subset else [])
    query, document = map(standard_tag, languages) if languages else (None, None)
    options = dict(row.options)
    if row.adapter == "bitext" and languages:
        options["languages"] = languages
    fill = {"{first}": languages[0], "{second}": languages[1]} if languages else {}
    chosen = [subset] if subset else list(row.subsets) or [""]
    fields: dict[str, Any] = {
        "name": f"{row.name}/{subset}" if subset else row.name,
        "task": row.task,
        "adapter": row.adapter,
        "columns": {k: _filled(column, fill) for k, column in row.columns.items()},
        "tables": {role: _patterns(patterns, chosen) for role, patterns in row.tables.items()},
        "options": options,
        "texts": row.texts or TEXT_COLUMNS,
        "repo": row.repo,
        "revision": row.revision or "main",
        "instruction": row.instruction,
        "licence": row.licence,
        "language": row.languages[0] if row.languages and len(row.languages) == 1 else None,
        "query_language": query,
        "document_language": document,
        "code": row.code,
        "released": row.released,
        "max_rows_per_file": row.max_rows_per_file,
    }
    return AdaptedSource(**{**fields, **changes})


def _filled(column: str, fill: Mapping[str, str]) -> str:
    for mark, value in fill.items():
        column = column.replace(mark, value)
    return column


def _patterns(patterns: list[str], subsets: list[str]) -> list[str]:
    found = [p.replace("{subset}", subset) for subset in subsets for p in patterns]
    return list(dict.fromkeys(found))
