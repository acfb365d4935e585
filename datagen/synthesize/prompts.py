"""Prompts as files: instructions, few-shot examples, and a hash that provenance refers to.

A prompt file is YAML: `system`, `input` (a Jinja template), `examples` (the template's variables
and the `output` wanted), `shots` (how many examples one prompt shows) and `match` (the variable
that shown examples share with the request). One file serves instruction-tuned LLMs, as turns of a
chat, and base models, as one running text. A user's own file takes the place of one of these when
it is named by path; `check_prompt` finds its mistakes before an engine starts.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml

from datagen.schema import UserError

Message = dict[str, str]
RAW_SEPARATOR = "\n\n###\n\n"
_KEYS: dict[str, type] = {"system": str, "input": str, "examples": list, "shots": int}
_OPTIONAL: dict[str, type] = {"match": str}


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
        """The examples for a request; `turn` rotates them, so that requests see different ones.

        Those in the request's language come last: what stands nearest is followed most.
        """
        fit = [e for e in self.examples if not self.match or e[self.match] == values[self.match]]
        taken = [fit[(turn + i) % len(fit)] for i in range(min(self.shots, len(fit)))]
        return sorted(taken, key=lambda e: e.get("language") == values.get("language"))

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
        return "\n".join(text for example in self.examples for text in _texts(example["output"]))

    def _input(self, values: Mapping[str, Any]) -> str:
        return _template(self.template).render(values)


# A user's template gets no further than its variables.
_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)


@functools.cache
def _template(text: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(text)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    return (
        [text for one in value for text in _texts(one)] if isinstance(value, list) else [str(value)]
    )


def _compact(output: Mapping[str, Any]) -> str:
    # Without blanks, as the schema makes the LLM write it.
    return json.dumps(output, ensure_ascii=False, separators=(",", ":"))


@functools.cache
def load_prompt(name_or_path: str) -> Prompt:
    """A prompt of this package by name, or a user's own file by path (`*.yaml`, `*.yml`)."""
    path = Path(name_or_path)
    own = path.suffix in (".yaml", ".yml")
    try:
        place = path if own else files("datagen.synthesize").joinpath(f"prompts/{path}.yaml")
        data = place.read_bytes()
    except OSError as error:
        raise _mistake(
            f"no prompt file {name_or_path} ({type(error).__name__})",
            "a path that ends in .yaml, or one of " + ", ".join(prompt_names()),
            "name a prompt file that can be read from every node",
        ) from None
    parsed = _parsed(data, name_or_path)
    return Prompt(
        name=path.stem,
        digest=hashlib.sha256(data).hexdigest(),
        system=parsed["system"],
        template=parsed["input"],
        examples=tuple(parsed["examples"]),
        shots=parsed["shots"],
        match=parsed.get("match"),
    )


def prompt_names() -> list[str]:
    """The prompts of this package."""
    folder = files("datagen.synthesize").joinpath("prompts")
    return sorted(Path(entry.name).stem for entry in folder.iterdir())


def _parsed(data: bytes, place: str) -> dict[str, Any]:
    try:
        parsed = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise _mistake(f"{place}: {problem}", "a file in YAML", "mend the file") from None
    keys = parsed if isinstance(parsed, dict) else {}
    wrong = [key for key, kind in _KEYS.items() if not isinstance(keys.get(key), kind)]
    wrong += [key for key, kind in _OPTIONAL.items() if not isinstance(keys.get(key, ""), kind)]
    wrong += [key for key in keys if key not in _KEYS and key not in _OPTIONAL]
    if wrong:
        raise _mistake(
            f"{place}: {', '.join(map(str, wrong))} missing, of the wrong type, or not known",
            "system and input (texts), examples (a list), shots (a number), and if need be match",
            "write the file like those in datagen/synthesize/prompts",
        )
    return parsed


def check_prompt(prompt: Prompt, fields: Iterable[str], answer: Iterable[str] = ()) -> None:
    """Raise UserError when a prompt cannot be rendered for requests that have these fields.

    Checks the template's syntax, that it names no other variable, that every example renders, has
    an `output` and, given `answer`, an output of exactly these keys.
    """
    known = sorted(fields)
    try:
        used = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(prompt.template))
    except jinja2.TemplateSyntaxError as error:
        found = f"prompt {prompt.name}, line {error.lineno} of input: {error.message}"
        raise _mistake(found, "a Jinja template", "mend the template") from None
    absent = sorted((used | ({prompt.match} if prompt.match else set())) - set(known))
    if absent:
        raise _mistake(
            f"prompt {prompt.name} uses {', '.join(absent)}",
            "variables out of " + ", ".join(known),
            "take the variable out of input (or match), or mend its name",
        )
    for number, example in enumerate(prompt.examples):
        if problem := _example_problem(prompt, example, set(answer)):
            raise _mistake(
                f"prompt {prompt.name}, example {number + 1}: {problem}",
                f"an output, and a value for each of {', '.join(sorted(used))}",
                "complete the example",
            )


def _example_problem(prompt: Prompt, example: Any, answer: set[str]) -> str:
    if not isinstance(example, dict) or not isinstance(example.get("output"), dict):
        return "no output, or one that is no mapping"
    if answer and set(example["output"]) != answer:
        return (
            f"output has {', '.join(example['output'])}; asked for is {', '.join(sorted(answer))}"
        )
    if prompt.match and prompt.match not in example:
        return f"no {prompt.match}, which examples are matched by"
    try:
        prompt._input(example)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        return f"it does not render: {error}"
    return ""


def _mistake(found: str, expected: str, do: str) -> UserError:
    return UserError(found=found, expected=expected, do=do, exit_status=2)
