"""Which of the written rows stay, over all LLMs and kinds, and the tables that say so.

Rows are taken in the order of LLM, kind and request: what comes first stays. A row must have no
fault that a check found (`checks`), resemble no public text and no row before it (`near`), and fit
the quota of its LLM and kind.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.clusters import read_frame
from datagen.schema import PAIR, QUARANTINE, rejected_row
from datagen.steps import Context, LedgerRow
from datagen.store import open_shard
from datagen.synthesize.checks import reasons_of
from datagen.synthesize.diversity import diversity, rounded
from datagen.synthesize.judge import JUDGED_LOW
from datagen.synthesize.llm_table import Spent, llm_table, summed
from datagen.synthesize.near import NEAR_DUPLICATE, Pool, near_duplicate_rule
from datagen.synthesize.pool import Member, quota_of
from datagen.synthesize.replica import ASKED
from datagen.synthesize.round_trip import ROUND_TRIP
from datagen.synthesize.select import Rule
from datagen.synthesize.written_language import OTHER_LANGUAGE

OVER_QUOTA = "over_quota"
BLOCKS_AT_ONCE = 128
SELECTION = (OTHER_LANGUAGE, ROUND_TRIP, JUDGED_LOW, NEAR_DUPLICATE, OVER_QUOTA)


@dataclasses.dataclass(kw_only=True)
class Chosen:
    """Reasons [rows] of every block of written rows, null for those that stay, and how many stay
    of each quota of each member."""

    reasons: dict[int, list[str | None]] = dataclasses.field(default_factory=dict)
    kept: dict[int, Counter[int]] = dataclasses.field(default_factory=dict)


def public_pool(context: Context) -> Pool:
    """The public texts, which are the same at every selection."""
    pool = Pool()
    for texts in _public_texts(context):
        pool.add(*texts)
    return pool


def choose(
    context: Context, members: Sequence[Member], *, public: Pool, faults: Mapping[str, str]
) -> Chosen:
    """Decide over all rows that have been written so far; `faults` are reasons by request."""
    near, chosen = near_duplicate_rule(public.copy()), Chosen()
    for member in members:
        kept = chosen.kept.setdefault(member.number, Counter())
        for indices in _together(member):
            blocks = [_written(context, member.records[index]) for index in indices]
            room = member.quotas[quota_of(indices[0])].rows - kept[quota_of(indices[0])]
            reasons = _reasons(pa.concat_tables(blocks), room, near, faults)
            kept[quota_of(indices[0])] += reasons.count(None)
            for index, rows in zip(indices, blocks, strict=True):
                chosen.reasons[index] = reasons[: rows.num_rows]
                del reasons[: rows.num_rows]
    return chosen


def _together(member: Member) -> Iterator[list[int]]:
    """Blocks of one quota, in order, some thousand rows at a time: a call costs 10 ms."""
    indices: list[int] = []
    for index in sorted(member.records):
        if indices and (len(indices) == BLOCKS_AT_ONCE or quota_of(index) != quota_of(indices[0])):
            yield indices
            indices = []
        indices.append(index)
    if indices:
        yield indices


def _reasons(rows: pa.Table, room: int, near: Rule, faults: Mapping[str, str]) -> list[str | None]:
    reasons = reasons_of(rows, faults)
    sound = [place for place, reason in enumerate(reasons) if reason is None]
    if room > 0 and sound:
        broken = near(rows.take(pa.array(sound))).broken
        for place in [place for place, one in zip(sound, broken, strict=True) if one]:
            reasons[place] = NEAR_DUPLICATE
    return _within(reasons, room)


def _within(reasons: Sequence[str | None], room: int) -> list[str | None]:
    """The reasons with all rows beyond the first `room` that stay marked as too many."""
    out: list[str | None] = []
    for reason in reasons:
        if reason is None and room <= 0:
            reason = OVER_QUOTA
        room -= reason is None
        out.append(reason)
    return out


def _public_texts(context: Context) -> Iterator[list[pa.ChunkedArray]]:
    """Queries and documents of the public pool, shard by shard."""
    folder = context.inputs["documents"]
    for table, column in (("queries", "query"), ("documents", "text")):
        for shard in context.input_shards("documents", table):
            yield [open_shard(folder, shard)[column]]


def _written(context: Context, record: Mapping[str, Any]) -> pa.Table:
    names = [shard["name"] for shard in record["shards"] if shard["table"] == "written"]
    return pa.concat_tables(
        [PAIR.empty_table(), *(open_shard(context.folder, name) for name in names)]
    )


def put_together(
    context: Context, members: Sequence[Member], chosen: Chosen, *, rows_per_shard: int
) -> None:
    """Write `pairs`, complete `rejected` and the ledger, and say for people what each LLM did."""
    records = [member.records[i] for member in members for i in sorted(member.records)]
    context.collect({**record, "ledger": []} for record in records)
    kept, gone = [], []
    reasons: dict[str, str] = {}
    for record in records:
        rows = _written(context, record)
        found = chosen.reasons[record["index"]]
        stays = pa.array([reason is None for reason in found], pa.bool_())
        kept.append(rows.filter(stays))
        for row, reason in zip(rows.to_pylist(), found, strict=True):
            if reason is not None:
                gone.append(rejected_row(row, reason=reason))
                reasons[row["provenance"]["row"]] = reason
    pairs = pa.concat_tables([PAIR.empty_table(), *kept])
    context.write("pairs", pairs, PAIR, rows_per_shard=rows_per_shard)
    unselected = pa.Table.from_pylist(gone, schema=QUARANTINE)
    context.write("unselected", unselected, QUARANTINE, rows_per_shard=rows_per_shard)
    asked = asked_with(context, reasons)
    context.ledger += _ledger(asked)
    sums = {member.llm.name: member for member in members}
    table = llm_table(
        asked.to_arrow(compat_level=pl.CompatLevel.oldest()),
        pairs,
        selection=SELECTION,
        spent={name: _spent(member) for name, member in sums.items()},
        diversity=rounded(diversity(pairs)),
    )
    context.facts["llms"] = summed(table, by=("llm", "kind"))
    context.facts["llms_by_language"] = table
    context.facts["missing"] = {name: member.missing() for name, member in sums.items()}
    context.facts["calls"] = {name: dict(sorted(m.sums.items())) for name, m in sums.items()}


def _spent(member: Member) -> Spent:
    seconds = member.sums["seconds"]
    return Spent(seconds=seconds, gpu_seconds=seconds * member.llm.num_gpus)


def asked_with(context: Context, reasons: Mapping[str, str]) -> pl.DataFrame:
    """One record a request of the writers, with the reason that it has now or is given."""
    frame = read_frame(context, "asked", ASKED)
    late = pl.DataFrame(
        {"request": list(reasons), "late": list(reasons.values())},
        schema={"request": pl.String, "late": pl.String},
    )
    joined = frame.join(late, on="request", how="left", maintain_order="left")
    return joined.with_columns(
        reason=pl.coalesce("reason", "late"), language=pl.col("language").fill_null("und")
    ).drop("late")


def _ledger(asked: pl.DataFrame) -> list[LedgerRow]:
    rows = []
    for (llm, kind), part in sorted(asked.group_by("llm", "kind"), key=lambda item: item[0]):
        dropped = Counter(part["reason"].drop_nulls().to_list())
        rows.append(
            LedgerRow(
                source=f"{llm}/{kind}",
                unit="requests",
                rows_in=len(part),
                kept=len(part) - sum(dropped.values()),
                dropped=dict(sorted(dropped.items())),
            )
        )
    return rows
