"""Semantic similarity: three texts, two of them close in meaning to a stated degree.

The degree, out of 5, is the row's score; the third text, close to a lower degree, is the negative
(arXiv 2401.00368, appendix C).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Drawn, Value
from datagen.synthesize.kinds.rows import PromptUse, one_line, pair, written
from datagen.synthesize.kinds.three import ThreeTexts

INSTRUCTION = "Retrieve semantically similar text."
_KEYS = ("first", "similar", "less_similar")


class StsKind(ThreeTexts):
    """A text, a similar one and a less similar one."""

    name = "sts"
    keys = _KEYS
    measured = 3
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "sts": PromptUse(
            fields=(
                "subject", "unit", "high", "low", "difficulty", "language", "document_language",
            ),
            answer=_KEYS,
        )
    }  # fmt: skip

    def budget_language(self, drawn: Drawn) -> str:
        languages = {drawn["language"], drawn["document_language"]}
        return "eng" if languages == {"eng"} else ""

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
