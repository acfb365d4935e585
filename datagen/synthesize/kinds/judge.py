"""What an LLM is asked about a row of another: relevance, naturalness, and whether to keep it.

A judge of a few hundred million parameters repeats the grades of the examples it saw: use one of
billions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from datagen.store import Folder, open_shard
from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.rows import Block, PromptUse, prompt_of, shown
from datagen.synthesize.kinds.schemas import answer
from datagen.synthesize.languages import language_name
from datagen.synthesize.llm import LLM

GRADES = ("relevance", "naturalness")
SHOWN_CHARACTERS = 1200  # of a document
NO_INSTRUCTION = "Given a query, retrieve documents that answer it."
MAX_TOKENS = 48  # the answer is about 25
JUDGED = pa.schema(
    [
        pa.field("written", pa.string(), nullable=False),  # the request whose row it is about
        pa.field("llm", pa.string(), nullable=False),  # the judge
        pa.field("relevance", pa.int64(), nullable=False),
        pa.field("naturalness", pa.int64(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("sampling", pa.string()),
    ]
)


class JudgeKind:
    """What an LLM thinks of a row; the block has `folder` and `shards` of the rows."""

    name = "judge"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "judge": PromptUse(
            fields=("instruction", "query", "text", "language"), answer=(*GRADES, "verdict")
        )
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "judge")
        folder, wanted = Folder(block["folder"]), {one["written"] for one in block["requests"]}
        self.pairs = {
            row["provenance"]["row"]: row
            for shard in block["shards"]
            for row in open_shard(folder, shard).to_pylist()
            if row["provenance"]["row"] in wanted
        }

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        row = self.pairs[drawn["written"]]
        shown_values = {
            "instruction": row["instruction"] or NO_INSTRUCTION,
            "query": row["query"],
            "text": shown(row, SHOWN_CHARACTERS),
            "language": language_name(drawn["language"]),
        }
        return Call(
            prompt=self.prompt,
            values=shown_values,
            schema=judge_schema(),
            turn=drawn["turn"],
            max_tokens=MAX_TOKENS,
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        return None  # any grade is an answer

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        grades = {name: values[0][name] for name in (*GRADES, "verdict")}
        ids = {"written": drawn["written"], "llm": self.llm.name, "prompt": self.prompt.id}
        return {**ids, **grades, "sampling": None}


def judge_schema() -> dict[str, Any]:
    """JSON schema of the answer: two grades from 1 to 5, then `keep` or `drop`."""
    grade = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    verdict = {"type": "string", "enum": ["keep", "drop"]}
    return answer(**dict.fromkeys(GRADES, grade), verdict=verdict)
