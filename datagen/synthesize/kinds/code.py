"""Code: a description and the code that does it; and public code in another programming language.

In the second kind the LLM's code is the query and the public code stays the positive: a mistake of
the LLM costs a query and no document.
"""

import ast
import warnings
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
    written,
)
from datagen.synthesize.kinds.schemas import answer, text, token_budget
from datagen.synthesize.knobs import PROGRAMMING_LANGUAGES
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.rules import distinct_problem, folded, text_problem

CODE_INSTRUCTION = "Given a description, retrieve the code that does it."
TRANSLATION_INSTRUCTION = (
    "Given code, retrieve code that does the same in another programming language."
)
MINIMUM_CODE, MAXIMUM_CODE = 20, 2_000  # characters
CODE_WORDS = "120 words"  # what code of a usual length costs in tokens
DESCRIPTION_WORDS = "20 words"


class CodeKind:
    """A description and code."""

    name = "code"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "code": PromptUse(
            fields=("subject", "program", "programming", "difficulty", "language"),
            answer=("description", "code"),
        )
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "code")

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        return Call(
            prompt=self.prompt,
            values={
                **drawn,
                "programming": PROGRAMMING_LANGUAGES[drawn["programming"]],
                "language": language_name(drawn["language"]),
            },
            schema=answer(description=text(200), code=text(MAXIMUM_CODE, minimum=MINIMUM_CODE)),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, DESCRIPTION_WORDS, CODE_WORDS, language=""),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        value, examples = values[0], self.prompt.answers()
        if problem := text_problem(value["description"]):
            return problem
        if folded(value["description"]) in folded(examples):
            return "copies_example"
        return code_problem(value["code"], drawn["programming"], examples=examples)

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        return pair(
            self.llm,
            drawn,
            task="retrieval",
            instruction=CODE_INSTRUCTION,
            query=one_line(values[0]["description"]),
            document=written(values[0]["code"].strip("\n"), drawn["programming"]),
            prompts=[self.prompt],
        )


class CodeTranslationKind:
    """Public code in another programming language; the block has `folder` of the documents."""

    name = "code_translation"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "translate_code": PromptUse(fields=("text", "from", "programming"), answer=("code",))
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "translate_code")
        self.documents = seed_rows(block)

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        own = drawn["document_language"]
        return Call(
            prompt=self.prompt,
            values={
                "text": shown(self.documents[drawn["request"]], MAXIMUM_CODE),
                "from": PROGRAMMING_LANGUAGES.get(own, own),
                "programming": PROGRAMMING_LANGUAGES[drawn["programming"]],
            },
            schema=answer(code=text(MAXIMUM_CODE, minimum=MINIMUM_CODE)),
            turn=drawn["turn"],
            max_tokens=token_budget(self.llm, CODE_WORDS, language=""),
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        code, examples = values[0]["code"], self.prompt.answers()
        return code_problem(code, drawn["programming"], examples=examples) or distinct_problem(
            code, self.documents[drawn["request"]]["text"]
        )

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        return pair(
            self.llm,
            drawn,
            task="retrieval",
            instruction=TRANSLATION_INSTRUCTION,
            query=values[0]["code"].strip("\n"),
            document=self.documents[drawn["request"]],
            prompts=[self.prompt],
            seeded=True,
        )


def code_problem(code: str, programming: str, *, examples: str) -> str | None:
    """The rule that code breaks: too_short, template_leak, copies_example, repetitive; for Python
    invalid_code when it does not parse."""
    if len(folded(code)) < MINIMUM_CODE / 2:
        return "too_short"
    if "```" in code or "{{" in code and programming not in ("python", "go", "rust"):
        return "template_leak"
    if folded(code) in folded(examples):
        return "copies_example"
    lines = [line.strip() for line in code.splitlines() if len(line.strip()) > 3]
    if len(lines) > 4 and len(set(lines)) < len(lines) / 2:
        return "repetitive"
    return "invalid_code" if programming == "python" and not _parses(code) else None


def _parses(code: str) -> bool:
    with warnings.catch_warnings(action="ignore"):  # of what LLM's code escapes
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
