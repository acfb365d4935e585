"""Prompts as files: instructions, few-shot examples, and a hash that provenance refers to.

A prompt file is YAML: `system`, `input` (a Jinja template), `examples` (the template's variables
and the `output` wanted), `shots` (how many examples one prompt shows) and `match` (the variable
that shown examples share with the request). One file serves instruction-tuned LLMs, as turns of a
chat, and base models, as one running text.
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

# What prompts call a language; another is called by its code.
LANGUAGES = {
    "eng": "English", "deu": "German", "fra": "French", "spa": "Spanish", "por": "Portuguese",
    "ita": "Italian", "nld": "Dutch", "pol": "Polish", "ces": "Czech", "slk": "Slovak",
    "hun": "Hungarian", "ron": "Romanian", "bul": "Bulgarian", "ell": "Greek", "rus": "Russian",
    "ukr": "Ukrainian", "tur": "Turkish", "ara": "Arabic", "heb": "Hebrew", "pes": "Persian",
    "hin": "Hindi", "ben": "Bengali", "mar": "Marathi", "tam": "Tamil", "tel": "Telugu",
    "urd": "Urdu", "zho": "Chinese", "jpn": "Japanese", "kor": "Korean", "vie": "Vietnamese",
    "tha": "Thai", "ind": "Indonesian", "msa": "Malay", "swe": "Swedish", "dan": "Danish",
    "nob": "Norwegian", "fin": "Finnish", "est": "Estonian", "cat": "Catalan", "swa": "Swahili",
}  # fmt: skip
Message = dict[str, str]
RAW_SEPARATOR = "\n\n###\n\n"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt file, parsed."""

    name: str
    digest: str  # sha256 of the file
    system: str
    template: str
    examples: tuple[Mapping[str, Any], ...]
    shots: int
    match: str | None

    @property
    def id(self) -> str:
        """What provenance records: name and first digits of the file's sha256."""
        return f"{self.name}@{self.digest[:8]}"

    def shown(self, values: Mapping[str, Any], turn: int) -> list[Mapping[str, Any]]:
        """The examples for a request; `turn` rotates them, so that requests see different ones."""
        fit = [e for e in self.examples if not self.match or e[self.match] == values[self.match]]
        return [fit[(turn + i) % len(fit)] for i in range(min(self.shots, len(fit)))]

    def messages(self, values: Mapping[str, Any], turn: int = 0) -> list[Message]:
        """The prompt as a chat, each example one exchange."""
        turns: list[Message] = [{"role": "system", "content": self.system}]
        for example in self.shown(values, turn):
            turns.append({"role": "user", "content": self._input(example)})
            turns.append({"role": "assistant", "content": _compact(example["output"])})
        return [*turns, {"role": "user", "content": self._input(values)}]

    def text(self, values: Mapping[str, Any], turn: int = 0) -> str:
        """The prompt as running text for a base model."""
        parts = [self.system]
        for example in self.shown(values, turn):
            parts.append(f"{self._input(example)}\nAnswer:\n{_compact(example['output'])}")
        return RAW_SEPARATOR.join([*parts, f"{self._input(values)}\nAnswer:\n"])

    def answers(self) -> str:
        """All answers of the examples in one text, for the rule against copies of them."""
        return json.dumps([example["output"] for example in self.examples], ensure_ascii=False)

    def _input(self, values: Mapping[str, Any]) -> str:
        return _template(self.template).render(values)


@functools.cache
def _template(text: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)


def _compact(output: Mapping[str, Any]) -> str:
    # Without blanks, as the schema makes the LLM write it.
    return json.dumps(output, ensure_ascii=False, separators=(",", ":"))


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
        shots=parsed["shots"],
        match=parsed.get("match"),
    )
