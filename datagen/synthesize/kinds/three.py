"""What bitext and similarity share: three texts of one unit, which all differ."""

from collections.abc import Sequence
from typing import Any

from datagen.synthesize.call import Drawn
from datagen.synthesize.kinds.schemas import Schema, answer, room, text
from datagen.synthesize.languages import language_name
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.rules import distinct_problem, folded, length_problem, text_problem


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
