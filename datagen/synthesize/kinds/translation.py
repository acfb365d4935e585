"""Translation: a public query in another language; its document stays as it is.

What comes of it is a cross-lingual pair whose document is not the LLM's, so a clumsy translation
costs a query and no document.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, one_line, pair, prompt_of, seed_rows
from datagen.synthesize.kinds.schemas import answer, room, text, token_budget
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.rules import (
    distinct_problem,
    folded,
    length_problem,
    text_problem,
    words_in,
)

QUERY_CHARACTERS = 600  # a longer query is rejected: it is no query, and its translation a text


class TranslationKind:
    """A query translated; the block has `folder` of the documents and `queries` of the queries."""

    name = "translation"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "translate": PromptUse(fields=("text", "from", "language"), answer=("translation",))
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "translate")
        self.documents = seed_rows(block)
        self.queries = seed_rows(block, folder="queries", shard="query_shard", row="query_row")

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        asked = _length(self._query(drawn))
        return Call(
            prompt=self.prompt,
            values={
                "text": self._query(drawn),
                "from": language_name(drawn["from"]),
                "language": language_name(drawn["language"]),
            },
            schema=answer(translation=text(room(asked))),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, asked, language=drawn["language"]),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        query, translation = self._query(drawn), values[0]["translation"]
        if len(query) > QUERY_CHARACTERS:
            return "query_too_long"
        asked = _length(query)
        if problem := text_problem(translation, maximum=room(asked)):
            return problem
        if problem := distinct_problem(query, translation) or length_problem(translation, asked):
            return problem
        copied = folded(translation) in folded(self.prompt.answers())
        return "copies_example" if copied else None

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        return pair(
            self.llm,
            drawn,
            task="retrieval",
            instruction=self.queries[drawn["request"]]["instruction"],
            query=one_line(values[0]["translation"]),
            document=self.documents[drawn["request"]],
            prompts=[self.prompt],
            seeded=True,
        )

    def _query(self, drawn: Drawn) -> str:
        return one_line(self.queries[drawn["request"]]["query"])[: QUERY_CHARACTERS + 1]


def _length(query: str) -> str:
    return f"{max(2, round(words_in(query)))} words"
