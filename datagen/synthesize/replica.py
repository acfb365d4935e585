"""Asking and reading, apart: replicas keep an engine busy, readers turn its responses into rows.

A replica answers blocks of requests, many rows of several blocks at a time, and stores every
response as it comes; it never parses for others, filters or waits for a file. A reader takes a
block's stored responses, in any process and as often as one likes, and makes rows and rejected
rows of them, each with the rule that it broke.
"""

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from datagen.schema import QUARANTINE, rejected_row
from datagen.steps import LedgerRow, UnitResult
from datagen.store import Folder
from datagen.synthesize.call import Call, Drawn, Kind, MakeKind, MakesSeveral, Response, Value
from datagen.synthesize.llm import LLM
from datagen.synthesize.parse import parse
from datagen.synthesize.responses import Responses, read_responses, response_key
from datagen.synthesize.select import Rule, select

Block = Mapping[str, Any]  # `kind`, `place` of its responses, `requests`, and what the kind needs
TABLES = ("written", "rejected", "asked")
ASKED = pa.schema(
    [
        pa.field("llm", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("request", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("reason", pa.string()),  # why there is no row; null: there is one
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
    ]
)


class AnswersCalls(Protocol):
    """What a replica needs of an engine."""

    async def answer(self, call: Call) -> Response: ...
    async def close(self) -> None: ...


def make_engine(llm: LLM, *, cache: str) -> AnswersCalls:
    """The engine of an LLM: vLLM in this process, or the client of its endpoint."""
    if llm.endpoint:
        from datagen.synthesize.endpoint import EndpointEngine

        return EndpointEngine(llm)
    from datagen.synthesize.engine import Engine

    return Engine(llm, cache=cache)


class Replica:
    """One engine of an LLM; `folder` is where all responses are."""

    def __init__(self, llm: LLM, *, cache: str, kinds: Mapping[str, MakeKind], folder: str):
        start = time.monotonic()
        self.llm, self.kinds, self.folder = llm, kinds, Folder(folder)
        self.engine = make_engine(llm, cache=cache)
        self.loading_s = time.monotonic() - start
        self._busy_since: float | None = None
        self._open = 0

    def started(self) -> dict[str, float]:
        """Seconds it took to load, and the process it runs in."""
        return {"loading_seconds": self.loading_s, "pid": os.getpid()}

    async def answer(self, block: Block) -> dict[str, float]:
        """Answer all calls of a block; returns the seconds that it kept the engine busy."""
        kind = self.kinds[block["kind"]](self.llm, block)
        store = Responses(self.folder.folder(block["place"]))
        if not self._open:
            self._busy_since = time.monotonic()
        self._open += 1
        sums: dict[str, float] = defaultdict(float)
        try:
            await asyncio.gather(
                *(self._answer_row(kind, drawn, store, sums) for drawn in block["requests"])
            )
        finally:
            await store.close()
            self._open -= 1
        # Blocks overlap: each counts from where the one before it ended.
        now = time.monotonic()
        assert self._busy_since is not None
        sums["seconds"], self._busy_since = now - self._busy_since, now
        return dict(sums)

    async def _answer_row(
        self, kind: Kind, drawn: Drawn, store: Responses, sums: dict[str, float]
    ) -> None:
        values: list[Value] = []
        while (call := kind.call(drawn, values)) is not None:
            key = response_key(self.llm, drawn, call, number=len(values))
            response = store.get(key)
            sums["reused" if response else "asked"] += 1
            if response is None:
                response = await self.engine.answer(call)
                store.put(key, drawn, response)
                sums["output_tokens"] += response.output_tokens
            value, problem = parse(response, call.schema, cut=call.cut)
            if problem is not None:
                return
            values.append(value)

    async def close(self) -> None:
        await self.engine.close()


class Reader:
    """Makes rows of the responses of the LLMs of a pool, block by block."""

    def __init__(
        self,
        llms: Sequence[LLM],
        *,
        kinds: Mapping[str, MakeKind],
        folder: str,
        schema: pa.Schema,
        rules: Sequence[Rule] = (),
        tables: tuple[str, str, str] = TABLES,
    ):
        self.rules, self.tables = rules, tables
        self.llms = {llm.slug: llm for llm in llms}
        self.kinds, self.folder, self.schema = kinds, folder, schema

    def __call__(self, block: Block) -> UnitResult:
        llm = self.llms[block["llm"]]
        kind = self.kinds[block["kind"]](llm, block)
        known = read_responses(Folder(self.folder).folder(block["place"]))
        rows, rejected, asked = [], [], []
        seen: set[str] = set()
        for drawn in block["requests"]:
            made, reason, responses = _read_rows(llm, kind, drawn, known)
            new = [row for row in made if _says(row) not in seen]
            seen.update(map(_says, new))
            rows += new
            if not new:
                reason = reason or "duplicate"
                rejected.append(_rejected(llm, kind, drawn, reason, responses))
            asked.append(_asked(llm, kind, drawn, reason, responses))
        selection = select(pa.Table.from_pylist(rows, schema=self.schema), self.rules)
        reasons = iter(selection.reasons.to_pylist())
        for record in asked:
            record["reason"] = record["reason"] or next(reasons)
        gone = pa.Table.from_pylist(rejected, schema=QUARANTINE)
        made_of_them = (
            selection.kept,
            pa.concat_tables([gone, selection.rejected]),
            pa.Table.from_pylist(asked, schema=ASKED),
        )
        return UnitResult(
            tables=dict(zip(self.tables, made_of_them, strict=True)),
            ledger=[_ledger(llm, kind, selection.kept.num_rows, [row["reason"] for row in asked])],
        )


def _asked(
    llm: LLM, kind: Kind, drawn: Drawn, reason: str | None, responses: Sequence[Response]
) -> dict[str, Any]:
    return {
        "llm": llm.name,
        "kind": kind.name,
        "request": drawn["request"],
        "language": drawn.get("language"),
        "reason": reason,
        "prompt_tokens": sum(response.prompt_tokens for response in responses),
        "output_tokens": sum(response.output_tokens for response in responses),
    }


def _rejected(
    llm: LLM, kind: Kind, drawn: Drawn, reason: str, responses: Sequence[Response]
) -> dict[str, Any]:
    record = {
        "source": f"{llm.name}/{kind.name}",
        "provenance": {"row": drawn["request"]},
        "answers": [response.text for response in responses],
        "request": dict(drawn),
    }
    return rejected_row(record, reason=reason)


def _ledger(llm: LLM, kind: Kind, kept: int, reasons: Sequence[str | None]) -> LedgerRow:
    dropped = Counter(reason for reason in reasons if reason is not None)
    return LedgerRow(
        source=f"{llm.name}/{kind.name}",
        unit="requests",
        rows_in=len(reasons),
        kept=kept,
        dropped=dict(sorted(dropped.items())),
    )


def _read_rows(
    llm: LLM, kind: Kind, drawn: Drawn, known: Mapping[str, Response]
) -> tuple[list[dict[str, Any]], str | None, list[Response]]:
    """(rows, None, responses), or ([], the rule that was broken, responses)."""
    values: list[Value] = []
    responses: list[Response] = []
    budgets: list[int] = []
    while (call := kind.call(drawn, values)) is not None:
        response = known.get(response_key(llm, drawn, call, number=len(values)))
        if response is None:
            raise RuntimeError(f"no response to {drawn['request']}, call {len(values)}")
        responses.append(response)
        budgets.append(call.max_tokens or llm.max_tokens)
        value, problem = parse(response, call.schema, cut=call.cut)
        if problem is not None:
            return [], problem, responses
        values.append(value)
    if reason := kind.problem(drawn, values):
        return [], reason, responses
    made = kind.rows(drawn, values) if isinstance(kind, MakesSeveral) else [kind.row(drawn, values)]
    for row in made:
        row.get("provenance", row)["sampling"] = llm.sampling(budgets)
    return made, None, responses


def _says(row: Mapping[str, Any]) -> str:
    """The text that no two rows of a block may share; of a grade or verdict what it is about."""
    for name in ("query", "instruction", "written", "request"):
        if name in row:
            return str(row[name]).casefold()
    raise KeyError(f"nothing in a row of {', '.join(row)} tells it from others")
