"""Semantic similarity: three texts, two of them close in meaning to a stated degree.

The degree, out of 5, is the row's score; the third text, close to a lower degree, is the negative
(arXiv 2401.00368, appendix C).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, written
from datagen.synthesize.kinds.schemas import token_budget
from datagen.synthesize.kinds.three import named, three_problem, three_texts
from datagen.synthesize.llm import LLM

INSTRUCTION = "Retrieve semantically similar text."
_KEYS = ("first", "similar", "less_similar")


class StsKind:
    """A text, a similar one and a less similar one."""

    name = "sts"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "sts": PromptUse(
            fields=(
                "subject", "unit", "high", "low", "difficulty", "language", "document_language",
            ),
            answer=_KEYS,
        )
    }  # fmt: skip

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "sts")

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        languages = {drawn["language"], drawn["document_language"]}
        language = "eng" if languages == {"eng"} else ""
        return Call(
            prompt=self.prompt,
            values=named(drawn),
            schema=three_texts(_KEYS, drawn),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, *[drawn["unit"]] * 3, language=language),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        texts = [values[0][key] for key in _KEYS]
        return three_problem(texts, drawn, self.prompt, measured=len(texts))

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        first, similar, less = (one_line(values[0][key]) for key in _KEYS)
        return pair(
            self.llm,
            drawn,
            task="sts",
            instruction=INSTRUCTION,
            query=first,
            document=written(similar, drawn["document_language"]),
            prompts=[self.prompt],
            negatives=[less],
            score=drawn["high"],
        )
