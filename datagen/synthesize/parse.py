"""From a response to a value that fits its JSON schema, or the name of what is wrong with it.

What an LLM thinks aloud before its answer is taken off, and so is a code fence around it; then the
text must be JSON of exactly the schema. Names: prompt_too_long, engine_error and what else a
response reports; truncated (it ran into max_tokens, or a string into its maxLength); invalid_json.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from datagen.synthesize.call import Response

_THOUGHT = r"think|thinking|thought|reasoning"
# The template may have opened the block already, so that only its end is in the response.
_END_OF_THOUGHT = re.compile(rf"</(?:{_THOUGHT})>|\[/THINK\]")
_OPEN_THOUGHT = re.compile(rf"(?:<(?:{_THOUGHT})>|\[THINK\]).*", re.DOTALL)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_OTHER_CHANNEL = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)")
_CONTROL = re.compile(r"<\|(end|return|start|call|channel|message|im_end|eot_id)\|>.*", re.DOTALL)
# The same channels where the control tokens were left out of the text.
_BARE_CHANNEL, _BARE_FINAL = re.compile(r"\s*(?:analysis|commentary)"), re.compile("assistantfinal")
_FENCE = re.compile(r"\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
    "boolean": bool, "null": type(None),
}  # fmt: skip


def strip_reasoning(text: str) -> str:
    """The answer without what was thought before it; "" when the thinking never ended.

    Knows `<think>` blocks (and reasoning, thought, [THINK]), with or without their beginning, and
    the analysis, commentary and final channels of gpt-oss, with or without control tokens.
    """
    text = _after_last(_FINAL_CHANNEL, text)
    if _OTHER_CHANNEL.match(text):
        return ""
    if _BARE_CHANNEL.match(text):
        text = _after_last(_BARE_FINAL, text)
    text = _after_last(_END_OF_THOUGHT, text)
    text = _OPEN_THOUGHT.sub("", text)
    return _CONTROL.sub("", text).strip()


def _after_last(pattern: re.Pattern[str], text: str) -> str:
    end = max((match.end() for match in pattern.finditer(text)), default=0)
    return text[end:]


def parse(
    response: Response, schema: Mapping[str, Any], *, cut: bool = False
) -> tuple[dict[str, Any], str | None]:
    """The answer as a dict and None, or an empty dict and what is wrong.

    With `cut` a string may be as long as its maxLength: the caller looks at that itself.
    """
    if response.problem:
        return {}, response.problem
    if not response.finished:
        return {}, "truncated"
    text = response.text
    if not text.startswith("{"):  # what is held to a schema begins with the answer
        text = strip_reasoning(text)
        fenced = _FENCE.fullmatch(text)
        text = fenced[1] if fenced else text
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # `\\ud800` is valid JSON and no text
    except (ValueError, RecursionError):
        return {}, "invalid_json"
    problem = schema_problem(value, _roomier(schema) if cut else schema)
    return ({}, problem) if problem or not isinstance(value, dict) else (value, None)


def _roomier(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with room for one character more in every string."""
    wider: dict[str, Any] = {
        k: _roomier(v) if isinstance(v, dict) else v for k, v in schema.items()
    }
    if "maxLength" in wider:
        wider["maxLength"] += 1
    return wider


def schema_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    """`invalid_json`, `truncated` or `too_short` when a value does not fit a JSON schema.

    Of JSON schema this knows type, properties, required, enum, pattern, minLength, maxLength,
    items, minItems, maxItems, minimum and maximum, which is all that schemas here use; objects have
    no other properties. A string as long as maxLength was ended by the schema, not by the LLM.
    """
    if "enum" in schema:
        return None if value in schema["enum"] else "invalid_json"
    kind = schema["type"]
    fits = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if not fits:
        return "invalid_json"
    if kind == "object":
        return _object_problem(value, schema)
    if kind == "array":
        return _array_problem(value, schema)
    if kind == "string":
        return _string_problem(value, schema)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        return None if low <= value <= high else "invalid_json"
    return None


def _object_problem(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    properties = schema.get("properties", {})
    if not set(schema.get("required", properties)) <= set(value) <= set(properties):
        return "invalid_json"
    return _first(schema_problem(value[key], properties[key]) for key in sorted(value))


def _array_problem(value: list[Any], schema: Mapping[str, Any]) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return "invalid_json"
    return _first(schema_problem(item, schema["items"]) for item in value)


def _string_problem(value: str, schema: Mapping[str, Any]) -> str | None:
    if len(value) >= schema.get("maxLength", len(value) + 1):
        return "truncated"
    if len(value) < schema.get("minLength", 0):
        return "too_short"
    fits = re.search(schema["pattern"], value) if "pattern" in schema else True
    return None if fits else "invalid_json"


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem), None)
