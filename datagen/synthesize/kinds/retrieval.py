"""Retrieval: a query that a public document answers; the document is the positive as it stands.

In two calls, for large LLMs, the first chooses who asks what kind of question, how hard and how
long, out of candidates that are drawn; the second writes it (Qwen3-Embedding, arXiv 2506.05176,
appendix A). In one call, for small ones and for code, all of that is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import (
    Block,
    PromptUse,
    one_line,
    pair,
    prompt_of,
    seed_rows,
    shown,
)
from datagen.synthesize.kinds.schemas import answer, choice, room, text, token_budget
from datagen.synthesize.knobs import LENGTHS
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt
from datagen.synthesize.rules import length_problem, query_problem

INSTRUCTIONS = {
    "question": "Given a question, retrieve passages that answer the question.",
    "keywords": "Given keywords, retrieve passages about them.",
    "statement": "Given a statement, retrieve passages that confirm or refute it.",
    "summary": "Given a summary, retrieve the passage that it summarises.",
    "yes_or_no": "Given a yes-or-no question, retrieve passages that decide it.",
}
CODE_INSTRUCTION = "Given a description, retrieve the code that does it."
CODE_PATTERN = "^[A-Za-z][A-Za-z0-9 ,'/-]{6,150}[A-Za-z0-9?.]$"  # words instead of code
_ONE_CALL = ("text", "type", "words", "difficulty", "language")


class RetrievalKind:
    """A query for a public document; the block has `folder` of the documents and `grounded`."""

    name = "retrieval"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "doc2query": PromptUse(fields=_ONE_CALL, answer=("query",)),
        "code2query": PromptUse(fields=_ONE_CALL, answer=("query",)),
        "configure": PromptUse(
            fields=("text", "personas", "types", "difficulties", "lengths"),
            answer=("persona", "type", "difficulty", "length"),
        ),
        "query": PromptUse(fields=("persona", *_ONE_CALL), answer=("query",)),
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.block = llm, block
        self.documents = seed_rows(block)

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if len(values) == drawn["calls"]:
            return None
        if drawn["calls"] == 2 and not values:
            return self._configure(drawn)
        asked = self._asked(drawn, values)
        own = drawn["calls"] == 1 and drawn["language"] == "eng"  # the LLM's own max_tokens will do
        budget = token_budget(self.llm, asked["words"], language=drawn["language"])
        pattern = CODE_PATTERN if drawn["code"] and drawn["language"] == "eng" else None
        return Call(
            prompt=self._prompts(drawn)[-1],
            values={
                **asked,
                "text": shown(self.documents[drawn["request"]]),
                "language": language_name(drawn["language"]),
            },
            schema=answer(query=text(160 if pattern else room(asked["words"]), pattern=pattern)),
            turn=drawn["turn"],
            max_tokens=None if own else budget,
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        document, query = self.documents[drawn["request"]], values[-1]["query"]
        same_language = drawn["language"] == drawn["document_language"] or drawn["code"]
        return query_problem(
            query,
            f"{document['title'] or ''}\n{document['text']}",
            examples=self._prompts(drawn)[-1].answers(),
            grounded=self.block["grounded"] and same_language,
        ) or length_problem(query, self._asked(drawn, values)["words"])

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        kind = self._asked(drawn, values)["type"]
        return pair(
            self.llm,
            drawn,
            task="retrieval",
            instruction=CODE_INSTRUCTION if drawn["code"] else INSTRUCTIONS[kind],
            query=one_line(values[-1]["query"]),
            document=self.documents[drawn["request"]],
            prompts=self._prompts(drawn),
            seeded=True,
        )

    def _prompts(self, drawn: Drawn) -> list[Prompt]:
        """Those of all calls."""
        names = ("configure", "query") if drawn["calls"] == 2 else ("doc2query",)
        return [
            prompt_of(self.block, name) for name in (("code2query",) if drawn["code"] else names)
        ]

    def _configure(self, drawn: Drawn) -> Call:
        return Call(
            prompt=self._prompts(drawn)[0],
            values={**drawn, "text": shown(self.documents[drawn["request"]])},
            schema=answer(
                persona=choice(drawn["personas"]),
                type=choice(drawn["types"]),
                difficulty=choice(drawn["difficulties"]),
                length=choice(drawn["lengths"]),
            ),
            turn=drawn["turn"],
            max_tokens=max(self.llm.max_tokens, 96),
        )

    def _asked(self, drawn: Drawn, values: Sequence[Value]) -> Mapping[str, Any]:
        """The knobs: drawn, or chosen in the first call."""
        if drawn["calls"] == 1:
            return drawn
        chosen = values[0]
        return {**drawn, **chosen, "words": LENGTHS[chosen["type"]][chosen["length"]]}
