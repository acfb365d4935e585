"""README.md of an exported model: the card that the Hub shows."""

from collections.abc import Mapping
from typing import Any


def model_card(
    card: Mapping[str, Any],
    *,
    max_length: int,
    causal: bool,
    pooling: str = "mean",
    pool_instruction: bool = True,
) -> str:
    """README.md of a model: what it is, what it was made from, how to load it."""
    head = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    if card.get("licence"):
        head.append(f"license: {str(card['licence']).lower()}")
    attention = "causal" if causal else "bidirectional"
    if not pool_instruction:
        pooling = "mean (without the instruction's tokens)"
    facts = {
        "base model": card.get("base_model", "not stated"),
        "licence of the base model": card.get("licence", "not stated"),
        "training mix (digest)": card.get("mix", "none"),
        "attention": f"{attention}, {pooling} pooling, unit length",
        "longest text": f"{max_length} tokens",
        "needs": "transformers >= 5.2 (older versions load it as a causal model, with no warning)",
    }
    facts |= {
        str(key): value
        for key, value in card.items()
        if key not in ("base_model", "licence", "mix", "stages") and isinstance(value, str | int)
    }
    stages = [_stage_line(stage) for stage in card.get("stages", ())]
    return "\n".join(
        ["---", *head, "---", "", "# Text-embedding model", ""]
        + [f"- {key}: {value}" for key, value in facts.items()]
        + (["", "## Training stages", "", *stages] if stages else [])
        + ["", "## Use", "", _USE]
    )


def _stage_line(stage: Mapping[str, Any]) -> str:
    return "- " + ", ".join(f"{key} {value}" for key, value in stage.items())


_USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # no custom code
queries = model.encode_query(["How many moons does Mars have?"])
documents = model.encode_document(["Mars has two moons, Phobos and Deimos."])
model.similarity(queries, documents)
```

Queries carry the instruction of the prompt `query`; for another task put
`Instruct: {instruction}\\nQuery: ` in front of the text. `golden.json` holds two vectors to compare
a loaded model with.
"""
