"""An LLM of the pool grades the rows of others: relevance, naturalness, and whether to keep them.

Judging is a kind of request like writing: a row is asked about once, by an LLM that did not write
it, and the answer is one call. The rows that come back are those that the judge keeps, unchanged;
grades can also be applied afterwards, by `judged_rule`. A judge of a few hundred million parameters
repeats the grades of the examples it saw: use one of billions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datagen.store import Folder, open_shard
from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, prompt_of, seed_rows, shown
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM
from datagen.synthesize.seeds import number
from datagen.synthesize.select import Rule, Verdict
from datagen.synthesize.written import written_by

JUDGED_LOW = "judged_low"
GRADES = ("relevance", "naturalness")
LOWEST_GRADE = 3
SHOWN_CHARACTERS = 1200  # of a document
NO_INSTRUCTION = "Given a query, retrieve documents that answer it."


class JudgeKind:
    """What an LLM thinks of a row; the block has `folder` of the rows."""

    name = "judge"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "judge": PromptUse(
            fields=("instruction", "query", "text", "language"), answer=(*GRADES, "verdict")
        )
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "judge")
        self.rows = seed_rows(block)

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        row = self.rows[drawn["request"]]
        shown_values = {
            "instruction": row["instruction"] or NO_INSTRUCTION,
            "query": row["query"],
            "text": shown(row, SHOWN_CHARACTERS),
            "language": language_name(drawn["language"]),
        }
        schema, turn = judge_schema(), drawn["turn"]
        return Call(prompt=self.prompt, values=shown_values, schema=schema, turn=turn)

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        return grade_problem(values[0])

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        return self.rows[drawn["request"]]


def judge_schema() -> dict[str, Any]:
    """JSON schema of the answer: two grades from 1 to 5, then `keep` or `drop`."""
    grade = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    verdict = {"type": "string", "enum": ["keep", "drop"]}
    properties = {**dict.fromkeys(GRADES, grade), "verdict": verdict}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def grade_problem(value: Value, *, lowest: int = LOWEST_GRADE) -> str | None:
    """`judged_low` for an answer that says drop, or with a grade below `lowest`."""
    low = value["verdict"] == "drop" or min(value[grade] for grade in GRADES) < lowest
    return JUDGED_LOW if low else None


def judge_requests(
    llm: LLM, folder: Folder, shards: Sequence[str], *, count: int, seed: int
) -> list[dict[str, Any]]:
    """Requests for at most `count` rows in the LLM's languages that others wrote, drawn by a hash
    of their ids; `written` is the request that a row answered."""
    places = sorted(
        (number(f"{seed}/{llm.slug}/judge/{written}"), written, shard, row, language)
        for shard in shards
        for row, written, language in _of_others(llm, open_shard(folder, shard))
    )
    return [
        {
            "request": f"{llm.slug}/judge/{i}",
            "turn": i,
            "language": language,
            "written": written,
            "shard": shard,
            "row": row,
        }
        for i, (_, written, shard, row, language) in enumerate(places[:count])
    ]


def _of_others(llm: LLM, pairs: pa.Table) -> Iterator[tuple[int, str, str]]:
    columns = written_by(pairs).select("request", "llm", "language").iter_rows()
    for row, (request, writer, language) in enumerate(columns):
        if writer != llm.name and language in llm.languages:
            yield row, request, language


def judged_rule(grades: Mapping[str, Value], *, lowest: int = LOWEST_GRADE) -> Rule:
    """Rows that were graded low, by the answer for the request (`written`) that they came from."""

    def rule(pairs: pa.Table) -> Verdict:
        answers = [grades.get(request) for request in written_by(pairs)["request"]]
        low = [value is not None and bool(grade_problem(value, lowest=lowest)) for value in answers]
        judged = [value is not None for value in answers]
        return Verdict(JUDGED_LOW, np.array(low, bool), np.array(judged, bool))

    return rule
