"""Retrieval from scratch: query, positive and hard negative for a task that another call invented.

Texts are short or long on either side (arXiv 2401.00368, appendix C). Where both sides are short or
both long there is no negative: what is written for one is seldom harder than a random document.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, written
from datagen.synthesize.kinds.schemas import answer, least, room, text, token_budget
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.rules import (
    copies,
    distinct_problem,
    document_problem,
    folded,
    length_problem,
    similar_problem,
    text_problem,
)

WITH_NEGATIVE = frozenset({"short_long", "long_short"})
_FIELDS = (
    "task", "language", "document_language", "query_words", "document_words", "rarity", "clarity",
    "difficulty",
)  # fmt: skip
_TWO, _THREE = ("query", "positive"), ("query", "positive", "hard_negative")


class ScratchKind:
    """A query and a document for a task; nothing of it is public."""

    name = "scratch"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        shape: PromptUse(fields=_FIELDS, answer=_THREE if shape in WITH_NEGATIVE else _TWO)
        for shape in ("short_long", "long_short", "short_short", "long_long")
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.block = llm, block

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        names = _THREE if drawn["shape"] in WITH_NEGATIVE else _TWO
        asked = [_words(drawn, name) for name in names]
        languages = {drawn["language"], drawn["document_language"]}
        return Call(
            prompt=self._prompt(drawn),
            values={
                **drawn,
                "language": language_name(drawn["language"]),
                "document_language": language_name(drawn["document_language"]),
            },
            schema=answer(
                **{
                    name: text(room(words), minimum=least(words, language=_language(drawn, name)))
                    for name, words in zip(names, asked, strict=True)
                }
            ),
            turn=drawn["turn"],
            max_tokens=token_budget(
                self.llm, *asked, language="eng" if languages == {"eng"} else ""
            ),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        value = values[0]
        for name in value:
            if problem := self._text_problem(drawn, name, value[name]):
                return problem
        if problem := distinct_problem(*value.values()):
            return problem
        short, long = sorted((value["query"], value["positive"]), key=len)
        if drawn["shape"] in WITH_NEGATIVE:
            return "copies_document" if copies(short, long) else None
        return similar_problem(short, long)

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        value = values[0]
        negative = value.get("hard_negative")
        return pair(
            self.llm,
            drawn,
            task="retrieval",
            instruction=drawn["task"],
            query=one_line(value["query"]),
            document=written(value["positive"].strip(), drawn["document_language"]),
            prompts=[self._prompt(drawn)],
            negatives=[negative.strip()] if negative else [],
        )

    def _prompt(self, drawn: Drawn) -> Prompt:
        return prompt_of(self.block, drawn["shape"])

    def _text_problem(self, drawn: Drawn, name: str, found: str) -> str | None:
        asked = _words(drawn, name)
        rules = document_problem if _is_long(drawn, name) else text_problem
        if problem := rules(found, maximum=room(asked)) or length_problem(found, asked):
            return problem
        return "copies_example" if folded(found) in folded(self._prompt(drawn).answers()) else None


def _language(drawn: Drawn, name: str) -> str:
    return drawn["language" if name == "query" else "document_language"]


def _words(drawn: Drawn, name: str) -> str:
    return drawn["query_words" if name == "query" else "document_words"]


def _is_long(drawn: Drawn, name: str) -> bool:
    query, _, document = drawn["shape"].partition("_")
    return (query if name == "query" else document) == "long"
