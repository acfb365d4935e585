"""What is looked at once rows are written: the round trip in encoders, then the judge.

Both look at blocks that are new since the selection before, and give reasons for requests. What
they reject is not kept: the selection leaves it out before it looks for near-duplicates, and what
is missing then is asked for again, up to the number of selections of the step. They cannot be rules
of a round, because an encoder and a judge would have to be loaded beside the writers.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.steps import Context
from datagen.store import open_shard
from datagen.synthesize.judge import JUDGED_LOW, Judge, JudgeMember, is_low, judge_block
from datagen.synthesize.kinds.judge import GRADES, JUDGED
from datagen.synthesize.llm import LLM
from datagen.synthesize.pool import PER_KIND, Member
from datagen.synthesize.ranker import NOT_JUDGED
from datagen.synthesize.round_trip import ROUND_TRIP, RoundTrip, ranked, sampled
from datagen.synthesize.written import written_by

AskJudge = Callable[[JudgeMember], None]  # lets it answer, and commits what it says


@dataclasses.dataclass(kw_only=True)
class Checks:
    """The checks of one run of the step, and `faults`: the reasons so far, by request."""

    context: Context
    round_trip: RoundTrip | None
    judge: Judge | None
    llms: Sequence[LLM]
    ask_judge: AskJudge
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    faults: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._looked: set[int] = set()
        self._ranks: dict[str, int] = {}
        self._sample: list[str] | None = None
        self._graded: list[Mapping[str, Any]] = []
        self._sums: Counter[str] = Counter()

    def look(self, members: Sequence[Member], *, turn: int) -> None:
        """Take the blocks that were written since the last turn."""
        if not self.round_trip and not self.judge:
            return
        new = {
            index: record
            for member in members
            for index, record in sorted(member.records.items())
            if index not in self._looked
        }
        self._looked |= set(new)
        blocks = {index: shards for index, record in new.items() if (shards := _shards(record))}
        if self.round_trip and blocks:
            rows = sum(_count(record) for record in new.values())
            self._rank(self.round_trip, [*blocks.values()], turn=turn, rows=rows)
        if self.judge and blocks:
            self._grade(self.judge, blocks)

    def _rank(
        self, test: RoundTrip, blocks: Sequence[Sequence[str]], *, turn: int, rows: int
    ) -> None:
        if self._sample is None:
            self._sample = sampled(self.context, test)
        ranks = ranked(self.context, test, blocks, sample=self._sample, turn=turn)
        if len(ranks) != rows:
            raise RuntimeError(f"{rows} rows were written, and {len(ranks)} were ranked")
        self._ranks |= ranks
        self.faults |= {request: ROUND_TRIP for request, rank in ranks.items() if rank > test.k}

    def _grade(self, test: Judge, blocks: Mapping[int, Sequence[str]]) -> None:
        config, judge = self.context.config, test.of(self.llms)
        given = {}
        for index, shards in self._by_place(blocks).items():
            block = judge_block(
                judge,
                test,
                self.context.folder,
                shards,
                faults=self.faults,
                index=index,
                seed=config["seed"],
                block_requests=config["block_requests"],
                prompts=self.prompts,
            )
            if block is not None:
                given[index] = block
        size = config["block_requests"]
        member = JudgeMember(judge, given, block_requests=size)
        self.ask_judge(member)
        records = [member.records[index] for index in sorted(member.records)]
        self.context.collect({**record, "ledger": []} for record in records)
        self._sums.update(member.sums)  # type: ignore[arg-type]  # seconds beside counts
        for row in _rows(self.context, records, "judged"):
            self._graded.append(row)
            if is_low(row, lowest=test.lowest):
                self.faults[row["written"]] = JUDGED_LOW

    def _by_place(self, blocks: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        """Blocks of two rounds whose responses lie in one folder, as one."""
        size = self.context.config["block_requests"]
        first: dict[tuple[int, int], int] = {}
        found: dict[int, list[str]] = defaultdict(list)
        for index, shards in sorted(blocks.items()):
            place = index // PER_KIND, index % PER_KIND // size
            found[first.setdefault(place, index)] += shards
        return found

    @property
    def judge_rate(self) -> float:
        """Output tokens a second of the judge; 0 where it was not asked."""
        seconds = self._sums["seconds"]
        return self._sums["output_tokens"] / seconds if seconds else 0.0

    def facts(self, members: Sequence[Member]) -> dict[str, Any]:
        """How many rows each check could judge, what they said, and what the judge cost."""
        facts: dict[str, Any] = {}
        if self.round_trip:
            facts["round_trip"] = self._rank_facts(self.round_trip)
        if self.judge:
            facts["judge"] = self._judge_facts(self.judge, members)
        return facts

    def _rank_facts(self, test: RoundTrip) -> dict[str, Any]:
        ranks = np.array([rank for rank in self._ranks.values() if rank != NOT_JUDGED], int)
        return {
            "rows": len(self._ranks),
            "judged": len(ranks),
            "found_first": int((ranks == 1).sum()),
            "found": int((ranks <= test.k).sum()),
            ROUND_TRIP: int((ranks > test.k).sum()),
        }

    def _judge_facts(self, test: Judge, members: Sequence[Member]) -> dict[str, Any]:
        rows = sum(_count(record) for member in members for record in member.records.values())
        low = sum(is_low(row, lowest=test.lowest) for row in self._graded)
        facts: dict[str, Any] = {"llm": test.llm, "rows": rows, "judged": len(self._graded)}
        facts[JUDGED_LOW] = low
        for name in GRADES:
            grades = Counter(str(row[name]) for row in self._graded)
            facts[name] = {grade: grades[grade] for grade in sorted(grades)}
        return facts | {"calls": dict(sorted(self._sums.items()))}


def reasons_of(rows: pa.Table, faults: Mapping[str, str]) -> list[str | None]:
    """The reason of each written row, or None."""
    if not faults:
        return [None] * rows.num_rows
    return [faults.get(request) for request in written_by(rows)["request"].to_list()]


def _shards(record: Mapping[str, Any], table: str = "written") -> list[str]:
    return [shard["name"] for shard in record["shards"] if shard["table"] == table]


def _count(record: Mapping[str, Any]) -> int:
    return sum(shard["rows"] for shard in record["shards"] if shard["table"] == "written")


def _rows(
    context: Context, records: Iterable[Mapping[str, Any]], table: str
) -> Iterable[Mapping[str, Any]]:
    for record in records:
        for name in _shards(record, table):
            yield from open_shard(context.folder, name).select(JUDGED.names).to_pylist()
