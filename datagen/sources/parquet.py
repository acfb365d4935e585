"""Parts of Parquet files: row groups, packed or cut into units of some thousand rows.

A row group has no index of its rows: reading its n-th part decodes the parts before it, too. Units
are therefore not small, and as few rows as BYTES_PER_UNIT hold where rows are large.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.sources import BYTES_PER_UNIT, ROWS_PER_UNIT

BATCH_ROWS = 4096


def parts(metadata: pq.FileMetaData) -> list[dict[str, int]]:
    """Runs of row groups of about ROWS_PER_UNIT rows; a larger group is cut into slices."""
    units: list[dict[str, int]] = []
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, limit = group.num_rows, _rows_per_unit(group)
        last = units[-1] if units else None
        if last and last["rows"] + rows <= min(last["limit"], limit):
            last["stop_group"], last["rows"] = number + 1, last["rows"] + rows
            last["limit"] = min(last["limit"], limit)
        else:
            units += _slices(number, rows, first_row, limit=limit)
        first_row += rows
    return [{name: unit[name] for name in unit if name != "limit"} for unit in units]


def _rows_per_unit(group: pq.RowGroupMetaData) -> int:
    fitting = group.num_rows * BYTES_PER_UNIT // max(1, group.total_byte_size)
    return max(1, min(ROWS_PER_UNIT, fitting))


def _slices(group: int, rows: int, first_row: int, *, limit: int) -> Iterator[dict[str, int]]:
    for offset in range(0, rows, limit):
        yield {
            "group": group,
            "stop_group": group + 1,
            "offset": offset,
            "rows": min(limit, rows - offset),
            "first_row": first_row + offset,
            "limit": limit,
        }


def read_table(file: pq.ParquetFile, part: dict[str, int], columns: list[str]) -> pa.Table:
    """The rows of one part."""
    groups = list(range(part["group"], part["stop_group"]))
    start, stop = part["offset"], part["offset"] + part["rows"]
    seen, found = 0, []
    batch_rows = max(1, min(BATCH_ROWS, part["rows"]))  # where rows are large, a part has few
    for batch in file.iter_batches(batch_rows, row_groups=groups, columns=columns):
        first, last = max(start - seen, 0), min(stop - seen, batch.num_rows)
        if first < last:
            found.append(batch.slice(first, last - first))
        seen += batch.num_rows
        if seen >= stop:
            break
    schema = found[0].schema if found else None
    return pa.Table.from_batches(found, schema)
