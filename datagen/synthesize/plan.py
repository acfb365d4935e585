"""What a synthesis will take, before it runs: measured on a sample of its own requests.

The sample goes to the same LLMs through the same replicas, and its responses are kept: the run that
follows does not pay for them again. Requests follow from the share of the sample that was kept,
with what the checks of rows reject not kept, tokens from its tokens, and time from the rate of one
replica. A sample keeps an engine less busy than a run does, so time, GPU-hours and money of an LLM
in our own actors are upper bounds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from datagen.synthesize.llm import LLM
from datagen.synthesize.pool import LEAST_YIELD, SPARE

SAMPLE = 16  # requests per LLM and kind
COLUMNS = (
    "llm", "kind", "rows", "yield", "requests", "prompt_tokens", "output_tokens", "hours",
    "gpu_hours", "money",
)  # fmt: skip


def plan_table(
    asked: pl.DataFrame,
    *,
    llms: Sequence[LLM],
    rows: Mapping[tuple[str, str], int],
    rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One record (COLUMNS) per LLM and kind, and one per LLM over all kinds (`kind` is `all`).

    `asked` is the sample (replica.ASKED), `rows` what is owed by (LLM, kind), `rates` the output
    tokens a second of a replica of each LLM. A figure that the sample does not give is None.
    """
    table = []
    for llm in llms:
        mine = asked.filter(llm=llm.name)
        rate = rates.get(llm.name, 0.0)
        kinds = [
            _record(llm, kind, rows[llm.name, kind], mine.filter(kind=kind), rate)
            for name, kind in rows
            if name == llm.name
        ]
        table += [*kinds, _sum(llm, kinds)]
    return table


def judge_plan(
    table: Sequence[Mapping[str, Any]],
    asked: pl.DataFrame,
    graded: pl.DataFrame,
    *,
    judge: LLM,
    rate: float,
) -> list[dict[str, Any]]:
    """What judging takes (`kind` is `judge`), given the plan of the writers, their sample and what
    of it was graded; nothing where the plan does not say how many requests there will be."""
    others = [r for r in table if r["kind"] != "all" and r["llm"] != judge.name]
    known = [record["requests"] for record in others if record["requests"] is not None]
    if len(known) < len(others) or not len(graded):
        return []
    rows = round(sum(known) * len(graded) / len(asked.filter(pl.col("llm") != judge.name)))
    return [_record(judge, "judge", rows, graded, rate)]


def _record(llm: LLM, kind: str, rows: int, sample: pl.DataFrame, rate: float) -> dict[str, Any]:
    kept = sample["reason"].null_count() / max(len(sample), 1)
    record: dict[str, Any] = dict.fromkeys(COLUMNS)
    record |= {"llm": llm.name, "kind": kind, "rows": rows, "yield": round(kept, 3)}
    if kept <= LEAST_YIELD:
        return record
    requests = math.ceil(rows / kept * (SPARE if kept < 1 else 1))
    prompt, output = (
        round(int(sample[name].sum()) / len(sample) * requests)
        for name in ("prompt_tokens", "output_tokens")
    )
    record |= {"requests": requests, "prompt_tokens": prompt, "output_tokens": output}
    if not rate:  # all of the sample had been answered before
        return record
    hours = output / rate / 3600
    money = hours * llm.num_gpus * llm.gpu_hour_price
    money += (prompt * llm.prompt_price + output * llm.output_price) / 1e6
    return record | {
        "hours": round(hours / (1 if llm.endpoint else llm.replica_range[1]), 4),
        "gpu_hours": round(hours * llm.num_gpus, 4),
        "money": round(money, 2),
    }


def _sum(llm: LLM, kinds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {"llm": llm.name, "kind": "all", "yield": None}
    for name in COLUMNS:
        if name not in record:
            known = [kind[name] for kind in kinds]
            complete = known and None not in known
            record[name] = round(sum(known), 4) if complete else None
    return {name: record[name] for name in COLUMNS}
