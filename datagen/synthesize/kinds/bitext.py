"""Bitext: a sentence, its translation, and a translation with one flaw, which is the negative.

The flaw is drawn: a wrong number or name, a wrong word, or a part left out; the flawed text is
otherwise fluent, so that only its meaning tells the two apart (arXiv 2401.00368, appendix C).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Drawn, Value
from datagen.synthesize.kinds.rows import PromptUse, one_line, pair, written
from datagen.synthesize.kinds.three import ThreeTexts

INSTRUCTION = "Retrieve parallel sentences."
_KEYS = ("sentence", "translation", "flawed_translation")


class BitextKind(ThreeTexts):
    """A sentence and its translation into another language."""

    name = "bitext"
    keys = _KEYS
    measured = 2  # the flawed one may have lost its half
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "bitext": PromptUse(
            fields=("subject", "unit", "flaw", "difficulty", "language", "document_language"),
            answer=_KEYS,
        )
    }

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
