"""What bitext and similarity share: three texts of one unit, which all differ."""

from collections.abc import Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, prompt_of
from datagen.synthesize.kinds.schemas import Schema, answer, room, text, token_budget
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.rules import distinct_problem, folded, length_problem, text_problem


class ThreeTexts:
    """A kind that asks once, for three texts under `keys`."""

    name: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    measured: ClassVar[int]  # how many of them must be as long as asked

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, self.name)

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        return Call(
            prompt=self.prompt,
            values=named(drawn),
            schema=three_texts(self.keys, drawn),
            turn=drawn["turn"],
            max_tokens=token_budget(
                self.llm, *[drawn["unit"]] * 3, language=self.budget_language(drawn)
            ),
        )

    def budget_language(self, drawn: Drawn) -> str:
        """The language of all three texts; empty where they may differ."""
        return ""

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        texts = [values[0][key] for key in self.keys]
        return three_problem(texts, drawn, self.prompt, measured=self.measured)


def named(drawn: Drawn) -> dict[str, Any]:
    """What the prompt is given: the knobs, with languages by name."""
    sides = ("language", "document_language")
    return {**drawn, **{side: language_name(drawn[side]) for side in sides}}


def three_texts(keys: Sequence[str], drawn: Drawn) -> Schema:
    """Texts with room for the unit asked for."""
    return answer(**{key: text(room(drawn["unit"])) for key in keys})


def three_problem(
    texts: Sequence[str], drawn: Drawn, prompt: Prompt, *, measured: int
) -> str | None:
    """The rule that they break; the first `measured` must be as long as asked."""
    examples = folded(prompt.answers())
    for number, one in enumerate(texts):
        if problem := text_problem(one, maximum=room(drawn["unit"])):
            return problem
        if number < measured and (problem := length_problem(one, drawn["unit"])):
            return problem
        if folded(one) in examples:
            return "copies_example"
    return distinct_problem(*texts)
