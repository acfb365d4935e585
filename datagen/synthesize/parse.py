"""From a response to a usable text, or the name of the rule that it broke.

Every rule has a name and is counted. Of the answer: prompt_too_long, engine_error, invalid_json,
truncated. Of any text: too_short, too_long, refused, meta_text, template_leak, repetitive. Of a
query: copies_document, copies_example, unrelated. Of a sample: label_in_text, copies_example. Of a
task: bad_labels, copies_example, unrelated. They look at one answer alone; equal texts of different
requests are left to dedup, only those of one unit are rejected as `duplicate`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datagen.synthesize.engine import Response

MINIMUM_CHARACTERS, MAXIMUM_CHARACTERS = 8, 300
MINIMUM_UNSPACED = 4  # Chinese says in four characters what takes a line of English
COPIED_WORDS = 8  # a run of this many words out of the document is a copy, not a query
COPIED_QUERY_WORDS = 5  # and so is a whole query of this many; fewer are keywords
REPEATED_WORDS = 4  # a run of this many words must not occur twice
DISTINCT_SHARE = 0.55  # of the words of a text that has more than three
GROUNDED_SHARE = 0.25  # of a query's content words that its document must have
STEM_CHARACTERS = 5  # `parses` and `parser` are about the same thing

_REFUSED = re.compile(
    r"\b(i'?m sorry|i am sorry, (but|i)|i (cannot|can't|am unable to) (help|answer|assist|provide|"
    r"fulfil))\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"\b(as an ai|language model|here (is|are) (a|an|the|some|your)|json (object|format)|"
    r"search query|(this|the (above|following|given)) (document|passage|text|code|query)|"
    r"the (document|passage))\b",
    re.IGNORECASE,
)
_LEAK = re.compile(
    r"[{}<>\\]|\[[a-z ]+\]|\b\d+ to \d+ words\b|^(query|text|labels?|task|answer|document)\b *:"
    r"|\b(without the word|with the label)\b",
    re.IGNORECASE,
)
_WORD_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
# Scripts without blanks between words: compared by pairs of letters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_COMMON = (
    "about after all and any are been but can could did does each for get had has her his how its "
    "may not one our out set she the too two was who why yes you "
    "also doesn each every from have here into itself just like make "
    "more most much must only other over return same self should some such than that their them "
    "then there these they this those used using very want were what when where which while will "
    "with would your value values function method object code string return returns"
)
_LABEL = re.compile(r"[^\W\d_]+([ '-][^\W\d_]+){0,3}")
_NO_LAST_WORD = "a an and are as at by for from in is of on or the to very with your"
_UNENDING = frozenset(_NO_LAST_WORD.split())
_COMMON_STEMS = frozenset(word[:STEM_CHARACTERS] for word in _COMMON.split())


def parse(response: Response, schema: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The answer as a dict and None, or an empty dict and the rule that it broke."""
    if response.problem:
        return {}, response.problem
    if not response.finished:
        return {}, "truncated"
    try:
        value = json.loads(response.text)
        json.dumps(value, ensure_ascii=False).encode()  # `\\ud800` is valid JSON and no text
    except ValueError:
        return {}, "invalid_json"
    if not isinstance(value, dict) or set(value) != set(schema["properties"]):
        return {}, "invalid_json"
    for key, field in schema["properties"].items():
        if not isinstance(value[key], list if field["type"] == "array" else str):
            return {}, "invalid_json"
        # The schema ended this text, not the LLM.
        if field["type"] == "string" and len(value[key]) >= field["maxLength"]:
            return {}, "truncated"
    return value, None


def text_problem(text: str) -> str | None:
    """The rule that a generated text breaks, whatever it is for."""
    minimum = MINIMUM_UNSPACED if _UNSPACED.search(text) else MINIMUM_CHARACTERS
    if len(text.strip()) < minimum or not _folded(text):
        return "too_short"
    if len(text) > MAXIMUM_CHARACTERS:
        return "too_long"
    for reason, pattern in (("template_leak", _LEAK), ("refused", _REFUSED), ("meta_text", _META)):
        if pattern.search(text):
            return reason
    return "repetitive" if repetitive(text) else None


