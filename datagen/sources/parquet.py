"""Parts of Parquet files: row groups, packed or cut into units of a few thousand rows."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.sources import ROWS_PER_UNIT


def parts(metadata: pq.FileMetaData) -> list[dict[str, int]]:
    """Runs of row groups of about ROWS_PER_UNIT rows; a larger group is cut into slices."""
    units: list[dict[str, int]] = []
    first_row = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        last = units[-1] if units else None
        if last and last["rows"] + rows <= ROWS_PER_UNIT:
            last["stop_group"], last["rows"] = group + 1, last["rows"] + rows
        else:
            units += _slices(group, rows, first_row)
        first_row += rows
    return units


def _slices(group: int, rows: int, first_row: int) -> Iterator[dict[str, int]]:
    for offset in range(0, rows, ROWS_PER_UNIT):
        yield {
            "group": group,
            "stop_group": group + 1,
            "offset": offset,
            "rows": min(ROWS_PER_UNIT, rows - offset),
            "first_row": first_row + offset,
        }


def read_part(
    file: pq.ParquetFile, part: dict[str, int], columns: list[str]
) -> list[tuple[int, dict[str, Any]]]:
    """(row number in the file, record) of every row of one part."""
    groups = list(range(part["group"], part["stop_group"]))
    table: pa.Table = file.read_row_groups(groups, columns=columns)
    records = table.slice(part["offset"], part["rows"]).to_pylist()
    return list(enumerate(records, part["first_row"]))
