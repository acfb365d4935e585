"""Classification: a text for a task that another LLM invented; its label is the positive.

A task that came with labels is answered for one of them, and the others are the negatives: right
for small LLMs. For a task without labels the LLM writes text, label and misleading labels itself
(llama-embed-nemotron-8b, arXiv 2511.07025, section 4.3). Labels and task sentences are English.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, written
from datagen.synthesize.kinds.schemas import answer, room, several, text, token_budget
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.rules import folded, length_problem, other_labels, sample_problem

MISLEADING = (2, 4)  # labels that an LLM gives itself
LABEL_CHARACTERS = 48


class ClassificationKind:
    """A text, its label and the labels that it does not have."""

    name = "classification"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "sample": PromptUse(
            fields=("task", "labels", "label", "words", "clarity", "language"), answer=("text",)
        ),
        "labelled": PromptUse(
            fields=("task", "words", "clarity", "language"),
            answer=("text", "label", "misleading_labels"),
        ),
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.block = llm, block

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        written_text = text(room(drawn["words"]))
        label = text(LABEL_CHARACTERS, minimum=2)
        schema = answer(text=written_text)
        if not drawn["labels"]:
            misleading = several(label, *MISLEADING)
            schema = answer(text=written_text, label=label, misleading_labels=misleading)
        asked = [drawn["words"]] + ([] if drawn["labels"] else ["4 words"] * (MISLEADING[1] + 1))
        return Call(
            prompt=self._prompt(drawn),
            values={
                **drawn,
                "labels": ", ".join(drawn["labels"]),
                "language": language_name(drawn["language"]),
            },
            schema=schema,
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, *asked, language=drawn["language"]),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        value, examples = values[0], self._prompt(drawn).answers()
        label, others = _labels(drawn, value)
        if not others:
            return "bad_labels"
        if not drawn["labels"] and all(folded(one) in folded(examples) for one in (label, *others)):
            return "copies_example"
        return sample_problem(
            value["text"], label, examples=examples, maximum=room(drawn["words"])
        ) or length_problem(value["text"], drawn["words"])

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        label, others = _labels(drawn, values[0])
        return pair(
            self.llm,
            drawn,
            task="classification",
            instruction=drawn["task"],
            query=one_line(values[0]["text"]),
            document=written(label, "eng"),
            prompts=[self._prompt(drawn)],
            negatives=others,
        )

    def _prompt(self, drawn: Drawn) -> Prompt:
        return prompt_of(self.block, "sample" if drawn["labels"] else "labelled")


def _labels(drawn: Drawn, value: Value) -> tuple[str, list[str]]:
    """The label and those others that can stand beside it."""
    if drawn["labels"]:
        return drawn["label"], [label for label in drawn["labels"] if label != drawn["label"]]
    label = one_line(value["label"])
    return label, other_labels(label, [one_line(one) for one in value["misleading_labels"]])