def query_problem(query: str, document: str, *, examples: str, grounded: bool) -> str | None:
    """The rule that a query breaks against its document and the examples of its prompt.

    `grounded` asks for a word in common with the document: small LLMs wander off, large ones may
    find better words than the document's.
    """
    if problem := text_problem(query):
        return problem
    if copies(query, document):
        return "copies_document"
    if _folded(query) in _folded(examples):
        return "copies_example"
    return "unrelated" if grounded and not related(query, document) else None


def sample_problem(text: str, label: str, *, examples: str) -> str | None:
    """The rule that a text for a label breaks."""
    if problem := text_problem(text):
        return problem
    if label_in_text(label, text):
        return "label_in_text"
    return "copies_example" if _folded(text) in _folded(examples) else None


def task_problem(task: str, labels: Sequence[str], *, topic: str, examples: str) -> str | None:
    """The rule that a classification task breaks; its topic must be recognisable in it."""
    if problem := text_problem(task):
        return problem
    if problem := labels_problem(labels):
        return problem
    if any(label_in_text(label, task) for label in labels):
        return "bad_labels"
    known = _folded(examples)
    if _folded(task) in known or all(_folded(label) in known for label in labels):
        return "copies_example"
    return None if _stems(task) & _stems(topic) else "unrelated"


def labels_problem(labels: Sequence[str]) -> str | None:
    """Labels must be two or more short phrases of letters, none cut off or said twice."""
    stems = [_stems(label) or {label} for label in labels]
    usable = all(_LABEL.fullmatch(label) and label.split()[-1] not in _UNENDING for label in labels)
    nested = any(
        one <= other for i, one in enumerate(stems) for j, other in enumerate(stems) if i != j
    )
    return None if len(labels) >= 2 and usable and not nested else "bad_labels"


def label_in_text(label: str, text: str) -> bool:
    """Whether the label, as words, occurs in the text."""
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE) is not None


def copies(query: str, document: str) -> bool:
    """Whether the query is a part of the document, or shares a long run of words with it."""
    words, other = _folded(query).split(), f" {_folded(document)} "
    length = max(COPIED_QUERY_WORDS, min(len(words), COPIED_WORDS))
    return any(f" {run} " in other for run in _runs(words, length))


def repetitive(text: str) -> bool:
    """Whether a run of words occurs twice, or few words make up the whole text."""
    words = _folded(text).split()
    runs = _runs(words, REPEATED_WORDS)
    few = len(words) > 3 and len(set(words)) < DISTINCT_SHARE * len(words)
    return few or len(set(runs)) < len(runs)


def related(query: str, document: str) -> bool:
    """Whether enough of the query's content words have their stem in the document.

    Identifiers are taken apart; without content words there is no relation.
    """
    asked = _stems(query)
    return bool(asked) and len(asked & _stems(document)) >= GROUNDED_SHARE * len(asked)


def _stems(text: str) -> set[str]:
    found: set[str] = set()
    for part in _WORD_PARTS.findall(text):
        if _UNSPACED.match(part):
            found.update(part[i : i + 2] for i in range(len(part) - 1))
        elif len(part) >= 3:
            found.add(part.casefold()[:STEM_CHARACTERS])
    return found - _COMMON_STEMS


def _folded(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _runs(words: Sequence[str], length: int) -> list[str]:
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


def query_schema(*, code: bool) -> dict[str, Any]:
    """JSON schema of the answer to doc2query, or to code2query: there, words instead of code."""
    query = {"type": "string", "minLength": MINIMUM_UNSPACED, "maxLength": 160}
    if code:
        query["pattern"] = "^[A-Za-z][A-Za-z0-9 ,'/-]{6,150}[A-Za-z0-9?.]$"
    return _object({"query": query})


def sample_schema() -> dict[str, Any]:
    """JSON schema of the answer to sample."""
    return _object({"text": {"type": "string", "minLength": MINIMUM_UNSPACED, "maxLength": 240}})


def task_schema(count: int) -> dict[str, Any]:
    """JSON schema of a classification task with so many labels."""
    # Small LLMs answer "Here is a task" unless the first word is given.
    task = {
        "type": "string",
        "pattern": "^(Classify|Identify|Determine|Decide) [a-zA-Z][a-zA-Z ,'-]{14,88}[a-z]\\.$",
        "maxLength": 120,
    }
    label = {"type": "string", "pattern": "^[a-z]{2,20}( [a-z]{2,16}){0,2}$"}
    labels = {"type": "array", "items": label, "minItems": count, "maxItems": count}
    return _object({"task": task, "labels": labels})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
