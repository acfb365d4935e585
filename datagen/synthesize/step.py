"""The step `synthesize`: a pool of LLMs writes pairs of several kinds, as many as a recipe wants.

Rows are quotas of rows that stay, shared out among the LLMs by their `share`. Every kind of request
has rules of its own for its answers (`kinds`); rows that pass them are then taken in the order of
LLM, kind and request, and must be in the language asked for, resemble no public text and no earlier
row, and fit the quota; on request an encoder must find the document again, and another LLM must
like the row (`checks`). What that takes away is asked for again. Letting tasks and texts for them
come from different LLMs is the cross-model generation of llama-embed-nemotron-8b (arXiv 2511.07025,
section 4.3).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from datagen.clusters import read_frame
from datagen.schema import PAIR, QUARANTINE, UserError
from datagen.steps import Context, Step
from datagen.store import read_manifest, read_table
from datagen.synthesize.call import MakeKind
from datagen.synthesize.checks import Checks
from datagen.synthesize.draw import SEEDED, Knobs, given_tasks, requests
from datagen.synthesize.judge import Judge, JudgeMember
from datagen.synthesize.kinds import KINDS, check_prompts
from datagen.synthesize.kinds.judge import JUDGED, JudgeKind
from datagen.synthesize.llm import LLM, refuse_bad_pool
from datagen.synthesize.places import (
    MINIMUM_DOCUMENT_CHARACTERS,
    document_places,
    query_places,
)
from datagen.synthesize.plan import SAMPLE, judge_plan, plan_table
from datagen.synthesize.pool import BLOCK_REQUESTS, Member, Quota, ask_pool
from datagen.synthesize.preflight import check_lengths
from datagen.synthesize.replica import ASKED, TABLES, Reader
from datagen.synthesize.round_trip import RoundTrip
from datagen.synthesize.select import Rule
from datagen.synthesize.selection import asked_with, choose, public_pool, put_together
from datagen.synthesize.written_language import language_rule

SELECTIONS = 3  # times that rows are selected, and what is missing asked for again
SEEDS_PER_ROW = 8  # that are sought at once; then they are taken again, with other knobs
JUDGE_TABLES = ("judged", "not_judged", "judge_asked")
TASK_KINDS = ("scratch", "classification", "clustering")


def synthesize(
    documents: Step,
    *,
    tasks: Step | None,
    llms: Sequence[LLM],
    cache: str,
    rows: Mapping[str, int],
    knobs: Knobs | None = None,
    grounded: bool = True,
    round_trip: RoundTrip | None = None,
    judge: Judge | None = None,
    own_prompts: Mapping[str, str] | None = None,
    minimum_document_characters: int = MINIMUM_DOCUMENT_CHARACTERS,
    seed: int = 0,
    block_requests: int = BLOCK_REQUESTS,
    rows_per_shard: int = 65_536,
    name: str = "synthesize",
) -> Step:
    """Table `pairs` of synthetic pairs, and `rejected` with the rule that an answer broke.

    `rows` are the rows that are to stay, by kind. Every row names its LLM, licence, prompts, seed
    document and sampling. With two LLMs or more, tasks of an LLM are only given to the others.
    `grounded` rejects queries that have no content word in common with their document: right for
    small LLMs, needless for large ones. `own_prompts` puts a file in the place of a prompt.
    `round_trip` and `judge` look at rows when the rounds of all LLMs are over, since neither an
    encoder nor a judge fits beside the writers: what they reject is asked for again at the next of
    SELECTIONS selections, and what is missing after the last is counted as `missing`.
    """
    pool, knobs = tuple(llms), knobs or Knobs()
    refuse_bad_pool(pool)
    _refuse_bad_kinds(rows, tasks)
    prompts = check_prompts([*rows, *([JudgeKind.name] if judge else [])], own_prompts)
    checks: dict[str, Any] = {}
    if round_trip:
        checks["round_trip"] = round_trip.config()
    if judge:
        judge.of(pool)
        checks["judge"] = dataclasses.asdict(judge)
    config = {
        "llms": [llm.config() for llm in pool],
        "rows": dict(sorted(rows.items())),
        "knobs": dataclasses.asdict(knobs),
        "tasks_of": "the other LLMs" if len(pool) > 1 else "the same LLM",
        "grounded": grounded,
        "minimum_document_characters": minimum_document_characters,
        "seed": seed,
        "block_requests": block_requests,
        "rows_per_shard": rows_per_shard,
        "prompts": [prompt.id for prompt in prompts],
        **checks,
    }
    inputs = {"documents": documents} | ({"tasks": tasks} if tasks else {})
    work = _Work(
        llms=pool,
        cache=os.path.abspath(cache),
        knobs=knobs,
        own_prompts=dict(own_prompts or {}),
        round_trip=round_trip,
        judge=judge,
    )
    return Step(
        name=name,
        version=4,
        config=config,
        inputs=inputs,
        work=work,
        summary="let the LLMs write pairs, each kind to its quota",
    )


def plan_of(step: Step, *, sample: int = SAMPLE) -> Step:
    """A step that asks a sample of what `step`, made by `synthesize`, would ask; its manifest's
    stats have the `plan` (plan.COLUMNS)."""
    work = step.work
    assert isinstance(work, _Work)
    return dataclasses.replace(
        step,
        name=f"plan_{step.name}",
        config={**step.config, "sample": sample},
        work=lambda context: work.plan(context, sample),
        summary="ask a sample, to say what the whole takes",
    )


def _refuse_bad_kinds(rows: Mapping[str, int], tasks: Step | None) -> None:
    unknown = sorted(set(rows) - set(KINDS))
    without = sorted(set(rows) & set(TASK_KINDS)) if tasks is None else []
    if unknown or without or not rows or min(rows.values()) < 1:
        raise UserError(
            found="rows of "
            + (", ".join(f"{kind} {n}" for kind, n in rows.items()) or "no kind")
            + (f"; without tasks: {', '.join(without)}" if without else ""),
            expected="one row or more of kinds out of "
            + ", ".join(KINDS)
            + "; a step of tasks for "
            + ", ".join(TASK_KINDS),
            do="mend `rows`, or add a step of write_tasks",
            exit_status=2,
        )


def shared_out(rows: int, llms: Sequence[LLM]) -> list[int]:
    """The rows of each LLM by its share: whole numbers that add up."""
    total = sum(llm.share for llm in llms)
    bounds, before = [], 0.0
    for llm in llms:
        before += llm.share / total if total else 1 / len(llms)
        bounds.append(round(rows * before))
    return [stop - start for start, stop in zip([0, *bounds], bounds, strict=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    llms: tuple[LLM, ...]
    cache: str
    knobs: Knobs
    own_prompts: Mapping[str, str]
    round_trip: RoundTrip | None = None
    judge: Judge | None = None

    def __call__(self, context: Context) -> None:
        members, checks = self._members(context), self._checks(context)
        public = public_pool(context)
        for turn in range(SELECTIONS):
            self._ask(context, members)
            checks.look(members, turn=turn)
            chosen = choose(context, members, public=public, faults=checks.faults)
            if not [member for member in members if member.lost(chosen.kept[member.number])]:
                break
        put_together(context, members, chosen, rows_per_shard=context.config["rows_per_shard"])
        context.facts |= checks.facts(members)

    def _checks(self, context: Context) -> Checks:
        def ask_judge(member: JudgeMember) -> None:
            kinds = {JudgeKind.name: JudgeKind}
            cache, tables = self.cache, JUDGE_TABLES
            ask(context, [member], kinds=kinds, schema=JUDGED, cache=cache, tables=tables)

        return Checks(
            context=context,
            round_trip=self.round_trip,
            judge=self.judge,
            llms=self.llms,
            ask_judge=ask_judge,
            prompts=self.own_prompts,
        )

    def plan(self, context: Context, sample: int) -> None:
        """Ask `sample` requests of each LLM and kind, and say in `facts` what the whole takes."""
        members = self._members(context)
        rows = {(m.llm.name, quota.kind): quota.rows for m in members for quota in m.quotas}
        for member in members:
            member.sample(sample)
        self._ask(context, members)
        for member in members:
            context.collect(member.records[index] for index in sorted(member.records))
        checks = self._checks(context)
        checks.look(members, turn=0)
        rates = {m.llm.name: m.sums["output_tokens"] / (m.sums["seconds"] or 1) for m in members}
        context.facts["calls"] = {m.llm.name: dict(sorted(m.sums.items())) for m in members}
        frame = asked_with(context, checks.faults)
        table = plan_table(frame, llms=self.llms, rows=rows, rates=rates)
        if self.judge:
            graded = read_frame(context, JUDGE_TABLES[2], ASKED)
            judge, rate = self.judge.of(self.llms), checks.judge_rate
            table += judge_plan(table, frame, graded, judge=judge, rate=rate)
        context.facts["plan"] = table
        context.facts |= checks.facts(members)

    def _ask(self, context: Context, members: Sequence[Member]) -> None:
        rules = (language_rule(),)
        ask(context, members, kinds=KINDS, schema=PAIR, cache=self.cache, rules=rules)

    def _members(self, context: Context) -> list[Member]:
        config = context.config
        owed = {kind: shared_out(rows, self.llms) for kind, rows in config["rows"].items()}
        seeds = {kind: self._seeds(context, kind, counts) for kind, counts in owed.items()}
        return [
            Member(
                llm,
                number,
                [
                    self._quota(context, llm, kind, counts[number], seeds[kind][number])
                    for kind, counts in owed.items()
                    if counts[number]
                ],
                block_requests=config["block_requests"],
            )
            for number, llm in enumerate(self.llms)
        ]

    def _quota(
        self, context: Context, llm: LLM, kind: str, rows: int, seeds: Sequence[Mapping[str, Any]]
    ) -> Quota:
        if kind in SEEDED and not seeds:
            raise UserError(
                found=f"nothing to write {kind} about for {llm.name}",
                expected="documents, queries or tasks in its languages, "
                + ", ".join(llm.languages),
                do="give the LLM other languages, raise the number of tasks, or leave out the kind",
            )
        uri = context.inputs["documents"].uri
        more = {"folder": uri, "queries": uri, "grounded": context.config["grounded"]}

        def draw(indices: range) -> list[dict[str, Any]]:
            return requests(
                kind, llm, indices, seed=context.config["seed"], knobs=self.knobs, seeds=seeds
            )

        return Quota(kind=kind, rows=rows, draw=draw, more={**more, "prompts": self.own_prompts})

    def _seeds(
        self, context: Context, kind: str, counts: Sequence[int]
    ) -> Sequence[Sequence[Mapping[str, Any]]]:
        """What each LLM writes about, in an order of its own."""
        folder, seed = context.inputs["documents"], context.config["seed"]
        sought = [SEEDS_PER_ROW * count for count in counts]
        documents = context.input_shards("documents", "documents")
        if kind in TASK_KINDS:
            tasks = _tasks(context)
            alone = sum(llm.share > 0 for llm in self.llms) == 1
            return [given_tasks(llm, tasks, kind=kind, alone=alone) for llm in self.llms]
        if kind == "translation":
            queries = context.input_shards("documents", "queries")
            return query_places(folder, queries, documents, self.llms, counts=sought, seed=seed)
        if kind in SEEDED:
            return document_places(
                folder,
                documents,
                self.llms,
                counts=sought,
                seed=seed,
                minimum_characters=context.config["minimum_document_characters"],
                only_code=kind == "code_translation",
            )
        return [() for _ in self.llms]


def ask(
    context: Context,
    members: Sequence[Member],
    *,
    kinds: Mapping[str, MakeKind],
    schema: pa.Schema,
    cache: str,
    rules: Sequence[Rule] = (),
    tables: tuple[str, str, str] = TABLES,
    responses: str | None = None,
) -> None:
    """Let the members answer until their quotas are met; their rows, in `schema`, are committed as
    `tables`: rows, rejected rows, and one record a request. `responses` are kept beside the steps
    unless another folder is given."""
    responses = responses or responses_of(context)
    llms = [member.llm for member in members]
    reader = Reader(llms, kinds=kinds, folder=responses, schema=schema, rules=rules, tables=tables)
    schemas = dict(zip(tables, (schema, QUARANTINE, ASKED), strict=True))
    phase = tables[0]
    committed = context.committed(phase)
    if not committed:
        check_lengths(members, kinds=kinds, cache=cache)
    ask_pool(
        members,
        context.committer(reader, schemas=schemas, phase=phase),
        committed,
        replica={"cache": cache, "kinds": kinds, "folder": responses},
        executor=context.executor,
        name=context.name,
    )


def responses_of(context: Context) -> str:
    """Where responses are kept: beside the steps, so that they outlive a step that is deleted."""
    root = context.folder.uri.rstrip("/").removesuffix(f"/steps/{context.name}")
    return f"{root}/responses"


def _tasks(context: Context) -> list[dict[str, Any]]:
    if "tasks" not in context.inputs or not read_manifest(context.inputs["tasks"]).table("tasks"):
        return []
    return read_table(context.inputs["tasks"], "tasks").to_pylist()
