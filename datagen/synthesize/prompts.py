"""Prompts as files: instructions, few-shot examples, and a hash that provenance refers to.

A prompt file is YAML: `system`, `input` (a Jinja template), `examples` (the template's variables
and the `output` wanted). One file serves instruction-tuned LLMs, as turns of a chat, and base
models, as one running text.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import yaml

Message = dict[str, str]
RAW_SEPARATOR = "\n\n###\n\n"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt file, parsed."""

    name: str
    digest: str
    system: str
    template: str
    examples: tuple[Mapping[str, Any], ...]

    @property
    def id(self) -> str:
        """What provenance records: name and first digits of the file's sha256."""
        return f"{self.name}@{self.digest[:8]}"

    def _input(self, values: Mapping[str, Any]) -> str:
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
        return environment.from_string(self.template).render(values)

    def messages(self, values: Mapping[str, Any]) -> list[Message]:
        """The prompt as a chat, each example one exchange."""
        turns: list[Message] = [{"role": "system", "content": self.system}]
        for example in self.examples:
            turns.append({"role": "user", "content": self._input(example)})
            turns.append({"role": "assistant", "content": _compact(example["output"])})
        return [*turns, {"role": "user", "content": self._input(values)}]

    def text(self, values: Mapping[str, Any]) -> str:
        """The prompt as running text for a base model."""
        parts = [self.system]
        for example in self.examples:
            parts.append(f"{self._input(example)}\nAnswer: {_compact(example['output'])}")
        return RAW_SEPARATOR.join([*parts, f"{self._input(values)}\nAnswer: "])


def _compact(output: Mapping[str, Any]) -> str:
    return json.dumps(output, ensure_ascii=False)


@functools.cache
def load_prompt(name: str) -> Prompt:
    """A prompt of this package by name."""
    data = files("datagen.synthesize").joinpath(f"prompts/{name}.yaml").read_bytes()
    parsed = yaml.safe_load(data)
    return Prompt(
        name=name,
        digest=hashlib.sha256(data).hexdigest(),
        system=parsed["system"],
        template=parsed["input"],
        examples=tuple(parsed["examples"]),
    )
