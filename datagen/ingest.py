"""The first step: pairs out of sources, each one validated.

Every source plans its own units; a unit is read by the reader of its kind, on any worker, as whole
columns where the format has them and row by row elsewhere. A pair
that cannot be used is quarantined with its error and costs nothing else; a file that cannot be read
at all is the user's to mend.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from datagen.schema import PAIR, QUARANTINE, UserError, pair_problem, rejected_row
from datagen.sources import (
    Source,
    SourceRows,
    adapted,
    catalog,
    check_choice,
    conversations,
    files,
    gettext,
    hub,
    layouts,
    pycode,
)
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.validation import split_valid

READERS: Mapping[str, Callable[[dict[str, Any]], SourceRows]] = {
    "adapted": adapted.read,
    "conversations": conversations.read,
    "files": files.read,
    "gettext": gettext.read,
    "hub": hub.read,
    "layout": layouts.read,
    "pycode": pycode.read,
}
SOURCES: Mapping[str, Callable[..., Source]] = {
    "adapted": adapted.AdaptedSource,
    "catalog": catalog.source_named,
    "conversations": conversations.ConversationsSource,
    "files": files.FilesSource,
    "gettext": gettext.GettextSource,
    "hub": hub.HubSource,
    "layout": layouts.LayoutSource,
    "pycode": pycode.PycodeSource,
}


def source(kind: str, **options: Any) -> Source:
    """A source by the name of its kind; UserError (exit status 2) for an unknown kind or option."""
    check_choice(kind, SOURCES, what="source")
    try:
        return SOURCES[kind](**options)
    except TypeError as error:
        raise UserError(
            found=f"source {kind!r}: {error}",
            expected="the options that it has",
            do="mend the options",
            exit_status=2,
        ) from error


def ingest(*sources: Source, name: str = "ingest") -> Step:
    """Read the sources into tables `pairs` and `quarantine`."""
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise UserError(
            found="sources " + (", ".join(names) or "none"),
            expected="at least one source, each with a name of its own",
            do="mend the list of sources",
            exit_status=2,
        )
    return Step(
        name=name,
        version=2,
        config={"sources": [source.config() for source in sources]},
        inputs={},
        work=partial(_work, sources=sources),
        summary="read " + ", ".join(names),
    )


def _work(context: Context, *, sources: Sequence[Source]) -> None:
    units = [unit for source in sources for unit in source.plan()]
    context.map_units(units, _ingest_unit, schemas={"pairs": PAIR, "quarantine": QUARANTINE})


def _ingest_unit(unit: dict[str, Any]) -> UnitResult:
    rows = READERS[unit["kind"]](unit)
    pairs, rejected = _valid(rows.pairs)
    table, misfits = _pair_table(pairs)
    rejected = rows.quarantined + rejected + misfits
    if rows.table is not None:
        columns, problems = split_valid(rows.table)
        table, rejected = pa.concat_tables([columns, table]), rejected + problems
    ledger = LedgerRow(
        source=unit["source"],
        rows_in=rows.rows_in,
        kept=table.num_rows,
        dropped=dict(sorted(rows.dropped.items())),
        quarantined=dict(sorted(Counter(row["reason"] for row in rejected).items())),
    )
    quarantine = pa.Table.from_pylist(rejected, schema=QUARANTINE)
    return UnitResult(tables={"pairs": table, "quarantine": quarantine}, ledger=[ledger])


def _valid(
    pairs: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    kept, rejected = [], []
    for pair in pairs:
        problem = pair_problem(pair)
        if problem is None:
            kept.append(pair)
        else:
            rejected.append(rejected_row(pair, reason=problem[0], error=problem[1]))
    return kept, rejected


def _pair_table(
    pairs: list[dict[str, Any]],
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The pairs as a table; a row that the schema refuses is rejected alone."""
    try:
        return pa.Table.from_pylist(pairs, schema=PAIR), []
    except (pa.ArrowException, UnicodeError, TypeError, OverflowError):
        kept, rejected = [], []
    for pair in pairs:
        try:
            kept.append(pa.Table.from_pylist([pair], schema=PAIR))
        except (pa.ArrowException, UnicodeError, TypeError, OverflowError) as error:
            rejected.append(rejected_row(pair, reason="does_not_fit", error=str(error)[:500]))
    return pa.concat_tables([PAIR.empty_table(), *kept]), rejected
