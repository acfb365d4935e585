"""An LLM judges a sample of mined negatives: how many of them answer their query after all?

The sample is of single negatives, each as likely as any other, drawn by a hash of the seed, the
query's id and the place among its negatives: more mined queries or a larger sample keep what was
drawn, and only what is new is asked. Some known positives are judged beside them, unmarked: the
share of them that the judge finds is how far its word can be trusted. (SmolLM2-135M says yes to 4
in 100 negatives of SQuAD questions and to 5 in 100 positives: its word is worth nothing.) Verdicts
and their reasons are the table `judged_negatives`; the estimate has the interval of datagen.rerank,
Wilson's with the number of negatives that are independent of each other. Cost: one answer of about
40 tokens a negative.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.minhash import mix
from datagen.rerank import estimate
from datagen.schema import UserError
from datagen.steps import Context, Step
from datagen.store import open_shard
from datagen.synthesize.judge import JudgeMember
from datagen.synthesize.kinds import check_prompts
from datagen.synthesize.kinds.negative import SAMPLED, SHOWN_CHARACTERS, VERDICTS, NegativeKind
from datagen.synthesize.llm import LLM, from_model, refuse_bad_pool
from datagen.synthesize.seeds import number

SAMPLE = 500  # negatives
CONTROLS = 4  # negatives for each known positive that is judged, too
JUDGE_MODEL_LEN = 2048
TABLES = ("judged_negatives", "not_judged_negatives", "asked_negatives")
_PLACES = 32  # folders of responses, by hash: those of a smaller sample are found again
_EXAMPLES = 60  # turns, after which examples come in the same order again
_GOLDEN = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativeJudge:
    """Which LLM is asked about how many negatives; `cache` has packaged models."""

    llm: LLM
    cache: str
    sample: int = SAMPLE
    seed: int = 0
    own_prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    responses: str | None = None  # where they are kept; None: beside the folder of steps

    def config(self) -> dict[str, Any]:
        """What decides the verdicts, as JSON; UserError for a judge that cannot be asked."""
        refuse_bad_pool((self.llm,))
        if self.sample < 1:
            raise UserError(
                found=f"a sample of {self.sample} negatives to judge",
                expected="1 or more",
                do="mend the size of the sample",
                exit_status=2,
            )
        (prompt,) = check_prompts([NegativeKind.name], self.own_prompts)
        numbers = {"sample": self.sample, "seed": self.seed}
        return {"llm": self.llm.config(), "prompt": prompt.id, **numbers}


def judge_llm(model: str, *, key_variable: str = "") -> LLM:
    """A model of the command line as a judge: always its likeliest words, and room for examples."""
    llm = from_model(model, key_variable=key_variable)
    sampling: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "presence_penalty": 0.0}
    return dataclasses.replace(llm, max_model_len=JUDGE_MODEL_LEN, **sampling)


def judge_negatives(
    mined: Step, deduped: Step, judge: NegativeJudge, *, name: str = "judge_negatives"
) -> Step:
    """Verdicts on a sample of what `mined` found for `deduped`: the table `judged_negatives`.

    A step of its own: another judge or sample searches nothing again. In a report, name it among
    the steps.
    """
    return Step(
        name=name,
        version=1,
        config=judge.config(),
        inputs={"mined": mined, "deduped": deduped},
        work=partial(_work, judge=judge),
        summary="let an LLM judge a sample of the negatives",
    )


def _work(context: Context, *, judge: NegativeJudge) -> None:
    from datagen.synthesize.pool import BLOCK_REQUESTS
    from datagen.synthesize.step import ask

    names = context.input_shards("mined", "mined")
    drawn = draw_negatives((open_shard(context.inputs["mined"], name) for name in names), judge)
    rows = _with_texts(context, drawn, judge.llm)
    context.write("sampled_negatives", rows, SAMPLED, rows_per_shard=4096)
    blocks = _blocks(context, judge, rows, [shard.name for shard in context.shards])
    member = JudgeMember(judge.llm, blocks, block_requests=BLOCK_REQUESTS)
    ask(
        context,
        [member],
        kinds={NegativeKind.name: NegativeKind},
        schema=VERDICTS,
        cache=judge.cache,
        tables=TABLES,
        responses=judge.responses,
    )
    context.collect(member.records[index] for index in sorted(member.records))
    verdicts = [
        open_shard(context.folder, shard.name)
        for shard in context.shards
        if shard.table == TABLES[0]
    ]
    table = pa.concat_tables([VERDICTS.empty_table(), *verdicts])
    context.facts["judged_negatives"] = judged_facts(table, rows, judge.llm.name)


def draw_negatives(mined: Iterable[pa.Table], judge: NegativeJudge) -> list[dict[str, Any]]:
    """{query_id, doc_id, side}: the negatives with the lowest hashes of all, then of the first of
    their queries one positive each."""
    best: list[tuple[int, str, str, str]] = []
    for table in mined:
        counts = pc.fill_null(pc.list_value_length(table["negatives"]), 0).to_numpy()
        ids = table["query_id"].to_pylist()
        seeds = np.array([number(f"{judge.seed}/negative/{key}") for key in ids], np.uint64)
        query = np.repeat(np.arange(len(ids)), counts)
        place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = mix(seeds[query] + place.astype(np.uint64) * np.uint64(_GOLDEN))
        lowest = np.argsort(keys, kind="stable")[: judge.sample]
        negatives = table["negatives"].combine_chunks().flatten().take(pa.array(lowest))
        positives = table["positives"].take(pa.array(query[lowest])).to_pylist()
        found = zip(lowest, negatives.to_pylist(), positives, strict=True)
        best += [(int(keys[i]), ids[query[i]], doc, known[0]) for i, doc, known in found]
        best = sorted(best)[: judge.sample]
    controls = {query: known for _, query, _, known in best[: -(-len(best) // CONTROLS)]}
    rows = [{"query_id": q, "doc_id": doc, "side": "negative"} for _, q, doc, _ in best]
    return rows + [
        {"query_id": q, "doc_id": doc, "side": "positive"} for q, doc in controls.items()
    ]


def _with_texts(context: Context, drawn: Sequence[Mapping[str, Any]], llm: LLM) -> pa.Table:
    queries = _found(context, "queries", "query_id", {row["query_id"] for row in drawn})
    documents = _found(context, "documents", "doc_id", {row["doc_id"] for row in drawn})
    rows = []
    for row in drawn:
        query, document = queries[row["query_id"]], documents[row["doc_id"]]
        about = {name: query[name] for name in ("source", "language", "instruction", "query")}
        shown = {"title": document["title"], "text": document["text"][:SHOWN_CHARACTERS]}
        request = f"{llm.slug}/negative/{row['side']}/{row['query_id']}/{row['doc_id']}"
        rows.append({"request": request, **row, **about, **shown})
    return pa.Table.from_pylist(rows, schema=SAMPLED)


def _found(context: Context, table: str, key: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    ids, found = pa.array(sorted(wanted), pa.string()), {}
    for name in context.input_shards("deduped", table):
        shard = open_shard(context.inputs["deduped"], name)
        rows = shard.filter(pc.is_in(shard[key], ids)).to_pylist()
        found.update({row[key]: row for row in rows})
    return found


def _blocks(
    context: Context, judge: NegativeJudge, rows: pa.Table, shards: Sequence[str]
) -> dict[int, dict[str, Any]]:
    """Requests by the hash of their ids, so that a place holds the same ones of any sample."""
    asked: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.select(["request", "language"]).to_pylist():
        mark = number(row["request"])
        asked[mark % _PLACES].append({**row, "turn": mark // _PLACES % _EXAMPLES})
    slug = judge.llm.slug
    files: dict[str, Any] = {"folder": context.folder.uri, "shards": list(shards)}
    files["prompts"] = dict(judge.own_prompts)
    return {
        index: {
            "llm": slug,
            "kind": NegativeKind.name,
            "place": f"{slug}/negative/{place:06d}",
            "requests": asked[place],
            **files,
        }
        for index, place in enumerate(sorted(asked))
    }


def judged_facts(verdicts: pa.Table, sampled: pa.Table, llm: str) -> dict[str, Any]:
    """The estimate, what was asked and answered, and how the judge saw known positives."""
    rows = verdicts.to_pylist()
    false: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in rows:
        if row["side"] == "negative":
            total[row["query_id"]] += 1
            false[row["query_id"]] += row["answers"]
    known = [row["answers"] for row in rows if row["side"] == "positive"]
    scores = Counter(str(row["score"]) for row in rows if row["side"] == "negative")
    result = estimate([false[query] for query in total], [total[query] for query in total])
    return {
        "llm": llm,
        "asked": sampled.num_rows,
        "judged": len(rows),
        **{name: result[name] for name in ("queries", "negatives")},
        "false_negatives": sum(false.values()),
        **{name: result[name] for name in ("rate", "low", "high")},
        "positives": len(known),
        "positives_found": sum(known),
        "scores": dict(sorted(scores.items())),
    }
