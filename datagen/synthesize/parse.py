"""From a response to a usable text, or the name of the rule that it broke.

Every rule has a name and is counted: invalid_json, truncated, too_short, too_long, meta_text,
template_leak, copies_document, label_in_text, bad_labels, duplicate, prompt_too_long.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datagen.synthesize.engine import Response

MINIMUM_CHARACTERS, MAXIMUM_CHARACTERS = 10, 300
COPIED_WORDS = 8  # a run of this many words out of the document is a copy, not a query

_META = re.compile(
    r"\b(as an ai|language model|i'm sorry|i cannot|here is|here's|the (above|following|given) "
    r"(document|text|passage)|this (document|text|passage)|json|the document)\b",
    re.IGNORECASE,
)
_LEAK = re.compile(
    r"[{}\[\]<>\\]|\bwords in english\b|^(query|text|label|task)\b *:", re.IGNORECASE
)


def parse(response: Response, key: str) -> tuple[Any, str | None]:
    """The value under `key` of a JSON answer, or None and the reason."""
    if response.problem:
        return None, response.problem
    try:
        value = json.loads(response.text)
    except ValueError:
        return None, "invalid_json" if response.finished else "truncated"
    if not isinstance(value, dict) or key not in value:
        return None, "invalid_json"
    return value, None


def text_problem(text: str) -> str | None:
    """The rule that a generated text breaks, whatever it is for."""
    if len(text.strip()) < MINIMUM_CHARACTERS:
        return "too_short"
    if len(text) > MAXIMUM_CHARACTERS:
        return "too_long"
    if _LEAK.search(text):
        return "template_leak"
    return "meta_text" if _META.search(text) else None


def query_problem(query: str, document: str) -> str | None:
    """The rule that a query breaks against its document."""
    if problem := text_problem(query):
        return problem
    return "copies_document" if copies(query, document) else None


def copies(query: str, document: str) -> bool:
    """Whether the query is a part of the document, or shares a long run of words with it."""
    one, other = (" ".join(re.findall(r"\w+", text.casefold())) for text in (query, document))
    if f" {one} " in f" {other} ":
        return True
    words = one.split()
    runs = [" ".join(words[i : i + COPIED_WORDS]) for i in range(len(words) - COPIED_WORDS + 1)]
    return any(f" {run} " in f" {other} " for run in runs)


def label_in_text(label: str, text: str) -> bool:
    """Whether the label, as words, occurs in the text."""
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE) is not None


def labels_problem(labels: Sequence[str]) -> str | None:
    """Labels must be short, different, and at least two."""
    clean = [" ".join(label.split()) for label in labels]
    distinct = {label.casefold() for label in clean}
    short = all(1 < len(label) <= 30 and re.search(r"\w", label) for label in clean)
    leaks = any(_LEAK.search(label) for label in clean)
    return None if len(clean) == len(distinct) >= 2 and short and not leaks else "bad_labels"


def string_schema(key: str, *, longest: int) -> Mapping[str, Any]:
    """JSON schema of an object with one string."""
    text = {"type": "string", "minLength": MINIMUM_CHARACTERS, "maxLength": longest}
    return _object({key: text})


def task_schema(count: int) -> Mapping[str, Any]:
    """JSON schema of a classification task with so many labels."""
    label = {"type": "string", "minLength": 2, "maxLength": 24}
    labels = {"type": "array", "items": label, "minItems": count, "maxItems": count}
    return _object(
        {"task": {"type": "string", "minLength": 20, "maxLength": 110}, "labels": labels}
    )


def _object(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
