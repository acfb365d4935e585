"""One query of a mix with its documents: what a reader asks for when a row looks wrong.

For each negative the text says why it is there: its score against the lowest positive's, and the
ceiling that mining set, where the mining step lies beside the mix. Above the ceiling there are only
negatives that the source itself gives. Cost: the ids of the stages are compared, and the documents
of one row are read.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from datagen.export import Mix
from datagen.mix_shards import take_ordered
from datagen.overview import steps_beside
from datagen.report import visible
from datagen.schema import UserError

WIDTH = 100
SHOWN_CHARACTERS = 600


def find_query(uri: str, query_id: str) -> list[dict[str, Any]]:
    """The row of that id in every stage that has it, documents with texts in place of numbers.

    Each row gains `stage` and `ceiling` (None where the mining step is not at hand), and positives
    and negatives are lists of {doc_id, source, title, text, score, ratio, why}. UserError (exit
    status 2) when no stage has it.
    """
    mix = Mix.open(uri)
    margin = _margin(mix)
    found = []
    for stage, table in mix.stages.items():
        for number in range(len(table.names)):
            shard = table.open(number)
            at = pc.index(shard["query_id"], query_id).as_py()
            if at >= 0:
                (row,) = take_ordered(shard, np.array([at])).to_pylist()
                found.append(_with_documents(mix, {"stage": stage, **row}, margin))
    if not found:
        raise UserError(
            found=f"no row of {uri} has the query id {query_id!r}",
            expected="32 hexadecimal digits of a query of the mix",
            do="take one from the report, or from the column query_id of a stage",
            exit_status=2,
        )
    return found


def _margin(mix: Mix) -> float | None:
    """The share of the lowest positive's score that mining allowed, when its step is beside."""
    digest = mix.manifest.inputs.get("mined")
    for step in steps_beside(mix.folder):
        if step.digest == digest and isinstance(step.config.get("margin"), int | float):
            return float(step.config["margin"])
    return None


def _with_documents(mix: Mix, row: dict[str, Any], margin: float | None) -> dict[str, Any]:
    lowest = min(row["positive_scores"], default=None)
    ceiling = None
    if margin is not None and lowest is not None:
        ceiling = lowest - (1 - margin) * abs(lowest)
    numbers = np.unique(np.array([*row["positives"], *row["negatives"]], dtype=np.int64))
    documents = mix.read_documents(numbers).to_pylist() if len(numbers) else []
    texts = dict(zip(numbers.tolist(), documents, strict=True))
    for side, scores in (("positives", "positive_scores"), ("negatives", "negative_scores")):
        row[side] = [
            {
                **texts[n],
                "score": score,
                "ratio": score / lowest if lowest else None,
                "why": "positive" if side == "positives" else _why(score, ceiling),
            }
            for n, score in zip(row[side], row.pop(scores), strict=True)
        ]
    return {**row, "ceiling": ceiling}


def _why(score: float, ceiling: float | None) -> str:
    if ceiling is None:
        return "mined, or given by its source"
    # Scores are stored in 32 bits, the ceiling is computed in 64.
    if score <= ceiling + 1e-6:
        return f"at most the ceiling {ceiling:.4f}"
    return f"given by its source: above the ceiling {ceiling:.4f}"


def show(row: Mapping[str, Any]) -> str:
    """A row as plain text; control and direction characters are spelled out."""
    return "\n".join(_lines(row))


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    facts = ("stage", "task", "source", "origin", "language", "script", "licence")
    yield f"query {row['query_id']}"
    yield visible("  " + ", ".join(f"{n} {row[n]}" for n in facts if row[n]))
    if row["provenance"]:
        told = {n: v for n, v in row["provenance"].items() if v is not None}
        yield visible("  written by: " if "llm" in told else "  from: ") + visible(str(told))
    if row["instruction"]:
        both = " (on documents too)" if row["symmetric"] else ""
        yield visible(f"  instruction{both}: {row['instruction']}")
    yield _indented(row["query"])
    for side in ("positives", "negatives"):
        yield f"{len(row[side])} {side}"
        for number, document in enumerate(row[side], 1):
            ratio = document["ratio"]
            of = f", {ratio:.0%} of the lowest positive" if ratio is not None else ""
            score = f"score {document['score']:.4f}{of}"
            yield f"{number:3}. {score}; {document['why']}"
            yield visible(f"     {document['doc_id']} {document['source']}")
            title = f"{document['title']}: " if document["title"] else ""
            yield _indented(title + document["text"])


def _indented(text: str) -> str:
    shown = visible(" ".join(text.split()))
    cut = shown[:SHOWN_CHARACTERS] + (" ..." if len(shown) > SHOWN_CHARACTERS else "")
    margin = " " * 5
    return textwrap.fill(cut, WIDTH, initial_indent=margin, subsequent_indent=margin)
