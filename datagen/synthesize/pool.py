"""A pool of LLMs over blocks of requests: together where the cluster has room, else in turns.

Every LLM has a quota of rows per kind, and asks in rounds until that many are kept: first for as
many as it owes, then for what is missing at the yield that was measured. Its replicas are Ray
actors, each fed with blocks so that its engine never drains; Ray keeps those that the cluster has
no room for waiting until an LLM that is done has freed its own, so each LLM is loaded once. An LLM
with a range of replicas takes what room nobody waits for, and gives it back when its queue is
empty. Blocks are read and committed in processes of their own, at most one a CPU. A replica that
dies gives its blocks back, and what it had stored is not asked for again; an LLM whose replicas
keep dying fails alone, and the others finish first.
"""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

from datagen.schema import UserError
from datagen.steps import Committer, Progress, start_ray
from datagen.synthesize.call import Drawn
from datagen.synthesize.fits import check_fits
from datagen.synthesize.llm import LLM
from datagen.synthesize.replica import Block, Replica

log = logging.getLogger("embedmix")
BLOCK_REQUESTS = 32
ROUNDS = 8
SPARE = 1.05  # asked for beyond what the measured yield demands
LEAST_YIELD = 0.02  # below it an LLM is not worth asking again
READER_BLOCKS = 4  # that wait for each reader before there is another: it takes seconds to start
DEATHS = 3  # of an LLM's replicas, that are made good
PER_LLM, PER_KIND = 10**11, 10**9  # room for the numbers of requests of each


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What one LLM owes of one kind: `draw` gives its requests, fewer where there are no more."""

    kind: str
    rows: int
    draw: Callable[[range], Sequence[Drawn]]
    more: Mapping[str, Any] = field(default_factory=dict)  # what the kind needs in a block


class Member:
    """One LLM of the pool, its quotas, and what is left to ask it."""

    def __init__(
        self,
        llm: LLM,
        number: int,
        quotas: Sequence[Quota],
        *,
        block_requests: int = BLOCK_REQUESTS,
    ):
        self.llm, self.number, self.quotas = llm, number, quotas
        self.block_requests = block_requests
        self.todo: deque[tuple[int, Block]] = deque()
        self.records: dict[int, Mapping[str, Any]] = {}
        self.open, self.deaths, self.rounds = 0, 0, 0
        self.sums: dict[str, float] = defaultdict(float)
        self.failed = ""
        self._given = [0] * len(quotas)  # requests of each quota, given out so far
        self._asked = [0] * len(quotas)
        self._kept = [0] * len(quotas)

    def next_round(self, committed: Mapping[int, Mapping[str, Any]]) -> bool:
        """Give out the blocks of a further round; False when quotas are met or cannot be."""
        while self.rounds < ROUNDS and not self.todo and not self.failed:
            self.rounds += 1
            blocks = [block for i in range(len(self.quotas)) for block in self._more(i)]
            if not blocks:
                return False
            for index, block in blocks:
                if index in committed:
                    self.settle(committed[index])
                else:
                    self.todo.append((index, block))
        return bool(self.todo)

    def _more(self, number: int) -> Iterable[tuple[int, Block]]:
        """Blocks for what is wanted of a quota, cut where every `block_requests` requests end."""
        quota, size = self.quotas[number], self.block_requests
        first = self._given[number]
        stop = first + self._wanted(number)
        for at in [first, *range((first // size + 1) * size, stop, size)] if stop > first else []:
            drawn = quota.draw(range(at, min((at // size + 1) * size, stop)))
            if not drawn:
                return
            self._given[number] = at + len(drawn)
            place = f"{self.llm.slug}/{quota.kind}/{at // size:06d}"
            block = {"llm": self.llm.slug, "kind": quota.kind, "place": place}
            index = self.number * PER_LLM + number * PER_KIND + at
            yield index, {**quota.more, **block, "requests": [*drawn]}

    def _wanted(self, number: int) -> int:
        """Requests that will give what is missing; none when next to nothing was kept of many."""
        asked, kept = self._asked[number], self._kept[number]
        missing = self.quotas[number].rows - kept
        if missing <= 0 or not asked:
            return max(missing, 0)
        share = (kept + 1) / (asked + 2)  # of a few requests that all failed, some would not have
        return ceil(missing * SPARE / share) if share > LEAST_YIELD else 0

    def settle(self, record: Mapping[str, Any]) -> None:
        """Take the record of a block that was read and committed."""
        number = quota_of(record["index"])
        self.records[record["index"]] = record
        for row in record["ledger"]:
            self._asked[number] += row["rows_in"]
            self._kept[number] += row["kept"]

    def sample(self, requests: int) -> None:
        """Ask so many requests of each kind and no more, whatever is kept of them."""
        self.quotas = [replace(quota, rows=min(quota.rows, requests)) for quota in self.quotas]
        self.rounds = ROUNDS - 1

    def lost(self, kept: Mapping[int, int]) -> bool:
        """Take how many rows of each quota are left after a selection; whether it has to ask on."""
        self._kept = [kept.get(number, 0) for number in range(len(self.quotas))]
        self.rounds = min(self.rounds, ROUNDS - 1)  # one more at least
        return bool(self.missing())

    def add(self, sums: Mapping[str, float]) -> None:
        """Count what a replica did."""
        for key, value in sums.items():
            self.sums[key] += value

    def missing(self) -> dict[str, int]:
        """Rows that it still owes, by kind."""
        owed = {q.kind: q.rows - kept for q, kept in zip(self.quotas, self._kept, strict=True)}
        return {kind: rows for kind, rows in owed.items() if rows > 0}

    @property
    def blocks_in_flight(self) -> int:
        """Blocks that keep one replica's engine full while another block ends."""
        capacity = self.llm.max_concurrency if self.llm.endpoint else self.llm.max_num_seqs
        return 1 + ceil(2 * capacity / self.block_requests)


