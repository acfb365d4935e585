"""Mixes made of the rows of a finished one: what an ablation changes in the data, as data.

A variant is a folder with the documents of the mix (linked, not copied, so that row numbers stay)
and some rows of its stages; it has a manifest, a ledger that says why each row is not there, and
passes `datagen verify`. Rows are taken by seeded keys of their ids: more rows contain fewer.

A stricter margin keeps the negatives whose stored score is low enough. They lie best first, so
what is left of a row begins with what mining under that margin would have found; rows that it
leaves too few are dropped. Cost: one pass over the rows of a stage.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.document_table import link
from datagen.mining_rules import LABELLED, percent_of_positive
from datagen.mix_ids import id_numbers, seeded_keys
from datagen.mix_shards import take_ordered
from datagen.overview import LEDGER, ledger_of
from datagen.schema import MIX_ROW, UserError
from datagen.steps import Context, LedgerRow, Step, run_step
from datagen.store import Folder, read_manifest, read_table
from recipes.random_negatives import RandomNegatives, with_negatives

REASONS = ("too_few_negatives", "synthetic_not_taken", "over_budget", "other_language")
ROWS_PER_SHARD = 65_536


@dataclass(frozen=True, kw_only=True)
class MixRules:
    """What a variant takes. `None` leaves rows or negatives as they are."""

    public_rows: int | None = None  # at most
    synthetic: tuple[tuple[str, str, int], ...] | None = None  # LLM, task, rows; () takes none
    margin: float | None = None  # of negatives, as a share of the lowest positive's score
    enough_at: float | None = None  # rows must have their negatives at this margin too
    random_negatives: bool = False  # in place of the mined ones
    languages: tuple[str, ...] | None = None  # of queries


def derive(
    mix: str,
    output: str,
    *,
    name: str,
    rules: MixRules,
    negatives: Mapping[str, int],
    encoder: str | None = None,
    seed: int = 0,
) -> str:
    """Write the variant to `output/name` and return that folder; at once when it is there.

    `negatives` names its stages and how many each row must have; the rules hold for each stage.
    `encoder` (a model folder) scores random negatives.
    """
    told = {s["name"]: s for s in read_manifest(Folder(mix)).config.get("stages", [])}
    if absent := sorted({*negatives} - {*told}):
        raise UserError(
            found=f"{mix} has the stages {', '.join(told) or 'none'}",
            expected=", ".join(absent),
            do="name a finished mix that has it",
            exit_status=2,
        )
    needed = ({"negatives": count, "task_negatives": {}} for count in negatives.values())
    config = {
        "stages": [told[stage] | own for stage, own in zip(negatives, needed, strict=True)],
        "rules": asdict(rules),
        "seed": seed,
    }
    if rules.random_negatives:
        from datagen.encoder_model import inspect_encoder

        config["encoder"] = inspect_encoder(encoder or "").digest

    def work(context: Context) -> None:
        _work(context, encoder)

    step = Step(name="variant", version=1, config=config, inputs={}, work=work, folder=name)
    manifest = run_step(step, Folder(output), {"mix": Folder(mix)}, executor="local")
    place = Folder(output).folder(name)
    place.write_json(LEDGER, ledger_of([manifest]))
    return place.uri


def _work(context: Context, encoder: str | None) -> None:
    source, seed = context.inputs["mix"], context.config["seed"]
    rules = MixRules(**context.config["rules"])
    for shard in read_manifest(source).table("documents"):
        link(source, context.folder, shard)
        context.shards.append(shard)
    context.facts["blocks"] = {}
    fates = []
    for stage in context.config["stages"]:
        table = read_table(source, stage["name"])
        reason = _reasons(table, rules, needed=stage["negatives"], seed=seed)
        _write_stage(context, stage, table, reason == 0, encoder=encoder)
        columns = {name: pl.from_arrow(table[name]) for name in ("query_id", "source")}
        fates.append(pl.DataFrame({**columns, "reason": reason}))
    context.ledger += _ledger(pl.concat(fates))


def _write_stage(
    context: Context,
    stage: Mapping[str, Any],
    table: pa.Table,
    taken: np.ndarray,
    *,
    encoder: str | None,
) -> None:
    rules = MixRules(**context.config["rules"])
    rows = take_ordered(table, np.flatnonzero(taken)).combine_chunks()
    if not len(rows):
        raise UserError(
            found=f"no row of {stage['name']} is left under {rules}",
            expected="at least one",
            do="ask for more rows, or a margin that leaves them their negatives",
        )
    if rules.margin is not None:
        rows = with_negatives(rows, *_cut(rows, rules.margin))
    if rules.random_negatives:
        documents = read_table(context.inputs["mix"], "documents")
        drawn = RandomNegatives(documents, rows, count=stage["negatives"])
        rows = drawn.scored(encoder or "", seed=context.config["seed"])
    public = pc.equal(rows["origin"], "public")
    for mask in (public, pc.invert(public)):  # no shard holds both
        part = rows.filter(mask)
        context.write(stage["name"], part, MIX_ROW, rows_per_shard=ROWS_PER_SHARD)
    context.facts["blocks"][stage["name"]] = _blocks(rows)


def _reasons(table: pa.Table, rules: MixRules, *, needed: int, seed: int) -> np.ndarray:
    """For each row 0, or 1 + the number of the reason why it is not taken."""
    reason = np.zeros(len(table), np.int8)
    margins = [m for m in (rules.margin, rules.enough_at) if m is not None]
    left = _allowed(table, min(margins))[1] if margins else _lengths(table["negatives"])
    reason[left < needed] = 1
    if rules.languages is not None:
        spoken = pc.is_in(table["language"], pa.array(rules.languages, pa.string()))
        reason[(reason == 0) & ~spoken.to_numpy(zero_copy_only=False)] = 4
    ids = np.concatenate([id_numbers(chunk) for chunk in table["query_id"].chunks])
    keys = seeded_keys(ids, seed=seed, purpose="ablation")
    public = pc.equal(table["origin"], "public").to_numpy(zero_copy_only=False)
    if rules.synthetic is not None:
        llms = pc.fill_null(pc.struct_field(table["provenance"], "llm"), "").to_numpy()
        tasks, taken = table["task"].to_numpy(), public.copy()
        for llm, task, count in rules.synthetic:
            written = ~public & (llms == llm) & (tasks == task) & (reason == 0)
            taken[_smallest(written, keys, count)] = True
        reason[~taken & (reason == 0)] = 2
    if rules.public_rows is not None:
        fits = public & (reason == 0)
        fits[_smallest(fits, keys, rules.public_rows)] = False
        reason[fits] = 3
    return reason


def _smallest(mask: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of the `count` smallest keys under the mask."""
    rows = np.flatnonzero(mask)
    return rows[np.argsort(keys[rows], kind="stable")[:count]]


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(lists).to_numpy()


