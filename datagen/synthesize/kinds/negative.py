"""What an LLM is asked about a mined negative: does this document answer that query after all?

It says why in a few words, then a score, then yes or no. An LLM of a few hundred million parameters
says what the examples said: use one of billions, and look at how it judges the known positives.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from datagen.store import Folder, open_shard
from datagen.synthesize.call import Call, Drawn, Value
from datagen.synthesize.kinds.judge import NO_INSTRUCTION
from datagen.synthesize.kinds.rows import Block, PromptUse, prompt_of, shown
from datagen.synthesize.kinds.schemas import answer, choice, text
from datagen.synthesize.llm import LLM

SCORES = (0, 1, 2, 3)
SHOWN_CHARACTERS = 1200  # of a document
REASON_CHARACTERS = 160
MAX_TOKENS = 96
SAMPLED = pa.schema(
    [
        pa.field("request", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),  # negative, or positive: a control
        pa.field("source", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("query", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),  # as much of it as is shown
    ]
)
VERDICTS = pa.schema(
    [
        *(SAMPLED.field(name) for name in ("request", "query_id", "doc_id", "side", "source")),
        pa.field("llm", pa.string(), nullable=False),
        pa.field("answers", pa.bool_(), nullable=False),
        pa.field("score", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("sampling", pa.string()),
    ]
)


class NegativeKind:
    """What an LLM says of sampled pairs; the block has `folder` and `shards` of the sample."""

    name = "negative"
    prompts: ClassVar[Mapping[str, PromptUse]] = {
        "negative": PromptUse(
            fields=("instruction", "query", "text", "language"),
            answer=("reason", "score", "answers"),
        )
    }

    def __init__(self, llm: LLM, block: Block):
        self.llm, self.prompt = llm, prompt_of(block, "negative")
        folder, wanted = Folder(block["folder"]), {one["request"] for one in block["requests"]}
        self.pairs = {
            row["request"]: row
            for shard in block["shards"]
            for row in open_shard(folder, shard).to_pylist()
            if row["request"] in wanted
        }

    def call(self, drawn: Drawn, values: Sequence[Value]) -> Call | None:
        if values:
            return None
        row = self.pairs[drawn["request"]]
        return Call(
            prompt=self.prompt,
            values={
                "instruction": row["instruction"] or NO_INSTRUCTION,
                "query": row["query"],
                "text": shown(row, SHOWN_CHARACTERS),
                "language": row["language"],
            },
            schema=negative_schema(),
            turn=drawn["turn"],
            max_tokens=MAX_TOKENS,
            cut=True,  # a reason that is cut is a reason
        )

    def problem(self, drawn: Drawn, values: Sequence[Value]) -> str | None:
        return None  # any verdict is an answer

    def row(self, drawn: Drawn, values: Sequence[Value]) -> dict[str, Any]:
        row, said = self.pairs[drawn["request"]], values[0]
        about = {name: row[name] for name in ("request", "query_id", "doc_id", "side", "source")}
        verdict = {"answers": said["answers"] == "yes", "score": said["score"]}
        by = {"llm": self.llm.name, "prompt": self.prompt.id, "sampling": None}
        return {**about, **verdict, "reason": said["reason"], **by}


def negative_schema() -> dict[str, Any]:
    """JSON schema of the answer: why, a score from 0 to 3, then `yes` or `no`."""
    score = {"type": "integer", "enum": list(SCORES)}
    return answer(
        reason=text(REASON_CHARACTERS, minimum=1), score=score, answers=choice(("yes", "no"))
    )
