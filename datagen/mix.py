"""The last build step: choose rows for both stages, and write the mix with row numbers for ids.

Ids only until the end: choosing works on query ids, tasks and sources; texts are read once, memory-
mapped, when a shard is written. A stage takes the queries of its tasks and sources that have enough
negatives, at most `rows_per_source` of each source (the ones whose seeded hash is smallest, so a
larger cap keeps every row of a smaller one), and writes them in task-homogeneous blocks.

Public rows come first, in shards of their own, and refer only to documents of the public shards:
they are the same bytes whatever the LLMs wrote. Cost: one sort over the ids of the documents, then
streaming; memory is about 80 bytes a query and 50 a document.

Stages as in llama-embed-nemotron-8b (arXiv 2511.07025, section 3.2) and F2LLM-v2 (arXiv 2603.19223,
section 3): retrieval with one negative first, then all tasks with four.
"""

import binascii
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.schema import (
    IN_BATCH_TASKS,
    MIX_DOCUMENT,
    MIX_ROW,
    STAGES,
    SYMMETRIC_TASKS,
    TASKS,
    UserError,
)
from datagen.steps import Context, LedgerRow, Step
from datagen.store import read_table

ID_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage takes: which tasks and sources, how many rows, how many negatives."""

    name: str
    negatives: int  # a query with fewer is dropped from this stage, counted
    tasks: tuple[str, ...] = TASKS
    sources: tuple[str, ...] | None = None  # None: every source
    rows_per_source: int | None = None  # F2LLM-v2 caps stage 2 at 80,000
    instruction_share: float = 1.0  # share of rows that carry their instruction
    symmetric_share: float = 1.0  # share of symmetric rows whose documents carry it too

    def __post_init__(self) -> None:
        unknown = [t for t in self.tasks if t not in TASKS]
        if self.name not in STAGES or unknown or self.negatives < 1:
            raise UserError(
                found=f"stage {self.name!r}, tasks {unknown or list(self.tasks)}, "
                f"{self.negatives} negatives",
                expected=f"a stage of {STAGES}, tasks of {TASKS}, at least 1 negative",
                do="mend the recipe",
                exit_status=2,
            )


def write_mix(
    deduped: Step,
    mined: Step,
    *,
    stages: Sequence[Stage],
    seed: int = 0,
    max_negatives: int = 24,
    rows_per_shard: int = 65_536,
    instructions: Mapping[str, str] | None = None,
    name: str = "mix",
) -> Step:
    """The mix, from `queries` and `documents` of one step and `mined` of another.

    `instructions` replaces the instruction of whole sources.
    """
    config = {
        "stages": [asdict(stage) for stage in stages],
        "seed": seed,
        "max_negatives": max_negatives,
        "rows_per_shard": rows_per_shard,
        "instructions": dict(instructions or {}),
    }
    return Step(
        name=name,
        version=1,
        config=config,
        inputs={"deduped": deduped, "mined": mined},
        work=_work,
        summary="choose rows for both stages and write the training shards",
        folder=name,
    )


def _work(context: Context) -> None:
    config = context.config
    queries = read_table(context.inputs["deduped"], "queries")
    documents = read_table(context.inputs["deduped"], "documents")
    mined = read_table(context.inputs["mined"], "mined")
    if not queries["query_id"].equals(mined["query_id"]):
        raise RuntimeError("the mined rows are not the rows of the queries, in their order")

    stages = [Stage(**_tuples(stage)) for stage in config["stages"]]
    chosen = {s.name: choose(queries, mined, s, seed=config["seed"]) for s in stages}
    _refuse_empty(chosen, stages)
    lookup = DocumentLookup(documents["doc_id"])
    numbering = number_documents(
        lookup, queries, mined, list(chosen.values()), max_negatives=config["max_negatives"]
    )
    _write_documents(context, documents, numbering)
    for stage in stages:
        writer = _RowWriter(queries, mined, lookup, numbering, stage, config)
        for part in _by_origin(queries, chosen[stage.name]):
            for start in range(0, len(part), config["rows_per_shard"]):
                rows = writer.rows(part[start : start + config["rows_per_shard"]])
                context.write(stage.name, rows, MIX_ROW, rows_per_shard=config["rows_per_shard"])
    context.ledger += _ledger(queries, mined, stages, chosen)
    context.facts["stages"] = {stage.name: _counts(queries, chosen[stage.name]) for stage in stages}
    context.facts["documents"] = int(numbering.total)


def _tuples(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in stage.items()}


def _refuse_empty(chosen: Mapping[str, np.ndarray], stages: Sequence[Stage]) -> None:
    for stage in stages:
        if not len(chosen[stage.name]):
            raise UserError(
                found=f"stage {stage.name!r} has no rows",
                expected=f"queries of {', '.join(stage.tasks)} with {stage.negatives} negatives",
                do="widen the stage's tasks and sources, or lower its number of negatives",
            )


def seeded_order(ids: Sequence[str], seed: int) -> np.ndarray:
    """Positions of the ids in a seeded pseudo-random order that depends on each id alone."""
    digests = [hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=8).digest() for i in ids]
    keys = np.frombuffer(b"".join(digests), dtype=">u8")
    return np.lexsort((np.asarray(ids, dtype=np.str_), keys))


def _coin(ids: Sequence[str], seed: int, share: float, purpose: str) -> np.ndarray:
    """True for about `share` of the ids, each id's fate independent of the others."""
    if share >= 1.0:
        return np.ones(len(ids), dtype=bool)
    digests = [
        hashlib.blake2b(f"{purpose}/{seed}/{i}".encode(), digest_size=8).digest() for i in ids
    ]
    return np.frombuffer(b"".join(digests), dtype=">u8") < np.uint64(share * (2**64 - 1))