def _allowed(table: pa.Table, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(which of all negatives one after the other the margin allows, how many of each row).

    Labels are wrong at any score.
    """
    counts = _lengths(table["negatives"])
    rows = np.repeat(np.arange(len(counts)), counts)
    firsts = np.concatenate([[0], np.cumsum(_lengths(table["positive_scores"]))[:-1]])
    lowest = np.minimum.reduceat(pc.list_flatten(table["positive_scores"]).to_numpy(), firsts)
    ceilings = percent_of_positive(lowest, margin)
    labelled = pc.is_in(table["task"], pa.array(sorted(LABELLED))).to_numpy(zero_copy_only=False)
    scores = pc.list_flatten(table["negative_scores"]).to_numpy()
    allowed = (scores <= ceilings[rows]) | labelled[rows]
    return allowed, np.bincount(rows[allowed], minlength=len(counts))


def _cut(rows: pa.Table, margin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(negatives, scores, how many of each row) under a margin."""
    allowed, counts = _allowed(rows, margin)
    flat = (pc.list_flatten(rows[c]).to_numpy() for c in ("negatives", "negative_scores"))
    numbers, scores = (values[allowed] for values in flat)
    return numbers, scores, counts


def _blocks(rows: pa.Table) -> list[dict[str, Any]]:
    """The runs of one origin, task and source, in their order."""
    names = ["origin", "task", "source"]
    frame = pl.DataFrame(rows.select(names))
    runs = frame.with_columns(run=pl.struct(names).rle_id()).group_by("run", maintain_order=True)
    counted = runs.agg(*(pl.col(n).first() for n in names), pl.len().alias("rows"))
    return counted.drop("run").to_dicts()


def _ledger(fates: pl.DataFrame) -> list[LedgerRow]:
    """Queries in = kept in a stage + those that no stage takes, by the first of their reasons."""
    queries = fates.group_by("query_id").agg(pl.col("source").first(), pl.col("reason").min())
    rows = []
    for (source,), part in queries.partition_by("source", as_dict=True).items():
        counts: Mapping[int, int] = dict(part["reason"].value_counts().rows())
        dropped = {name: counts[i] for i, name in enumerate(REASONS, 1) if i in counts}
        rows.append(
            LedgerRow(
                source=str(source),
                unit="queries",
                rows_in=len(part),
                kept=counts.get(0, 0),
                dropped=dropped,
            )
        )
    return rows


def llm_rows(mix: str, *, stage: str = "finetune") -> dict[str, dict[str, int]]:
    """Synthetic rows of each LLM by task."""
    table = read_table(Folder(mix), stage, ["origin", "task", "provenance"])
    frame = pl.DataFrame(
        {
            "task": pl.from_arrow(table["task"]),
            "llm": pl.from_arrow(pc.struct_field(table["provenance"].combine_chunks(), "llm")),
        }
    )
    counted = frame.drop_nulls().group_by("llm", "task").len().sort("llm", "task")
    found: dict[str, dict[str, int]] = {}
    for llm, task, count in counted.rows():
        found.setdefault(llm, {})[task] = count
    return found


def size_of(mix: str) -> str:
    """What a mix holds, in words."""
    manifest = read_manifest(Folder(mix))
    rows = f"{manifest.rows('finetune'):,} rows, {manifest.rows('documents'):,} documents"
    return f"{rows}, digest {manifest.digest[:12]}"
