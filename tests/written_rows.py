"""Rows as LLMs write them, for the tests of what looks at such rows."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from datagen.schema import PAIR


def row(request: str, query: str, **more: Any) -> dict[str, Any]:
    """One PAIR row; its LLM and kind are those of the request's id."""
    llm, kind, _ = request.split("/")
    seed = "0" * 32 if kind in ("retrieval", "translation") else None
    return {
        "source": f"synthetic_{kind}",
        "task": "retrieval",
        "origin": "synthetic",
        "query": query,
        "text": "Honey bees dance on the comb to tell each other where flowers are.",
        "query_language": "eng",
        "query_script": "Latn",
        "document_language": "eng",
        "document_script": "Latn",
        "provenance": {"row": request, "llm": llm, "seed_document": seed},
        **more,
    }


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=PAIR)


def queries(llm: str, kind: str, texts: Sequence[str], **more: Any) -> pa.Table:
    """One row for each text."""
    return table([row(f"{llm}/{kind}/{i}", text, **more) for i, text in enumerate(texts)])
