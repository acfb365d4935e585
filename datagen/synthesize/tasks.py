"""First call of two-step classification: every LLM of the pool invents tasks.

Tasks are invented apart from the texts for them, and by another LLM, which makes both more diverse
(arXiv 2401.00368, section 3.1; arXiv 2511.07025, section 4.3). The seed tasks are the examples of
the prompt file; they show the form and are never written out.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from datagen.steps import Context, Step
from datagen.synthesize.draw import task_requests
from datagen.synthesize.engine import Request
from datagen.synthesize.llm import LLM, refuse_bad_pool
from datagen.synthesize.parse import task_problem, task_schema
from datagen.synthesize.prompts import load_prompt
from datagen.synthesize.writer import UNIT_REQUESTS, Drawn, run_pool, units_of

TASK = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # of the texts to be written for it
        pa.field("llm", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
    ]
)


def write_tasks(
    *llms: LLM,
    cache: str,
    tasks_per_llm: int = 48,
    languages: Sequence[str] = ("eng",),
    seed: int = 0,
    name: str = "write_tasks",
) -> Step:
    """Table `tasks` (task_id, instruction, labels, language, llm, prompt, sampling) and `rejected`.

    `languages` (ISO 639-3) are those of the texts to be written; each LLM gets those it writes.
    """
    refuse_bad_pool(llms)
    config = {
        "llms": [llm.config() for llm in llms],
        "tasks_per_llm": tasks_per_llm,
        "languages": list(languages),
        "seed": seed,
        "prompt": load_prompt("task").id,
        "unit_requests": UNIT_REQUESTS,
    }
    place = os.path.abspath(cache)
    return Step(
        name=name,
        version=1,
        config=config,
        inputs={},
        work=lambda context: _write_tasks(context, llms, place),
        summary="let every LLM invent classification tasks",
    )


def _write_tasks(context: Context, llms: Sequence[LLM], cache: str) -> None:
    pool = []
    for llm in llms:
        requests = task_requests(
            llm,
            count=llm.requests(context.config["tasks_per_llm"]),
            languages=context.config["languages"],
            seed=context.config["seed"],
        )
        pool.append((llm, units_of("task", requests, size=context.config["unit_requests"])))
    run_pool(context, pool, cache=cache, kinds={"task": TaskKind}, schemas={"tasks": TASK})


class TaskKind:
    """A task sentence and its labels."""

    name, table, schema = "task", "tasks", TASK

    def __init__(self, llm: LLM, unit: Drawn):
        self.llm, self.prompt = llm, load_prompt("task")

    def request(self, drawn: Drawn) -> Request:
        return Request(
            prompt=self.prompt,
            values=drawn,
            schema=task_schema(drawn["count"]),
            turn=drawn["turn"],
        )

    def problem(self, drawn: Drawn, value: Mapping[str, Any]) -> str | None:
        examples = self.prompt.answers()
        return task_problem(value["task"], value["labels"], topic=drawn["topic"], examples=examples)

    def row(self, drawn: Drawn, value: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "task_id": drawn["request"],
            "instruction": " ".join(value["task"].split()),
            "labels": value["labels"],
            "language": drawn["language"],
            "llm": self.llm.name,
            "prompt": self.prompt.id,
            "sampling": self.llm.sampling(),
        }
