"""The last build step: choose rows for both stages, and write the mix with row numbers for ids.

Ids only until the end: choosing works on query ids and small codes (datagen.stages); texts are read
when a shard is written (datagen.mix_rows). A stage takes the queries of its tasks and sources that
have enough negatives, within its limits, and writes them in task-homogeneous blocks; the manifest
says where each block lies, so that a reader need not look at the columns.

Public rows come first, in shards of their own, and refer only to documents of the public shards:
they are the same bytes whatever the LLMs wrote. Cost: two passes over ids, then one pass over the
shards for each block of rows; memory is about 70 bytes a query, 50 a document, and one block.

Several mixes of the same rows (other seeds, other limits, for models to be merged) share one
documents table: `mix_documents` writes it, each `write_mix(documents=...)` links its shards.

Stages as in llama-embed-nemotron-8b (arXiv 2511.07025, section 3.2) and F2LLM-v2 (arXiv 2603.19223,
section 3): retrieval with one negative first, then all tasks with four.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from datagen.document_table import Inputs, cut, link_documents, write_all, write_documents
from datagen.mix_rows import RowMaker
from datagen.mix_shards import Run, gather, threads
from datagen.schema import MIX_ROW, UserError
from datagen.stages import QueryKeys, Stage, choose, eligible, usable
from datagen.steps import Context, LedgerRow, Step

log = logging.getLogger("embedmix")

BLOCK_ROWS = 1 << 19  # gathered at once; about 500 bytes each


def write_mix(
    deduped: Step,
    mined: Step,
    *,
    stages: Sequence[Stage],
    seed: int = 0,
    max_negatives: int = 24,
    rows_per_shard: int = 65_536,
    instructions: Mapping[str, str] | None = None,
    documents: Step | None = None,
    may_be_empty: Sequence[str] = (),
    name: str = "mix",
) -> Step:
    """The mix, from `queries` and `documents` of one step and `mined` of another.

    `instructions` replaces the instruction of whole sources. `documents` is a step of
    `mix_documents` that was told of this mix. `may_be_empty` are sources of which the steps before
    may have left nothing: the mix then names them in its manifest; others that have no queries are
    an error.
    """
    config: dict[str, Any] = {
        "stages": [asdict(stage) for stage in stages],
        "seed": seed,
        "max_negatives": max_negatives,
        "rows_per_shard": rows_per_shard,
        "instructions": dict(instructions or {}),
        **_allowing(may_be_empty),
    }
    inputs = {"deduped": deduped, "mined": mined}
    return Step(
        name=name,
        version=2,  # 1 drew rows by a hash of the text of ids
        config=config,
        inputs={**inputs, **({"documents": documents} if documents else {})},
        work=_write_mix,
        summary="choose rows for both stages and write the training shards",
        folder=name,
    )


def mix_documents(
    deduped: Step,
    mined: Step,
    *,
    mixes: Sequence[tuple[Sequence[Stage], int]],
    max_negatives: int = 24,
    rows_per_shard: int = 65_536,
    may_be_empty: Sequence[str] = (),
    name: str = "mix_documents",
) -> Step:
    """The documents of several mixes, each given by its stages and its seed, as one table."""
    config = {
        "mixes": [{"stages": [asdict(s) for s in stages], "seed": seed} for stages, seed in mixes],
        "max_negatives": max_negatives,
        "rows_per_shard": rows_per_shard,
        **_allowing(may_be_empty),
    }
    return Step(
        name=name,
        version=1,
        config=config,
        inputs={"deduped": deduped, "mined": mined},
        work=_write_shared,
        summary="write the documents that several mixes share",
    )


def _allowing(may_be_empty: Sequence[str]) -> dict[str, list[str]]:
    """Of a configuration; nothing where nothing is allowed, so that such mixes stay as they are."""
    return {"may_be_empty": sorted(may_be_empty)} if may_be_empty else {}


def _write_shared(context: Context) -> None:
    with threads() as run:
        inputs = Inputs.of(context, run)
        mixes = [(_stages(mix), mix["seed"]) for mix in context.config["mixes"]]
        for stages, _ in mixes:
            _refuse_absent(inputs.keys, stages, context)
        chosen = [
            part
            for stages, seed in mixes
            for part in _choose(inputs.keys, stages, seed=seed).values()
        ]
        write_documents(context, inputs, chosen, run=run)


def _write_mix(context: Context) -> None:
    config, stages = context.config, _stages(context.config)
    with threads() as run:
        inputs = Inputs.of(context, run)
        empty = _refuse_absent(inputs.keys, stages, context)
        chosen = _choose(inputs.keys, stages, seed=config["seed"])
        if "documents" in context.inputs:
            lookup, numbers = link_documents(context, run=run)
        else:
            lookup, numbers = write_documents(context, inputs, list(chosen.values()), run=run)
        maker = RowMaker(
            inputs.queries, inputs.mined, lookup=lookup, numbers=numbers, config=config
        )
        for stage in stages:
            for rows in _by_origin(inputs.keys, chosen[stage.name]):
                _write_rows(context, maker, stage, rows, run=run)
    context.ledger += _ledger(inputs.keys, stages, chosen)
    context.facts["stages"] = {s.name: _counts(inputs.keys, chosen[s.name]) for s in stages}
    context.facts["blocks"] = {s.name: blocks(inputs.keys, chosen[s.name]) for s in stages}
    if empty:
        context.facts["empty_sources"] = empty
    context.facts["documents"] = sum(s.rows for s in context.shards if s.table == "documents")


def _stages(config: Mapping[str, Any]) -> list[Stage]:
    lists: list[dict[str, Any]] = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in stage.items()}
        for stage in config["stages"]
    ]
    return [Stage(**stage) for stage in lists]


def _refuse_absent(keys: QueryKeys, stages: Sequence[Stage], context: Context) -> list[str]:
    """Sources that may be empty and are; UserError for others that have no queries."""
    known, empty = set(keys.names["source"]), set[str]()
    allowed = set(context.config.get("may_be_empty", ()))
    for stage in stages:
        absent = stage.named_sources - known
        empty |= absent & allowed
        if unknown := sorted(absent - allowed):
            close = {c for name in unknown for c in difflib.get_close_matches(name, known)}
            raise UserError(
                found=f"stage {stage.name!r} names sources that have no queries: "
                + ", ".join(unknown),
                expected=f"sources of the queries: {', '.join(sorted(close or known)[:20])}",
                do="mend the recipe, or add the sources",
            )
    if empty:
        log.warning(
            "%s: the steps before left no queries of %s", context.name, ", ".join(sorted(empty))
        )
    return sorted(empty)


def _choose(keys: QueryKeys, stages: Sequence[Stage], *, seed: int) -> dict[str, np.ndarray]:
    """Rows of each stage; UserError for a stage without rows."""
    chosen = {stage.name: choose(keys, stage, seed=seed) for stage in stages}
    for stage in stages:
        if not len(chosen[stage.name]):
            raise UserError(
                found=f"stage {stage.name!r} has no rows",
                expected=f"queries of {', '.join(stage.tasks)} with {stage.negatives} negatives",
                do="widen the stage's tasks and sources, or lower its number of negatives",
            )
    return chosen


def _by_origin(keys: QueryKeys, rows: np.ndarray) -> list[np.ndarray]:
    """Rows of public and of synthetic queries, apart, so that no shard holds both."""
    public = keys.public[rows]
    return [part for part in (rows[public], rows[~public]) if len(part)]


def _write_rows(
    context: Context, maker: RowMaker, stage: Stage, rows: np.ndarray, *, run: Run
) -> None:
    step = context.config["rows_per_shard"]
    for block in cut(rows, max(BLOCK_ROWS // step, 1) * step):
        make = partial(maker.make, stage)
        tables = gather(maker.queries, block, make, rows_per_shard=step, run=run)
        write_all(context, stage.name, tables, MIX_ROW)


def blocks(keys: QueryKeys, rows: np.ndarray) -> list[dict[str, Any]]:
    """The runs of one origin, task and source among the rows, in their order."""
    codes = np.stack([~keys.public[rows], keys.task[rows], keys.source[rows]]).astype(np.int32)
    borders = np.flatnonzero((np.diff(codes) != 0).any(axis=0)) + 1
    starts = np.concatenate([[0], borders])
    lengths = np.diff(np.concatenate([starts, [len(rows)]]))
    return [
        {
            "origin": "synthetic" if synthetic else "public",
            "task": keys.names["task"][task],
            "source": keys.names["source"][source],
            "rows": int(length),
        }
        for (synthetic, task, source), length in zip(codes[:, starts].T, lengths, strict=True)
    ]


def _counts(keys: QueryKeys, rows: np.ndarray) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for block in blocks(keys, rows):
        for name in ("origin", "task", "source"):
            group = counted.setdefault(name, {})
            group[block[name]] = group.get(block[name], 0) + block["rows"]
    return {name: dict(sorted(group.items())) for name, group in counted.items()}


def _ledger(
    keys: QueryKeys, stages: Sequence[Stage], chosen: Mapping[str, np.ndarray]
) -> list[LedgerRow]:
    """Queries in = kept in a stage + too few negatives + over budget + in no stage's scope."""
    taken, wanted, enough = (np.zeros(len(keys), dtype=bool) for _ in range(3))
    for stage in stages:
        wanted |= eligible(keys, stage)
        enough |= usable(keys, stage)
        taken[chosen[stage.name]] = True
    reasons = ("kept", "over_budget", "too_few_negatives", "in_no_stage")
    reason = np.select([taken, enough, wanted], [0, 1, 2], 3).astype(np.int64)
    names = keys.names["source"]
    table = np.bincount(
        keys.source.astype(np.int64) * len(reasons) + reason, minlength=len(names) * len(reasons)
    ).reshape(-1, len(reasons))
    return [
        LedgerRow(
            source=name,
            rows_in=int(counts.sum()),
            kept=int(counts[0]),
            dropped={r: int(n) for r, n in zip(reasons[1:], counts[1:], strict=True) if n},
            unit="queries",
        )
        for name, counts in zip(names, table, strict=True)
    ]