def eligible(queries: pa.Table, stage: Stage) -> np.ndarray:
    """Mask of the queries whose task and source the stage takes."""
    mask = pc.is_in(queries["task"], pa.array(stage.tasks))
    if stage.sources is not None:
        mask = pc.and_(mask, pc.is_in(queries["source"], pa.array(stage.sources)))
    return mask.to_numpy().astype(bool)


def _negative_counts(mined: pa.Table) -> np.ndarray:
    return pc.list_value_length(mined["negatives"]).to_numpy()


def choose(queries: pa.Table, mined: pa.Table, stage: Stage, *, seed: int) -> np.ndarray:
    """Row positions of the queries that a stage takes, in the order in which it stores them."""
    usable = eligible(queries, stage) & (_negative_counts(mined) >= stage.negatives)
    rows = np.flatnonzero(usable)
    table = take_rows(queries.select(["origin", "task", "source", "query_id"]), rows)
    if stage.rows_per_source is not None:
        within = _within_cap(table, stage.rows_per_source, seed=seed)
        rows, table = rows[within], table.take(pa.array(within))
    # "public" sorts before "synthetic"; a query id is a hash, so inside a source order is random.
    keys = [(name, "ascending") for name in ("origin", "task", "source", "query_id")]
    return rows[pc.sort_indices(table, sort_keys=keys).to_numpy()]


