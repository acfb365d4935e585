"""Whether an Arrow or Parquet file holds what it says: nothing checks that when it is read.

Offsets or dictionary indices that point elsewhere would have the next kernel read foreign memory:
such a file is refused as a whole. Text that is no UTF-8 costs its row. One pass over the bytes,
some GB/s; rows are looked at one by one only where there is something wrong.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from datagen.schema import UserError

PIECE_ROWS = 4096


def sound_rows(table: pa.Table, *, where: str) -> np.ndarray | None:
    """A mask of the rows that are valid UTF-8 throughout; None when all are.

    Raises UserError when the table is damaged beyond its texts.
    """
    try:
        for field in table.schema:
            _names_of(field)
    except UnicodeDecodeError as error:
        raise _damaged(where, f"a name is no text: {error}") from error
    if _problem(table) is None:
        return None
    for column in table.columns:
        for chunk in column.chunks:
            _check_structure(chunk, where=where)
    sound = np.ones(table.num_rows, bool)
    for start in range(0, table.num_rows, PIECE_ROWS):
        piece = table.slice(start, PIECE_ROWS).combine_chunks()
        if _problem(piece) is not None:
            rows = range(piece.num_rows)
            valid = [_problem(piece.slice(i, 1).take([0])) is None for i in rows]
            sound[start : start + len(valid)] = valid
    return sound


def _problem(data: pa.Table | pa.Array) -> str | None:
    try:
        data.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        return str(error)
    return None


def _check_structure(chunk: pa.Array, *, where: str) -> None:
    """UserError unless the array is valid when its texts are taken for bytes."""
    try:
        problem = _problem(chunk.view(as_bytes(chunk.type)))
    except pa.ArrowException:  # a type that has no view, nor text: it is judged as it is
        problem = _problem(chunk)
    if problem is not None:
        raise _damaged(where, problem)


def _damaged(where: str, problem: str) -> UserError:
    return UserError(
        found=f"{where} is damaged: {problem.splitlines()[0][:300]}",
        expected="a whole file of the format that its extension names",
        do="fetch or write the file again, or leave it out",
    )


def _names_of(field: pa.Field) -> list[str]:
    """The names of a field and of those inside; UnicodeDecodeError when one is no text."""
    kind = field.type
    inner = [kind.field(i) for i in range(kind.num_fields)]
    return [field.name, *(name for child in inner for name in _names_of(child))]


def as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes wherever it has text."""
    return _mapped(kind, {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get)


def wide_type(kind: pa.DataType) -> pa.DataType:
    """The type with 64-bit offsets wherever it has text, bytes or lists."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    mapped = _mapped(kind, wide.get)
    return pa.large_list(mapped.value_field) if pa.types.is_list(mapped) else mapped


def _mapped(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType | None]) -> pa.DataType:
    """The type with its innermost types changed, where there is something to change them to."""
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_mapped(kind.value_type, change)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_mapped(kind.value_type, change)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_mapped(field.type, change)) for field in kind])
    return change(kind) or kind
