"""Characters of the data that must be shown and not obeyed."""

import re
from typing import Any

from markupsafe import Markup

# Control characters and those that turn the direction of the text around them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def visible(text: str) -> str:
    """The text with control and direction characters spelled out as <U+202E>."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


# What Markdown, and the Hub's additions to it, see inside a line. `://` would become a link.
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$#@!]|:(?=//)|(?<=www)\.)", re.IGNORECASE)


def markdown(text: str) -> Markup:
    """The text on one line, so that neither Markdown nor HTML sees anything in it."""
    line = re.sub(r"\s*\n\s*", " ", visible(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_MARKDOWN.sub(r"\\\1", line))


def inline(value: Any) -> Markup:
    """Nothing reaches a card as it is unless marked so: a forgotten filter cannot open a hole."""
    return value if isinstance(value, Markup) else markdown(str(value))
