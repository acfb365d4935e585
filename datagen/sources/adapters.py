"""Adapters: records of any known layout to pairs, as pure functions over records and Arrow.

`adapt` runs one layout over numbered records: a bad row is quarantined alone, a row that gives no
pair is dropped under its reason, and `rows_in` is the sum of what came out. `collect` finds the
texts that rows name by id, in one pass over the tables that hold them.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datagen.schema import UserError, rejected_row
from datagen.sources import SourceRows, check_choice
from datagen.sources.shapes import ADAPTERS, NotAPair, Texts, Values
from datagen.sources.tables import COLUMNS, RowError, read_records

Numbered = Iterable[tuple[str, Mapping[str, Any]]]  # (row name, record)


def check(adapter: str, columns: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """UserError (exit status 2) unless the adapter exists and takes these columns and options."""
    check_choice(adapter, ADAPTERS, what="adapter")
    known = ADAPTERS[adapter]
    for column in columns:
        check_choice(column, known.required + known.optional, what=f"column of {adapter}")
    for option in options:
        check_choice(option, known.options + known.needed_options, what=f"option of {adapter}")
    missing = [f"a column for {name}" for name in known.required if name not in columns]
    missing += [f"option {name}" for name in known.needed_options if name not in options]
    if missing:
        raise UserError(
            found=f"adapter {adapter} without {' and '.join(missing)}",
            expected="columns for " + ", ".join(known.required + known.needed_options),
            do="complete the columns and options of the source",
            exit_status=2,
        )


def adapt(records: Numbered, spec: Mapping[str, Any], *, texts: Texts | None = None) -> SourceRows:
    """The pairs of the records; `spec` is a row map of `tables` with `adapter` and `options`.

    `texts` gives each role of the adapter's other tables the texts by id, as `collect` finds them.
    """
    adapter, options = ADAPTERS[spec["adapter"]], spec["options"]
    numbered = [(row, record, named(record, spec["columns"])) for row, record in records]
    state = adapter.prepare([values for _, _, values in numbered], options, texts or {})
    row_map = {**spec, "columns": {name: name for name in COLUMNS}, "labels": []}
    rows = SourceRows()
    for row, record, values in numbered:
        try:
            made = adapter.expand(values, options, state)
        except NotAPair as error:
            rows.rows_in += 1
            rows.dropped[str(error)] += 1
        except RowError as error:
            rows.rows_in += 1
            rejected = {"source": spec["source"], "provenance": {"row": row}, "record": record}
            rows.quarantined.append(rejected_row(rejected, reason=error.reason, error=str(error)))
        else:
            marks = [""] if len(made) == 1 else [f".{i}" for i in range(len(made))]
            _add(rows, read_records(zip((row + m for m in marks), made, strict=True), row_map))
    return rows


def _add(rows: SourceRows, more: SourceRows) -> None:
    rows.rows_in += more.rows_in
    rows.pairs += more.pairs
    rows.quarantined += more.quarantined


def named(record: Mapping[str, Any], columns: Mapping[str, str]) -> Values:
    """The record under the adapter's names; `a.b` goes into a struct, `a_*` takes all of a list."""
    return {name: _value(record, column) for name, column in columns.items()}


def _value(record: Mapping[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    if column.endswith("*"):
        found = [name for name in record if name.startswith(column[:-1])]
        ordered = sorted(found, key=lambda name: (len(name), name))  # negative_2 before negative_10
        return [record[name] for name in ordered if record[name]]
    head, _, rest = column.partition(".")
    inner = record.get(head)
    return _value(inner, rest) if rest and isinstance(inner, Mapping) else None


def collect(
    batches: Iterable[pa.RecordBatch | pa.Table],
    columns: Mapping[str, str],
    *,
    wanted: Collection[str],
    prefix: str | None = None,
) -> dict[str, Values]:
    """{id: {title, text}} of the wanted ids; with a prefix the id is `<prefix><row number>`.

    One pass over the batches, keeping only what is wanted: memory is that of the result.
    """
    found: dict[str, Values] = {}
    values = pa.array(sorted(wanted), pa.string())
    first = 0
    for batch in batches:
        if prefix is None:
            ids = pc.cast(batch.column(columns["id"]), pa.string())
            mask = pc.is_in(ids, value_set=values)
            named_ids, chosen = ids.filter(mask).to_pylist(), batch.filter(mask)
        else:
            numbers = [i for i in range(batch.num_rows) if f"{prefix}{first + i}" in wanted]
            named_ids, chosen = (
                [f"{prefix}{first + i}" for i in numbers],
                batch.take(pa.array(numbers, pa.int64())),
            )
        first += batch.num_rows
        for identifier, record in zip(named_ids, chosen.to_pylist(), strict=True):
            found[identifier] = named(record, {"title": "", "text": "", **columns})
            found[identifier].pop("id", None)
    return found