def quota_of(index: int) -> int:
    """The number of the quota that a block belongs to."""
    return index % PER_LLM // PER_KIND


def ask_pool(
    members: Sequence[Member],
    committer: Committer,
    committed: Mapping[int, Mapping[str, Any]],
    *,
    replica: Mapping[str, Any],
    executor: Literal["ray", "local"],
    name: str,
) -> None:
    """Let every member answer until its quotas are met; `replica` are arguments of Replica."""
    waiting = [member for member in members if member.next_round(committed)]
    _check(waiting, cache=replica["cache"], executor=executor)
    total = sum(len(member.todo) for member in waiting)
    done = sum(len(member.records) for member in members)
    progress = Progress(name, total=total + done, done=done)
    if executor == "local":
        for member in waiting:
            asyncio.run(_answer_here(member, committer, committed, replica, progress))
    elif waiting:
        _RayPool(committer, committed, replica, progress).run(waiting)
    progress.close()
    for member in members:
        for kind, rows in member.missing().items():
            log.warning("%s: %s owes %d more rows of %s", name, member.llm.name, rows, kind)
    failed = [member for member in members if member.failed]
    if failed:
        raise UserError(
            found="; ".join(f"{member.llm.name}: {member.failed}" for member in failed),
            expected=f"replicas that die at most {DEATHS} times",
            do="see the logs of its actors, mend what ended them, and run the same command again: "
            "nothing that was answered is asked for again",
        )


def _check(members: Sequence[Member], *, cache: str, executor: Literal["ray", "local"]) -> None:
    nodes: Sequence[Any] = ()
    if members and executor == "ray":
        import ray

        start_ray()
        nodes = ray.nodes()
    check_fits([member.llm for member in members], cache=cache, executor=executor, nodes=nodes)


