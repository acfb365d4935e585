"""An LLM of the pool grades the rows of the others, block by block of what they wrote.

A row is asked about once, and rows that the judge wrote itself, or in languages that it does not
write, never. Grades are the table `judged`; its responses lie beside those of the writers, under
keys of the same sort, so judging again pays for new rows only, and another threshold for none.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from datagen.codes import standard_language
from datagen.schema import UserError
from datagen.store import Folder, open_shard
from datagen.synthesize.call import Value
from datagen.synthesize.kinds.judge import GRADES, JudgeKind
from datagen.synthesize.llm import LLM
from datagen.synthesize.pool import PER_KIND, Block, Member
from datagen.synthesize.seeds import fraction, number
from datagen.synthesize.written import written_by

JUDGED_LOW = "judged_low"
LOWEST_GRADE = 3
EXAMPLES = 60  # turns, after which examples come in the same order again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Rows that LLM `llm` of the pool says to drop, or grades below `lowest`, are rejected; it sees
    `share` of the rows, drawn by their requests. Give it no `share` of its own to only judge."""

    llm: str
    share: float = 1.0
    lowest: int = LOWEST_GRADE

    def of(self, llms: Sequence[LLM]) -> LLM:
        """The judge; UserError when there is none of the name, or it cannot judge."""
        found = [llm for llm in llms if llm.name == self.llm]
        others = [llm for llm in llms if llm.name != self.llm and llm.share]
        if not found or not others or not 0 < self.share <= 1 or not 1 <= self.lowest <= 5:
            raise UserError(
                found=f"{self} in a pool of " + ", ".join(llm.name for llm in llms),
                expected="an LLM of the pool, which judges what the others write; a share above 0 "
                "and up to 1; a lowest grade from 1 to 5",
                do="name an LLM of the pool as the judge, and another one to write",
                exit_status=2,
            )
        return found[0]


class JudgeMember(Member):
    """The judge in the pool: blocks that are given, each once, and no quota."""

    def __init__(self, llm: LLM, blocks: Mapping[int, Block], *, block_requests: int):
        super().__init__(llm, 0, [], block_requests=block_requests)
        self.blocks = dict(blocks)

    def next_round(self, committed: Mapping[int, Mapping[str, Any]]) -> bool:
        given, self.blocks = self.blocks, {}
        for index, block in given.items():
            if index in committed:
                self.settle(committed[index])
            else:
                self.todo.append((index, block))
        return bool(self.todo)

    def settle(self, record: Mapping[str, Any]) -> None:
        self.records[record["index"]] = record


def judge_block(
    judge: LLM,
    test: Judge,
    folder: Folder,
    shards: Sequence[str],
    *,
    faults: Mapping[str, str],
    index: int,
    seed: int,
    block_requests: int,
    prompts: Mapping[str, str],
) -> Block | None:
    """What to ask about block `index` of written rows; None when there is nothing.

    Its place depends on what was written alone, so responses are found again whatever the pool.
    """
    asked: list[dict[str, Any]] = [
        {
            "request": f"{judge.slug}/judge/{written}",
            "turn": number(f"{seed}/judge/{written}") % EXAMPLES,
            "language": language,
            "written": written,
        }
        for shard in shards
        for written, language in _of_others(judge, open_shard(folder, shard))
        if written not in faults and fraction(f"{seed}/judged/{written}") < test.share
    ]
    if not asked:
        return None
    writer = asked[0]["written"].rsplit("/", 1)[0]
    place = f"{judge.slug}/judge/{writer}/{index % PER_KIND // block_requests:06d}"
    files = {"folder": folder.uri, "shards": list(shards), "prompts": dict(prompts)}
    return {"llm": judge.slug, "kind": JudgeKind.name, "place": place, "requests": asked, **files}


def _of_others(judge: LLM, pairs: pa.Table) -> Iterator[tuple[str, str]]:
    reads = {standard_language(language) for language in judge.languages}
    for request, llm, language in (
        written_by(pairs).select("request", "llm", "language").iter_rows()
    ):
        if llm != judge.name and standard_language(language) in reads:
            yield request, language


def is_low(grades: Value, *, lowest: int = LOWEST_GRADE) -> bool:
    """Whether a judge says drop, or gives a grade below `lowest`."""
    return grades["verdict"] == "drop" or min(grades[name] for name in GRADES) < lowest