def _within_cap(table: pa.Table, cap: int, *, seed: int) -> np.ndarray:
    """Positions of at most `cap` rows of each source, in seeded order; synthetic ones fill up.

    Public rows go first: what an LLM wrote for a source never takes their place.
    """
    order = seeded_order(table["query_id"].to_pylist(), seed)
    public = pc.equal(table["origin"], "public").to_numpy().astype(bool)
    sources = table["source"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = order[np.lexsort((~public[order], sources[order]))]
    grouped = sources[order]
    rank = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    return order[rank < cap]


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows of a table in the order given, one chunk.

    `Table.take` joins all chunks of a column first: it copies the whole column at each call, and
    fails beyond 2 GiB of text. This takes from each chunk what lies in it.
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    parts, start = [], 0
    for batch in table.to_batches():
        low, high = np.searchsorted(ordered, (start, start + batch.num_rows))
        if high > low:
            parts.append(batch.take(pa.array(ordered[low:high] - start)))
        start += batch.num_rows
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    joined = pa.Table.from_batches(parts, schema=table.schema).combine_chunks()
    return joined.take(pa.array(place))


def _by_origin(queries: pa.Table, rows: np.ndarray) -> list[np.ndarray]:
    """Rows of public and of synthetic queries, apart, so that no shard holds both."""
    public = pc.equal(queries["origin"], "public").to_numpy().astype(bool)[rows]
    return [part for part in (rows[public], rows[~public]) if len(part)]


class DocumentLookup:
    """Document id -> row of the documents table, by binary search over the sorted ids.

    An id is kept as two 64-bit numbers (16 bytes); the first one finds it, the second confirms it.
    """

    def __init__(self, ids: pa.ChunkedArray):
        keys = np.concatenate([_id_numbers(chunk) for chunk in ids.chunks])
        self.order = np.lexsort((keys[:, 1], keys[:, 0]))
        self.rank = np.empty_like(self.order)
        self.rank[self.order] = np.arange(len(self.order))
        self.first, self.second = keys[self.order, 0], keys[self.order, 1]

    def rows(self, ids: pa.Array) -> np.ndarray:
        wanted = _id_numbers(ids)
        last = len(self.first) - 1
        places = np.minimum(np.searchsorted(self.first, wanted[:, 0]), last)
        while True:
            near = self.first[places] == wanted[:, 0]
            found = near & (self.second[places] == wanted[:, 1])
            if found.all():
                return self.order[places]
            further = (
                near & ~found & (places < last)
            )  # ids that share their first half lie together
            if not further.any():
                missing = ids[int(np.argmin(found))].as_py()
                raise RuntimeError(f"document {missing} is referred to and is not in the documents")
            places[further] += 1


def _id_numbers(ids: pa.Array) -> np.ndarray:
    """Ids of 32 hexadecimal digits as pairs of 64-bit numbers, which sort as the ids do."""
    if not len(ids):
        return np.empty((0, 2), dtype=np.uint64)
    _, offsets, digits = ids.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if (np.diff(ends) != ID_DIGITS).any():
        raise RuntimeError(f"a document id does not have {ID_DIGITS} digits")
    numbers = binascii.unhexlify(memoryview(digits)[ends[0] : ends[-1]])
    return np.frombuffer(numbers, dtype=">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True, kw_only=True)
class _Numbering:
    """`order`: old rows in their new order; `new`: old row -> new row (-1: left out)."""

    order: np.ndarray
    new: np.ndarray
    public: int
    total: int


def number_documents(
    lookup: DocumentLookup,
    queries: pa.Table,
    mined: pa.Table,
    chosen: Sequence[np.ndarray],
    *,
    max_negatives: int,
) -> _Numbering:
    """Number the documents that the chosen rows refer to: those of public rows first, by id."""
    # 0: of a public row, 1: of synthetic rows only, 2: of none.
    rank = np.full(len(lookup.order), 2, dtype=np.int8)
    public = pc.equal(queries["origin"], "public").to_numpy().astype(bool)
    wanted = np.full(queries.num_rows, 2, dtype=np.int8)
    for rows in chosen:
        wanted[rows] = np.where(public[rows], 0, 1)
    start = 0
    for batch in mined.select(["positives", "negatives"]).to_batches():
        values = wanted[start : start + batch.num_rows]
        start += batch.num_rows
        for column, limit in ((batch["positives"], None), (batch["negatives"], max_negatives)):
            lists = column if limit is None else pc.list_slice(column, 0, limit)
            numbers = lookup.rows(lists.flatten())
            value = np.repeat(values, pc.list_value_length(lists).to_numpy())
            np.minimum.at(rank, numbers, value)
    order = np.lexsort((lookup.rank, rank))[: int((rank < 2).sum())]
    new = np.full(len(lookup.order), -1, dtype=np.int64)
    new[order] = np.arange(len(order))
    return _Numbering(order=order, new=new, public=int((rank == 0).sum()), total=len(order))


def _write_documents(context: Context, documents: pa.Table, numbering: _Numbering) -> None:
    step = context.config["rows_per_shard"]
    columns = documents.select(MIX_DOCUMENT.names)
    for begin, end in ((0, numbering.public), (numbering.public, numbering.total)):
        for start in range(begin, end, step):
            rows = take_rows(columns, numbering.order[start : min(start + step, end)])
            context.write("documents", rows, MIX_DOCUMENT, rows_per_shard=step)


class _RowWriter:
    """Builds MIX_ROW tables for row positions of the queries table."""

    def __init__(
        self,
        queries: pa.Table,
        mined: pa.Table,
        lookup: DocumentLookup,
        numbering: _Numbering,
        stage: Stage,
        config: Mapping[str, Any],
    ):
        self.queries, self.mined, self.lookup, self.numbering = queries, mined, lookup, numbering
        self.stage, self.config = stage, config

    def rows(self, positions: np.ndarray) -> pa.Table:
        taken = take_rows(self.queries, positions)
        mined = take_rows(self.mined, positions)
        ids = taken["query_id"].to_pylist()
        limit = self.config["max_negatives"]
        tasks = taken["task"].to_pylist()
        symmetric = np.array([task in SYMMETRIC_TASKS for task in tasks])
        symmetric &= _coin(ids, self.config["seed"], self.stage.symmetric_share, "symmetric")
        columns = {name: taken[name] for name in MIX_ROW.names if name in taken.schema.names}
        columns |= {
            "instruction": self._instructions(taken, ids),
            "positives": self._numbers(mined["positives"], None),
            "positive_scores": _whole_list(mined["positive_scores"]),
            "negatives": self._numbers(mined["negatives"], limit),
            "negative_scores": pc.list_slice(_whole_list(mined["negative_scores"]), 0, limit),
            "in_batch": pa.array([task in IN_BATCH_TASKS for task in tasks]),
            "symmetric": pa.array(symmetric),
        }
        arrays = [_cast(columns[field.name], field.type) for field in MIX_ROW]
        return pa.Table.from_arrays(arrays, schema=MIX_ROW)

    def _instructions(self, taken: pa.Table, ids: Sequence[str]) -> pa.Array:
        replaced = self.config["instructions"]
        keep = _coin(ids, self.config["seed"], self.stage.instruction_share, "instruction")
        pairs = zip(
            taken["source"].to_pylist(), taken["instruction"].to_pylist(), keep, strict=True
        )
        values = [replaced.get(source, own) if kept else None for source, own, kept in pairs]
        return pa.array(values, pa.string())

    def _numbers(self, lists: pa.ChunkedArray, limit: int | None) -> pa.Array:
        """Lists of document ids -> lists of row numbers of the mix's documents."""
        whole = _whole_list(lists)
        if limit is not None:
            whole = pc.list_slice(whole, 0, limit)
        numbers = self.numbering.new[self.lookup.rows(whole.flatten())]
        lengths = pc.list_value_length(whole).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.int64()))


