"""The rows of a mix: what is known of every query, and rows with row numbers in place of ids.

Rows are made of one shard of the queries at a time (datagen.mix_shards), on whole columns: seeded
draws come from the numbers of the ids, row numbers from the table of sorted document ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.mix_ids import DocumentLookup, coin, id_numbers
from datagen.mix_shards import Run, Sharded, take_ordered
from datagen.schema import IN_BATCH_TASKS, MIX_ROW, SYMMETRIC_TASKS
from datagen.stages import NO_LANGUAGE, QueryKeys, Stage


def read_keys(queries: Sharded, mined: Sharded, *, run: Run) -> QueryKeys:
    """What choosing needs of every query; RuntimeError when the mined rows are of other queries."""
    if len(queries) != len(mined):
        raise RuntimeError(
            f"{len(mined)} mined rows are not the rows of the {len(queries)} queries"
        )
    found = list(run(lambda number: _keys_of(queries.open(number)), range(len(queries.names))))
    counted = list(run(lambda number: _mined_of(mined.open(number)), range(len(mined.names))))
    ids = np.concatenate([part["ids"] for part in found])
    start = 0
    for other, _ in counted:
        if not np.array_equal(ids[start : start + len(other)], other):
            raise RuntimeError("the mined rows are not the rows of the queries, in their order")
        start += len(other)
    names, codes = {}, {}
    for group in ("source", "task", "language"):
        columns = [part[group] for part in found]
        names[group] = sorted({name for values, _ in columns for name in values})
        rank = {name: i for i, name in enumerate(names[group])}
        kind = np.int16 if len(rank) < 2**15 else np.int32
        codes[group] = np.concatenate(
            [np.array([rank[name] for name in values], kind)[local] for values, local in columns]
        )
    return QueryKeys(
        ids=ids,
        public=np.concatenate([part["public"] for part in found]),
        negatives=np.concatenate([counts for _, counts in counted]),
        names=names,
        **codes,
    )


def _keys_of(table: pa.Table) -> dict[str, Any]:
    return {
        "ids": np.concatenate([id_numbers(chunk) for chunk in table["query_id"].chunks]),
        "public": pc.equal(table["origin"], "public").to_numpy().astype(bool),
        **{name: _coded(table[name]) for name in ("source", "task", "language")},
    }


def _coded(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """(distinct values, code of each row)."""
    whole = column.combine_chunks()
    if whole.null_count:
        whole = whole.fill_null(NO_LANGUAGE)
    encoded = whole.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _mined_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([id_numbers(chunk) for chunk in table["query_id"].chunks])
    return ids, pc.list_value_length(table["negatives"]).to_numpy().astype(np.int32)


class RowMaker:
    """Rows of MIX_ROW out of rows of the queries and what was mined for them.

    `numbers` gives the row of the mix's documents for a row of the lookup's.
    """

    def __init__(
        self,
        queries: Sharded,
        mined: Sharded,
        *,
        lookup: DocumentLookup,
        numbers: np.ndarray,
        config: Mapping[str, Any],
    ):
        self.queries, self.mined, self.lookup, self.numbers = queries, mined, lookup, numbers
        self.limit, self.seed = config["max_negatives"], config["seed"]
        self.replaced = config["instructions"]

    def make(self, stage: Stage, number: int, rows: np.ndarray) -> pa.Table:
        """The rows of MIX_ROW of one shard of the queries, by ascending row in it."""
        taken = take_ordered(self.queries.open(number), rows).combine_chunks()
        mined = self._mined(rows + self.queries.starts[number])
        ids = id_numbers(taken["query_id"].chunk(0))
        symmetric = pc.is_in(taken["task"], pa.array(sorted(SYMMETRIC_TASKS))).to_numpy()
        symmetric &= self._coin(ids, stage.symmetric_share, "symmetric")
        columns = {name: taken[name] for name in MIX_ROW.names if name in taken.schema.names}
        columns |= {
            "instruction": self._instructions(taken, ids, stage),
            "positives": self._numbered(mined["positives"], None),
            "positive_scores": _one(mined["positive_scores"]),
            "negatives": self._numbered(mined["negatives"], self.limit),
            "negative_scores": pc.list_slice(_one(mined["negative_scores"]), 0, self.limit),
            "given_negatives": pc.min_element_wise(
                _one(mined["given_negatives"]), self.limit, skip_nulls=False
            ),
            "in_batch": pc.is_in(taken["task"], pa.array(sorted(IN_BATCH_TASKS))),
            "symmetric": pa.array(symmetric),
        }
        arrays = [_cast(columns[field.name], field.type) for field in MIX_ROW]
        return pa.Table.from_arrays(arrays, schema=MIX_ROW)

    def _mined(self, rows: np.ndarray) -> pa.Table:
        """The mined rows of ascending rows of the whole table."""
        parts = [take_ordered(self.mined.open(n), at) for n, at in self.mined.places(rows)]
        return pa.concat_tables(parts).combine_chunks()

    def _coin(self, ids: np.ndarray, share: float, purpose: str) -> np.ndarray:
        return coin(ids, seed=self.seed, share=share, purpose=purpose)

    def _instructions(self, taken: pa.Table, ids: np.ndarray, stage: Stage) -> pa.Array:
        values = _one(taken["instruction"])
        if self.replaced:
            sources = pa.array(list(self.replaced), pa.string())
            at = pc.index_in(taken["source"], sources).combine_chunks()
            texts = pa.array(list(self.replaced.values()), pa.string())
            values = pc.coalesce(texts.take(at), values)
        kept = self._coin(ids, stage.instruction_share, "instruction")
        return pc.if_else(pa.array(kept), values, pa.scalar(None, pa.string()))

    def _numbered(self, lists: pa.ChunkedArray, limit: int | None) -> pa.Array:
        """Lists of document ids -> lists of row numbers of the mix's documents."""
        whole = _one(lists)
        if limit is not None:
            whole = pc.list_slice(whole, 0, limit)
        numbers = self.numbers[self.lookup.rows(whole.flatten())]
        lengths = pc.list_value_length(whole).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.int64()))


def referred(mined: pa.Table, *, limit: int) -> Sequence[tuple[pa.Array, np.ndarray]]:
    """(document ids, rows of `mined` that name them) for positives and the first negatives."""
    found = []
    for column, most in (("positives", None), ("negatives", limit)):
        lists = _one(mined[column])
        lists = lists if most is None else pc.list_slice(lists, 0, most)
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        found.append((lists.flatten(), np.repeat(np.arange(len(lists)), lengths)))
    return found


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _cast(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.Array:
    array = _one(column)
    return array if array.type == kind else array.cast(kind)
