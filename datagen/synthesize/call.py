"""One call to an LLM and its response; a kind of request strings calls together.

A kind says what is asked, in one call or several that build on each other, what the answers may not
be, and which row they make. It knows neither engines nor files: asking and reading the answers
happen in different processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from datagen.synthesize.llm import LLM
from datagen.synthesize.prompts import Prompt

Drawn = Mapping[str, Any]  # one request, JSON: `request` (its id), `turn`, `language`, and knobs
Value = Mapping[str, Any]  # one answer, parsed


@dataclass(frozen=True, kw_only=True)
class Call:
    """One prompt, its values and the JSON schema of the answer."""

    prompt: Prompt
    values: Mapping[str, Any]
    schema: Mapping[str, Any]
    turn: int = 0  # which of the prompt's examples it sees
    max_tokens: int | None = None  # None: the LLM's own
    cut: bool = False  # the kind looks itself for texts that the schema has ended


@dataclass(frozen=True, kw_only=True)
class Response:
    """What came back; `problem` is set when there is no answer."""

    text: str = ""
    finished: bool = False  # False: cut at max_tokens
    prompt_tokens: int = 0
    output_tokens: int = 0
    problem: str = ""


class Kind(Protocol):
    """One kind of request; made for each block of requests."""

    name: str

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        """What to ask next, given the answers so far; None when there are all."""
        ...

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        """The rule that the answers break."""
        ...

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        """The row that they make."""
        ...


@runtime_checkable
class MakesSeveral(Protocol):
    """A kind whose answers can make more than one row."""

    def rows(self, drawn: Drawn, values: Sequence[Value]) -> list[dict[str, Any]]:
        """The rows that the answers make, one at least."""
        ...


MakeKind = Callable[[LLM, Mapping[str, Any]], Kind]
