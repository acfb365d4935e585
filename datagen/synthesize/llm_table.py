"""The table of what each LLM was asked in each kind and language, what of it stays, and its cost.

It is made from one record a request and checked against the rows that stay: requests are rows or
have a reason, none are lost. Time is known for each LLM as a whole, because requests of all kinds
are in its engine at once; a group has the share of it that it has of the tokens written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.synthesize.written import GROUP, written_by

# `reason` is null for a request whose row stays.
REQUESTS = pa.schema(
    [
        pa.field("llm", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
    ]
)
SUMS = ("requested", "valid", "kept", "prompt_tokens", "output_tokens", "seconds", "gpu_seconds")
Group = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Time of all replicas of an LLM while they answered, and that of all its GPUs."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0


def llm_table(
    requests: pa.Table,
    kept: pa.Table,
    *,
    selection: Sequence[str],
    spent: Mapping[str, Spent] | None = None,
    diversity: Mapping[Group, Mapping[str, float | None]] | None = None,
) -> list[dict[str, Any]]:
    """One record per LLM, kind and language, sorted; `kept` are the PAIR rows that stay.

    `selection` names the rules on rows: a request that fell to one of them had a valid answer.
    RuntimeError unless in every group requested = kept + sum(reasons).
    """
    frame = pl.DataFrame(requests.select(REQUESTS.names))
    frame = frame.with_columns(pl.col("language").fill_null("und"))
    counts = _counts(frame, written_by(kept), selection)
    reasons = _reasons(frame)
    tokens = dict(frame.group_by("llm").agg(pl.col("output_tokens").sum()).iter_rows())
    return [
        {
            **record,
            "reasons": dict(reasons.get(group, {})),
            **_time((spent or {}).get(group[0], Spent()), record, tokens[group[0]]),
            **(diversity or {}).get(group, {}),
        }
        for group, record in counts
    ]


def summed(records: Sequence[Mapping[str, Any]], *, by: Sequence[str]) -> list[dict[str, Any]]:
    """The records added up over what `by` (of llm, kind, language) leaves out, sorted; figures of
    diversity, which cannot be added, are left out."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        start = {name: record[name] for name in by} | dict.fromkeys(SUMS, 0)
        total = groups.setdefault(tuple(record[name] for name in by), {**start, "reasons": {}})
        for name in SUMS:
            total[name] = round(total[name] + record[name], 1)
        for reason, count in record["reasons"].items():
            total["reasons"][reason] = total["reasons"].get(reason, 0) + count
    for total in groups.values():
        ordered = sorted(total["reasons"].items(), key=lambda item: (-item[1], item[0]))
        total["reasons"] = dict(ordered)
    return [groups[key] for key in sorted(groups)]


def _counts(
    frame: pl.DataFrame, kept: pl.DataFrame, selection: Sequence[str]
) -> Iterator[tuple[Group, dict[str, Any]]]:
    dropped = pl.col("reason").is_not_null()
    selected = pl.col("reason").is_in(list(selection)).fill_null(False)
    asked = frame.group_by(GROUP).agg(
        requested=pl.len(),
        valid=(~dropped | selected).sum(),
        without_reason=(~dropped).sum(),
        prompt_tokens=pl.col("prompt_tokens").sum(),
        output_tokens=pl.col("output_tokens").sum(),
    )
    stays = kept.group_by(GROUP).agg(kept=pl.len())
    joined = asked.join(stays, on=GROUP, how="full", coalesce=True).sort(GROUP)
    count = pl.col("requested", "without_reason", "kept").fill_null(0)
    for record in joined.with_columns(count).iter_rows(named=True):
        group = (record["llm"], record["kind"], record["language"])
        if record["kept"] != record.pop("without_reason"):
            raise RuntimeError(
                f"{'/'.join(group)}: {record['requested']} requests, of which some are lost: "
                f"{record['kept']} rows stay, and the others have other reasons than these"
            )
        order = (*GROUP, "requested", "valid", "kept", "prompt_tokens", "output_tokens")
        yield group, {name: record[name] for name in order}


def _reasons(frame: pl.DataFrame) -> dict[Group, dict[str, int]]:
    """Counts of reasons by group, the most frequent first."""
    rows = frame.drop_nulls("reason").group_by(*GROUP, "reason").len()
    ordered = rows.sort("len", "reason", descending=[True, False])
    table: dict[Group, dict[str, int]] = {}
    for llm, kind, language, reason, count in ordered.iter_rows():
        table.setdefault((llm, kind, language), {})[reason] = count
    return table


def _time(spent: Spent, record: Mapping[str, Any], tokens: int) -> dict[str, float]:
    share = record["output_tokens"] / tokens if tokens else 0.0
    return {
        "seconds": round(spent.seconds * share, 1),
        "gpu_seconds": round(spent.gpu_seconds * share, 1),
    }
