"""JSON schemas of answers, and how much room they have.

Lengths are bounded because small LLMs run on otherwise. Only those words of JSON schema are used
that llguidance enforces while it samples: type, properties, required, enum, pattern, minLength,
maxLength, items, minItems, maxItems.
"""

import re
from collections.abc import Sequence
from typing import Any

from datagen.synthesize.llm import LLM
from datagen.synthesize.rules import LENGTH_FACTOR, MINIMUM_UNSPACED

CHARACTERS_PER_WORD = 9  # with its blank; German and Tamil words are longer than English ones
TOKENS_PER_WORD_ENGLISH, TOKENS_PER_WORD = 1.5, 4.0
LEAST_ENGLISH, LEAST = 6, 3  # characters of a word, of which half as many as asked must be there
CHARACTERS_PER_TOKEN = 3.5  # of English: fewer than it has, for the JSON around the texts

Schema = dict[str, Any]


def answer(**properties: Schema) -> Schema:
    """An object of exactly these properties, in this order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def text(maximum: int, *, minimum: int = MINIMUM_UNSPACED, pattern: str | None = None) -> Schema:
    """A string of so many characters."""
    schema: Schema = {"type": "string", "minLength": minimum, "maxLength": maximum}
    return schema | ({"pattern": pattern} if pattern else {})


def choice(values: Sequence[str]) -> Schema:
    """One of some strings."""
    return {"type": "string", "enum": list(values)}


def several(items: Schema, minimum: int, maximum: int) -> Schema:
    """A list of so many."""
    return {"type": "array", "items": items, "minItems": minimum, "maxItems": maximum}


def most_words(asked: str) -> int:
    """`6 to 10 words` -> 10."""
    return max(int(found) for found in re.findall(r"\d+", asked))


def room(asked: str) -> int:
    """Characters for a text of an asked length: as many as the rule on lengths may let pass."""
    return 60 + LENGTH_FACTOR * CHARACTERS_PER_WORD * most_words(asked)


def least(asked: str, *, language: str) -> int:
    """Characters that a text of an asked length has at least: small LLMs would stop before. Three
    for a word are few enough for Chinese."""
    words = min(int(found) for found in re.findall(r"\d+", asked)) // LENGTH_FACTOR
    return max(MINIMUM_UNSPACED, words * (LEAST_ENGLISH if language == "eng" else LEAST))


def whole_budget(llm: LLM, *characters: int) -> int:
    """max_tokens for English texts as long as their schemas let them be: where one that runs on
    costs itself only, and not the answer."""
    tokens = 24 + 16 * len(characters) + round(sum(characters) / CHARACTERS_PER_TOKEN)
    return max(llm.max_tokens, min(tokens, llm.max_model_len // 2))


def token_budget(llm: LLM, *asked: str, language: str) -> int:
    """max_tokens for texts of asked lengths: half of the model's room at most, for the prompt."""
    rate = TOKENS_PER_WORD_ENGLISH if language == "eng" else TOKENS_PER_WORD
    words = sum(most_words(one) for one in asked)
    tokens = 24 + 16 * len(asked) + round(1.5 * rate * words)
    return max(llm.max_tokens, min(tokens, llm.max_model_len // 2))
