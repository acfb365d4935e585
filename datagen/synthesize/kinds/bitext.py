"""Bitext: a sentence, its translation, and a translation with one flaw, which is the negative.

The flaw is drawn: a wrong number or name, a wrong word, or a part left out; the flawed text is
otherwise fluent, so that only its meaning tells the two apart (arXiv 2401.00368, appendix C).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, written
from datagen.synthesize.kinds.schemas import answer, room, text, token_budget
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.rules import distinct_problem, folded, length_problem, text_problem

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
            values={
                **drawn,
                "language": language_name(drawn["language"]),
                "document_language": language_name(drawn["document_language"]),
            },
            schema=answer(**{key: text(room(drawn["unit"])) for key in _KEYS}),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, *[drawn["unit"]] * 3, language=""),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        texts = [values[0][key] for key in _KEYS]
        examples = folded(self.prompt.answers())
        for one in texts:
            if problem := text_problem(one, maximum=room(drawn["unit"])):
                return problem
            if folded(one) in examples:
                return "copies_example"
        sentence, translation, _ = texts
        for one in (sentence, translation):  # the flawed one may have lost its half
            if problem := length_problem(one, drawn["unit"]):
                return problem
        return distinct_problem(*texts)

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
