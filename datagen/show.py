"""One query of a mix with its documents: what a reader asks for when a row looks wrong.

For each negative the text says why it is there: whether the source itself names it, its score
against the lowest positive's, and the ceiling that mining set, where the mining step lies beside
the mix. Cost: the ids of the stages are compared, and the documents of one row are read.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from datagen.export import Mix
from datagen.mining_rules import Rules
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
    rules = _rules(mix)
    found = []
    for stage, table in mix.stages.items():
        for number in range(len(table.names)):
            shard = table.open(number)
            at = pc.index(shard["query_id"], query_id).as_py()
            if at >= 0:
                (row,) = take_ordered(shard, np.array([at])).to_pylist()
                found.append(_with_documents(mix, {"stage": stage, **row}, rules))
    if not found:
        raise UserError(
            found=f"no row of {uri} has the query id {query_id!r}",
            expected="32 hexadecimal digits of a query of the mix",
            do="take one from the report, or from the column query_id of a stage",
            exit_status=2,
        )
    return found


def _rules(mix: Mix) -> Rules | None:
    """The rules of the mining step, when it is beside and has one ceiling for a query."""
    digest = mix.manifest.inputs.get("mined")
    for step in steps_beside(mix.folder):
        if step.digest == digest and "rules" in step.config:
            rules = Rules(**step.config["rules"])
            return rules if rules.teachers == "mean" else None
    return None


def _ceiling(row: Mapping[str, Any], rules: Rules | None) -> float | None:
    if rules is None or not row["positive_scores"]:
        return None
    lowest = np.array([min(row["positive_scores"])])
    ceiling = float(rules.for_task(row["task"]).ceilings(lowest)[0])
    return ceiling if np.isfinite(ceiling) else None


def _with_documents(mix: Mix, row: dict[str, Any], rules: Rules | None) -> dict[str, Any]:
    lowest = min(row["positive_scores"], default=None)
    ceiling, given = _ceiling(row, rules), row["given_negatives"]
    numbers = np.unique(np.array([*row["positives"], *row["negatives"]], dtype=np.int64))
    documents = mix.read_documents(numbers).to_pylist() if len(numbers) else []
    texts = dict(zip(numbers.tolist(), documents, strict=True))
    for side, scores in (("positives", "positive_scores"), ("negatives", "negative_scores")):
        row[side] = [
            {
                **texts[n],
                "score": score,
                "ratio": score / lowest if lowest else None,
                "why": "positive" if side == "positives" else _why(rank, given, ceiling),
            }
            for rank, (n, score) in enumerate(zip(row[side], row.pop(scores), strict=True))
        ]
    return {**row, "ceiling": ceiling}


def _why(rank: int, given: int | None, ceiling: float | None) -> str:
    if given is not None and rank < given:
        return "given by its source"
    found = "mined" if given is not None else "mined, or given by its source"
    return found if ceiling is None else f"{found}: the ceiling is {ceiling:.4f}"


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
