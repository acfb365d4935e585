"""A pool of LLMs over units of requests: each LLM takes its turn, every unit is committed.

A kind of request (retrieval, classification, task) says how to ask, what an answer may not be, and
which row it makes; the rest is the same for all: one batch to the engine per unit, each answer
either a row or a rejected row with the rule that it broke, and both in the ledger.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from datagen.schema import QUARANTINE, rejected_row
from datagen.steps import Context, LedgerRow, UnitResult
from datagen.synthesize.engine import Engine, Request, Response
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import parse

UNIT_REQUESTS = 32  # what a kill can cost per replica: about ten seconds on a CPU

Drawn = Mapping[str, Any]


class Kind(Protocol):
    """One kind of request; made for each unit."""

    name: str
    table: str
    schema: pa.Schema

    def request(self, drawn: Drawn) -> Request: ...
    def problem(self, drawn: Drawn, value: Mapping[str, Any]) -> str | None: ...
    def row(self, drawn: Drawn, value: Mapping[str, Any]) -> dict[str, Any]: ...


MakeKind = Callable[[LLM, Drawn], Kind]


class Writer:
    """One LLM of the pool in its actor; `kinds` makes the kind that a unit names."""

    def __init__(self, llm: LLM, cache: str, kinds: Mapping[str, MakeKind]):
        start = time.monotonic()
        self.llm, self.kinds = llm, kinds
        self.engine = Engine(llm, cache=cache)
        self._loading = time.monotonic() - start

    def __call__(self, unit: Drawn) -> UnitResult:
        kind = self.kinds[unit["kind"]](self.llm, unit)
        start = time.monotonic()
        requests = [kind.request(drawn) for drawn in unit["requests"]]
        answers = self.engine.generate(requests)
        name = f"{self.llm.name}/{kind.name}"
        sums = {
            f"{name}|prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            f"{name}|output_tokens": sum(answer.output_tokens for answer in answers),
            f"{name}|seconds": time.monotonic() - start,
            f"{self.llm.name}|loading_seconds": self._loading,
        }
        self._loading = 0.0  # counted once, with the first unit
        return read_answers(
            kind, name, list(zip(unit["requests"], requests, answers, strict=True)), sums
        )


def read_answers(
    kind: Kind,
    source: str,
    asked: Sequence[tuple[Drawn, Request, Response]],
    sums: Mapping[str, float],
) -> UnitResult:
    """The rows of one unit, the rejected answers, and the ledger row that counts both."""
    rows, rejected = [], []
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    for drawn, request, answer in asked:
        value, reason = parse(answer, request.schema)
        if reason is None:
            reason = kind.problem(drawn, value)
        if reason is None:
            row = kind.row(drawn, value)
            text = row.get("query", row["instruction"]).casefold()
            reason = "duplicate" if text in seen else None
            seen.add(text)
        if reason is None:
            rows.append(row)
            continue
        reasons[reason] += 1
        record = {"source": source, "provenance": {"row": drawn["request"]}}
        record |= {"answer": answer.text, "request": dict(drawn)}
        rejected.append(rejected_row(record, reason=reason))
    ledger = LedgerRow(
        source=source,
        unit="requests",
        rows_in=len(asked),
        kept=len(rows),
        dropped=dict(sorted(reasons.items())),
    )
    tables = {
        kind.table: pa.Table.from_pylist(rows, schema=kind.schema),
        "rejected": pa.Table.from_pylist(rejected, schema=QUARANTINE),
    }
    return UnitResult(tables=tables, ledger=[ledger], stats=sums)


def run_pool(
    context: Context,
    pool: Sequence[tuple[LLM, Sequence[Mapping[str, Any]]]],
    *,
    cache: str,
    kinds: Mapping[str, MakeKind],
    schemas: Mapping[str, pa.Schema],
) -> None:
    """Let the LLMs answer their units one after the other; only one of them is loaded at a time."""
    first = 0
    for number, (llm, units) in enumerate(pool):
        context.map_units(
            units,
            Writer,
            schemas={**schemas, "rejected": QUARANTINE},
            phase=f"{number}-{llm.slug}",
            first_index=first,
            workers=llm.workers(),
            constructor={"llm": llm, "cache": cache, "kinds": dict(kinds)},
        )
        first += len(units)
    context.facts["llms"] = llm_table(context, [llm for llm, _ in pool])


def units_of(
    kind: str, requests: Sequence[Drawn], *, size: int, **more: Any
) -> list[dict[str, Any]]:
    """Requests of one kind, cut into units."""
    return [
        {"kind": kind, "requests": list(requests[i : i + size]), **more}
        for i in range(0, len(requests), size)
    ]


def llm_table(context: Context, llms: Sequence[LLM]) -> list[dict[str, Any]]:
    """One record per LLM and kind of request, for people."""
    rows: dict[str, list[LedgerRow]] = {}
    for row in context.ledger:
        rows.setdefault(row.source, []).append(row)
    by_name = {llm.name: llm for llm in llms}
    return [
        _record(by_name[source.rpartition("/")[0]], source, group, context.stats)
        for source, group in sorted(rows.items())
    ]


def _record(
    llm: LLM, source: str, rows: Sequence[LedgerRow], sums: Mapping[str, float]
) -> dict[str, Any]:
    rejected = sum((Counter(row.dropped) for row in rows), Counter())
    seconds = sums[f"{source}|seconds"]
    output_tokens = int(sums[f"{source}|output_tokens"])
    return {
        "llm": llm.name,
        "kind": source.rpartition("/")[2],
        "licence": llm.licence,
        "requests": sum(row.rows_in for row in rows),
        "valid": sum(row.kept for row in rows),
        "rejected": dict(sorted(rejected.items())),
        "prompt_tokens": int(sums[f"{source}|prompt_tokens"]),
        "output_tokens": output_tokens,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(output_tokens / seconds) if seconds else 0,
        "loading_seconds": round(sums[f"{llm.name}|loading_seconds"], 1),
    }
