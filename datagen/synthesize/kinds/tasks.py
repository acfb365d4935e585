"""Tasks, the first of two steps: one sentence each, which later is the instruction of a row.

Brainstorming tasks apart from texts, and by another LLM, makes both more diverse (arXiv 2401.00368,
section 3.1; arXiv 2511.07025, section 4.3). One call gives a list of tasks, or a single
classification task with its labels, which is what small LLMs can do. The seed tasks are the
examples of the prompt files; they show the form and are never written out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, prompt_of
from datagen.synthesize.kinds.schemas import Schema, answer, several, token_budget
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.rules import folded, task_problem

TASK = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # scratch, classification or clustering
        pa.field("shape", pa.string(), nullable=False),  # of scratch: short_long, ...; else ""
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # may be empty
        pa.field("language", pa.string(), nullable=False),  # of the texts to be written for it
        pa.field("llm", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("sampling", pa.string()),
    ]
)
# Small LLMs answer "Here is a task" unless the first word is given.
_BEGINNINGS = {
    "scratch": "Given|Find|Retrieve|Match|Search",
    "classification": "Classify|Identify|Determine|Decide",
    "clustering": "Identify|Determine|Group|Cluster|Sort",
}
_REST = " [a-zA-Z][a-zA-Z ,'-]{14,108}[a-z]\\.$"
_LABEL: Schema = {"type": "string", "pattern": "^[a-z]{2,20}( [a-z]{2,16}){0,2}$"}


class TaskKind:
    """Tasks of one kind and shape about one topic; `rows` makes several of one answer."""

    name = "tasks"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "task": PromptUse(fields=("topic", "aspect", "labels"), answer=("task", "labels")),
        "tasks": PromptUse(fields=("what", "topic", "aspect", "tasks"), answer=("tasks",)),
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.block = llm, block

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        asked = ["20 words"] * (1 if drawn["labels"] else drawn["tasks"])
        return Call(
            prompt=self._prompt(drawn),
            values={**drawn, "what": what(drawn)},
            schema=task_schema(drawn),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, *asked, language="eng"),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        """None when one task at least is usable, else the rule that the first one broke."""
        found = self.reasons(drawn, values)
        return None if None in found else found[0]

    def reasons(self, drawn: Drawn, values: Sequence[Value]) -> list[str | None]:
        """For every task of the answer the rule that it breaks, or None."""
        examples, grounded = self._prompt(drawn).answers(), bool(self.block.get("grounded"))
        found: list[str | None] = []
        seen: set[str] = set()
        for task, labels in _tasks(drawn, values[0]):
            reason = task_problem(
                task, labels, topic=drawn["topic"], examples=examples, grounded=grounded
            )
            found.append(reason or ("duplicate" if folded(task) in seen else None))
            seen.add(folded(task))
        return found

    def rows(self, drawn: Drawn, values: Sequence[Value]) -> list[dict[str, Any]]:
        """The usable tasks, as rows of TASK."""
        reasons = self.reasons(drawn, values)
        return [
            {
                "task_id": f"{drawn['request']}/{number}",
                "kind": drawn["kind"],
                "shape": drawn["shape"],
                "instruction": task,
                "labels": labels,
                "language": drawn["language"],
                "llm": self.llm.name,
                "prompt": self._prompt(drawn).id,
                "sampling": None,  # the reader knows what was asked
            }
            for number, (task, labels) in enumerate(_tasks(drawn, values[0]))
            if reasons[number] is None
        ]

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        """The first usable task."""
        return self.rows(drawn, values)[0]

    def _prompt(self, drawn: Drawn) -> Prompt:
        return prompt_of(self.block, "task" if drawn["labels"] else "tasks")


def what(drawn: Drawn) -> str:
    """`scratch/short_long`, `classification` or `clustering`: what examples are matched by."""
    return f"{drawn['kind']}/{drawn['shape']}" if drawn["shape"] else drawn["kind"]


def task_schema(drawn: Drawn) -> Schema:
    """A task with so many labels, or a list of up to so many tasks."""
    beginning = f"^({_BEGINNINGS[drawn['kind']]})"
    task: Schema = {"type": "string", "pattern": beginning + _REST, "maxLength": 140}
    if drawn["labels"]:
        return answer(task=task, labels=several(_LABEL, drawn["labels"], drawn["labels"]))
    return answer(tasks=several(task, 1, drawn["tasks"]))


def _tasks(drawn: Drawn, value: Value) -> list[tuple[str, list[str]]]:
    if drawn["labels"]:
        return [(one_line(value["task"]), list(value["labels"]))]
    return [(one_line(task), []) for task in value["tasks"]]
