"""A kind of request in two calls for tests of the pool: a server that echoes is asked for words."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from datagen.schema import PAIR, QUARANTINE
from datagen.steps import Context, Manifest, Step, run_steps
from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.llm import LLM
from datagen.synthesize.pool import Member, Quota, ask_pool
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.replica import ASKED, Reader

PROMPT = Prompt(
    name="echo",
    digest="0" * 64,
    system="Say what you read.",
    template="Document: {{ text }}\nWrite a query.",
    examples=(),
    shots=0,
    match=None,
)
SCHEMA = {
    "type": "object",
    "properties": {"query": {"type": "string", "maxLength": 80}},
    "required": ["query"],
    "additionalProperties": False,
}


class Echo:
    """Asks for `<request> first`, then `<request> second`; every third row breaks a rule. An LLM
    called Dies takes its process with it."""

    name = "echo"

    def __init__(self, llm: LLM, block: Mapping[str, Any]):
        self.llm = llm

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if len(values) == 2:
            return None
        if self.llm.name == "Dies":
            os.kill(os.getpid(), signal.SIGKILL)
        words = f"{drawn['request']} {('first', 'second')[len(values)]}"
        return Call(prompt=PROMPT, values={"text": words}, schema=SCHEMA)

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        return "third" if drawn["turn"] % 3 == 0 else None

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        return {
            "source": "synthetic_echo",
            "task": "retrieval",
            "origin": "synthetic",
            "query": values[1]["query"],
            "text": values[0]["query"],
            "provenance": {"row": drawn["request"], "llm": self.llm.name},
        }


class EchoDraw:
    """Requests by number; a class, so that it crosses processes."""

    def __init__(self, llm: LLM, end: int):
        self.llm, self.end = llm, end

    def __call__(self, indices: range) -> list[dict[str, Any]]:
        return [
            {"request": f"{self.llm.slug}/echo/{i}", "turn": i, "language": "eng"}
            for i in indices
            if i < self.end
        ]


def echo_step(llms: Sequence[LLM], *, rows: int, end: int = 10**6, block_requests: int = 4) -> Step:
    """A step in which every LLM owes so many rows; table `written`, `rejected` and `asked`."""

    def work(context: Context) -> None:
        responses = context.folder.folder("responses").uri
        members = [
            Member(
                llm,
                number,
                [Quota(kind="echo", rows=rows, draw=EchoDraw(llm, end))],
                block_requests=block_requests,
            )
            for number, llm in enumerate(llms)
        ]
        kinds = {"echo": Echo}
        reader = Reader(llms, kinds=kinds, folder=responses, schema=PAIR)
        schemas = {"written": PAIR, "rejected": QUARANTINE, "asked": ASKED}
        try:
            ask_pool(
                members,
                context.committer(reader, schemas=schemas, phase="written"),
                context.committed("written"),
                replica={"cache": "", "kinds": kinds, "folder": responses},
                executor=context.executor,
                name="echo",
            )
        finally:
            context.facts["missing"] = {m.llm.name: m.missing() for m in members}
            context.facts["sums"] = {m.llm.name: dict(m.sums) for m in members}
        records = [m.records[index] for m in members for index in sorted(m.records)]
        context.collect(records)

    config = {"llms": [llm.config() for llm in llms], "rows": rows}
    return Step(name="echo", version=1, config=config, inputs={}, work=work)


def run_echo(
    output: str, llms: Sequence[LLM], *, executor: str = "local", **options: Any
) -> Manifest:
    """The manifest of the step, run under `output`."""
    return run_steps([echo_step(llms, **options)], output, executor=executor)["echo"]  # type: ignore[arg-type]