async def _answer_here(
    member: Member,
    committer: Committer,
    committed: Mapping[int, Mapping[str, Any]],
    replica: Mapping[str, Any],
    progress: Progress,
) -> None:
    """One LLM in this process."""
    asked = Replica(member.llm, **replica)
    member.add({"loading_seconds": asked.loading_s, "replicas": 1})

    async def one(index: int, block: Block) -> Mapping[str, Any]:
        member.add(await asked.answer(block))
        return await asyncio.to_thread(committer, index, dict(block))

    tasks: set[asyncio.Task] = set()
    while member.todo or tasks:
        while member.todo and len(tasks) < member.blocks_in_flight:
            tasks.add(asyncio.create_task(one(*member.todo.popleft())))
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            member.settle(task.result())
            progress.advance(task.result())
        if not member.todo and not tasks and member.next_round(committed):
            progress.total += len(member.todo)
    await asked.close()


@dataclass(kw_only=True)
class _Job:
    """Something that Ray is doing for a member: a replica's start, a block's answers or rows."""

    member: Member
    step: str  # start, answer or read
    actor: Any = None
    index: int = 0
    block: Block = field(default_factory=dict)


class _RayPool:
    """The driver's side: what is in flight where, and what comes next."""

    def __init__(
        self,
        committer: Committer,
        committed: Mapping[int, Mapping[str, Any]],
        replica: Mapping[str, Any],
        progress: Progress,
    ):
        import ray

        start_ray()
        self.ray, self.replica = ray, replica
        self.committed, self.progress = committed, progress
        self.committer = ray.put(committer)
        self.jobs: dict[Any, _Job] = {}
        self.actors: dict[Any, Member] = {}  # those that have started, and whose they are
        # Without a CPU of their own, for LLMs may hold them all. As tasks they would be as many
        # processes as blocks wait.
        options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 3}
        options["scheduling_strategy"] = "SPREAD"
        self.reader: Any = ray.remote(num_cpus=0, **options)(_Reader)
        self.readers: list[Any] = []
        self.most_readers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, members: Sequence[Member]) -> None:
        try:
            for member in members:
                for _ in range(min(member.llm.replica_range[0], len(member.todo))):
                    self._start(member)
            while self.jobs:
                (ref,), _ = self.ray.wait([*self.jobs], num_returns=1)
                self._finish(self.jobs.pop(ref), ref)
        finally:
            for actor in [*self.actors, *self.readers]:
                self.ray.kill(actor)

    def _start(self, member: Member) -> None:
        llm = member.llm
        options: dict[str, Any] = {"num_cpus": llm.num_cpus, "num_gpus": llm.num_gpus}
        if not llm.endpoint:  # a process of its own takes seconds to start
            options["runtime_env"] = {"env_vars": llm.environment()}
        remote: Any = self.ray.remote(Replica)
        remote = remote.options(max_restarts=0, max_concurrency=1000, **options)
        actor = remote.remote(llm, **self.replica)
        self.jobs[actor.started.remote()] = _Job(member=member, step="start", actor=actor)

    def _finish(self, job: _Job, ref: Any) -> None:
        try:
            result = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self._lost(job, error)
        else:
            {"start": self._started, "answer": self._answered, "read": self._was_read}[job.step](
                job, result
            )
        self._settle(job.member)

    def _started(self, job: _Job, result: Mapping[str, float]) -> None:
        self.actors[job.actor] = job.member
        job.member.add({"loading_seconds": result["loading_seconds"], "replicas": 1})

    def _answered(self, job: _Job, result: Mapping[str, float]) -> None:
        job.member.add(result)
        reader = self._least_busy()
        ref = reader.read.remote(self.committer, job.index, dict(job.block))
        self.jobs[ref] = _Job(member=job.member, step="read", actor=reader, index=job.index)

    def _least_busy(self) -> Any:
        """The reader with the fewest blocks; a new one where all have several."""
        busy = Counter(job.actor for job in self.jobs.values() if job.step == "read")
        fewest = min(self.readers, key=lambda reader: busy[reader], default=None)
        full = len(self.readers) >= self.most_readers
        if fewest is None or (busy[fewest] >= READER_BLOCKS and not full):
            fewest = self.reader.remote()
            self.readers.append(fewest)
        return fewest

    def _was_read(self, job: _Job, record: Mapping[str, Any]) -> None:
        if "user_error" in record:
            raise UserError(**record["user_error"])
        job.member.settle(record)
        job.member.open -= 1
        self.progress.advance(record)

    def _lost(self, job: _Job, error: Exception) -> None:
        """Blocks of a dead replica go back; a new one takes its place, up to DEATHS times."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        if job.step == "read":
            raise error
        member = job.member
        if job.step == "answer":
            member.todo.appendleft((job.index, job.block))
            member.open -= 1
        if job.step == "answer" and job.actor not in self.actors:
            return  # its other blocks have said so
        self.actors.pop(job.actor, None)
        self.ray.kill(job.actor)
        member.deaths += 2 if job.step == "start" else 1  # that seldom goes better again
        log.warning("a replica of %s died: %s", member.llm.name, str(error).splitlines()[-1])
        if member.deaths <= DEATHS:
            self._start(member)
        elif member not in self.actors.values():
            member.failed = f"{member.deaths} replicas died, the last by {error}"
            member.todo.clear()

    def _settle(self, member: Member) -> None:
        """Feed the member's replicas; let them go when there is nothing left to ask."""
        if not member.todo and not member.open and member.next_round(self.committed):
            self.progress.total += len(member.todo)
        mine = [actor for actor, owner in self.actors.items() if owner is member]
        for actor in mine:
            flying = self._flying(actor)
            while member.todo and flying < member.blocks_in_flight:
                index, block = member.todo.popleft()
                job = _Job(member=member, step="answer", actor=actor, index=index, block=block)
                self.jobs[actor.answer.remote(block)] = job
                member.open, flying = member.open + 1, flying + 1
        if not member.todo and not member.open:
            self._let_go(member, mine)
        elif len(member.todo) >= member.blocks_in_flight:  # a replica's worth of work waits
            self._grow(member, len(mine))
        elif not member.todo:
            self._shrink(member, mine)

    def _flying(self, actor: Any) -> int:
        return sum(job.actor is actor for job in self.jobs.values())

    def _grow(self, member: Member, there: int) -> None:
        """A further replica where there is room that no LLM waits for."""
        full = there >= member.llm.replica_range[1] or member.deaths > DEATHS
        if full or self._starting():
            return
        free, llm = self.ray.available_resources(), member.llm
        if free.get("CPU", 0) >= llm.num_cpus and free.get("GPU", 0) >= llm.num_gpus:
            self._start(member)

    def _shrink(self, member: Member, actors: Sequence[Any]) -> None:
        """Let replicas go that have nothing to do while others of the LLM finish."""
        idle = [actor for actor in actors if not self._flying(actor)]
        fewest = member.llm.replica_range[0]
        for actor in idle[: max(0, len(actors) - fewest)]:
            self.ray.kill(actor)
            del self.actors[actor]
        if len(actors) >= fewest:
            self._let_go(member, [])

    def _starting(self) -> bool:
        return any(job.step == "start" for job in self.jobs.values())

    def _let_go(self, member: Member, actors: Sequence[Any]) -> None:
        """End the member's replicas, and those that have still been waiting for room."""
        waiting = [
            ref for ref, job in self.jobs.items() if job.member is member and job.step == "start"
        ]
        for actor in [*actors, *(self.jobs.pop(ref).actor for ref in waiting)]:
            self.ray.kill(actor)
            self.actors.pop(actor, None)


class _Reader:
    """Reads and commits answered blocks, one after the other."""

    def read(self, committer: Committer, index: int, block: dict[str, Any]) -> dict[str, Any]:
        try:
            return committer(index, block)
        except UserError as error:
            return {"user_error": error.fields()}
