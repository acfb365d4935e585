"""The step `write_tasks`, first of two: every LLM of the pool invents tasks.

Tasks are invented apart from the texts for them, and by another LLM, which makes both more diverse
(arXiv 2401.00368, section 3.1; arXiv 2511.07025, section 4.3).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from datagen.steps import Context, Step
from datagen.store import open_shard
from datagen.synthesize.draw import Knobs, requests
from datagen.synthesize.kinds import TASK, TaskKind, check_prompts
from datagen.synthesize.llm import LLM, refuse_bad_pool
from datagen.synthesize.pool import BLOCK_REQUESTS, Member, Quota
from datagen.synthesize.step import ask


def write_tasks(
    *llms: LLM,
    cache: str,
    lists_per_llm: int = 16,
    knobs: Knobs | None = None,
    own_prompts: Mapping[str, str] | None = None,
    grounded: bool = True,
    seed: int = 0,
    block_requests: int = BLOCK_REQUESTS,
    name: str = "write_tasks",
) -> Step:
    """Table `tasks` (kinds.TASK) and `rejected`.

    `lists_per_llm` usable answers are wanted of each LLM, each a list of up to
    `knobs.tasks_per_call` tasks of one of `knobs.task_kinds`.
    """
    refuse_bad_pool(llms)
    knobs = knobs or Knobs()
    prompts = check_prompts([TaskKind.name], own_prompts)
    config = {
        "llms": [llm.config() for llm in llms],
        "lists_per_llm": lists_per_llm,
        "knobs": dataclasses.asdict(knobs),
        "grounded": grounded,
        "seed": seed,
        "prompts": [prompt.id for prompt in prompts],
        "block_requests": block_requests,
    }
    work = _Work(
        llms=llms, cache=os.path.abspath(cache), knobs=knobs, own_prompts=dict(own_prompts or {})
    )
    return Step(
        name=name,
        version=2,
        config=config,
        inputs={},
        work=work,
        summary="let every LLM invent tasks",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    llms: tuple[LLM, ...]
    cache: str
    knobs: Knobs
    own_prompts: Mapping[str, str]

    def __call__(self, context: Context) -> None:
        size = context.config["block_requests"]
        members = [
            Member(llm, i, [self._quota(context, llm)], block_requests=size)
            for i, llm in enumerate(self.llms)
        ]
        ask(context, members, kinds={TaskKind.name: TaskKind}, schema=TASK, cache=self.cache)
        for member in members:
            context.collect(member.records[index] for index in sorted(member.records))
        for shard in [shard for shard in context.shards if shard.table == "written"]:
            rows = open_shard(context.folder, shard.name)
            context.write("tasks", rows, TASK, rows_per_shard=max(rows.num_rows, 1))
        context.facts["missing"] = {member.llm.name: member.missing() for member in members}

    def _quota(self, context: Context, llm: LLM) -> Quota:
        def draw(indices: range) -> list[dict[str, Any]]:
            return requests(
                TaskKind.name, llm, indices, seed=context.config["seed"], knobs=self.knobs
            )

        more = {"prompts": self.own_prompts, "grounded": context.config["grounded"]}
        rows = context.config["lists_per_llm"]
        return Quota(kind=TaskKind.name, rows=rows, draw=draw, more=more)