def _whole_list(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _cast(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.Array:
    array = _whole_list(column)
    return array if array.type == kind else array.cast(kind)


def _counts(queries: pa.Table, rows: np.ndarray) -> dict[str, dict[str, int]]:
    taken = queries.select(["origin", "task", "source"]).take(pa.array(rows))
    return {
        name: dict(sorted(Counter(taken[name].to_pylist()).items())) for name in taken.schema.names
    }


def _ledger(
    queries: pa.Table,
    mined: pa.Table,
    stages: Sequence[Stage],
    chosen: Mapping[str, np.ndarray],
) -> list[LedgerRow]:
    """Queries in = kept in a stage + too few negatives + over budget + in no stage's scope."""
    count = queries.num_rows
    taken, wanted, enough = (np.zeros(count, dtype=bool) for _ in range(3))
    negatives = _negative_counts(mined)
    for stage in stages:
        scope = eligible(queries, stage)
        wanted |= scope
        enough |= scope & (negatives >= stage.negatives)
        taken[chosen[stage.name]] = True
    reasons = np.select(
        [taken, enough, wanted], ["kept", "over_budget", "too_few_negatives"], "in_no_stage"
    )
    per_source: dict[str, Counter] = {}
    for source, reason in zip(queries["source"].to_pylist(), reasons.tolist(), strict=True):
        per_source.setdefault(source, Counter())[reason] += 1
    return [
        LedgerRow(
            source=source,
            rows_in=counts.total(),
            kept=counts.pop("kept", 0),
            dropped=dict(counts),
            unit="queries",
        )
        for source, counts in sorted(per_source.items())
    ]
