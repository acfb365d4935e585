"""Bitext: a sentence, its translation, and a translation with one flaw, which is the negative.

The flaw is drawn: a wrong number or name, a wrong word, or a part left out; the flawed text is
otherwise fluent, so that only its meaning tells the two apart (arXiv 2401.00368, appendix C).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, written
from datagen.synthesize.kinds.schemas import token_budget
from datagen.synthesize.kinds.three import named, three_problem, three_texts
from datagen.synthesize.llm import LLM

INSTRUCTION = "Retrieve parallel sentences."
_KEYS = ("sentence", "translation", "flawed_translation")


class BitextKind:
    """A sentence and its translation into another language."""

    name = "bitext"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "bitext": PromptUse(
            fields=("subject", "unit", "flaw", "difficulty", "language", "document_language"),
            answer=_KEYS,
        )
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "bitext")

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        return Call(
            prompt=self.prompt,
            values=named(drawn),
            schema=three_texts(_KEYS, drawn),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, *[drawn["unit"]] * 3, language=""),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        texts = [values[0][key] for key in _KEYS]
        # The flawed one may have lost its half.
        return three_problem(texts, drawn, self.prompt, measured=2)

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        sentence, translation, flawed = (one_line(values[0][key]) for key in _KEYS)
        return pair(
            self.llm,
            drawn,
            task="bitext",
            instruction=INSTRUCTION,
            query=sentence,
            document=written(translation, drawn["document_language"]),
            prompts=[self.prompt],
            negatives=[flawed],
        )
