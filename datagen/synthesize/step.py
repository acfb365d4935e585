"""Synthesis: every LLM of the pool writes queries for public documents and texts for others' tasks.

The LLMs take turns: each is loaded once, answers its units, and makes room. A unit's rows are
committed when it ends, so a killed build loses the units in flight and pays for nothing twice.
Which LLM is asked what is drawn by seeded hashes (`draw`) and is the same on any cluster; only the
words are the LLM's. Equal texts of different requests are left to dedup, which comes next.

Queries from documents follow Qwen3-Embedding (arXiv 2506.05176, appendix A); classification in two
calls by two LLMs is the cross-model generation of llama-embed-nemotron-8b (arXiv 2511.07025, 4.3).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from datagen.schema import PAIR, UserError
from datagen.steps import Context, Step
from datagen.store import read_manifest, read_table
from datagen.synthesize.draw import (
    MINIMUM_DOCUMENT_CHARACTERS,
    retrieval_requests,
    sample_requests,
    seed_documents,
)
from datagen.synthesize.kinds import RetrievalKind, SampleKind
from datagen.synthesize.llm import LLM, refuse_bad_pool
from datagen.synthesize.prompts import load_prompt
from datagen.synthesize.writer import UNIT_REQUESTS, MakeKind, run_pool, units_of

KINDS: dict[str, MakeKind] = {"retrieval": RetrievalKind, "classification": SampleKind}


def synthesize(
    documents: Step,
    *,
    tasks: Step | None,
    llms: Sequence[LLM],
    cache: str,
    retrieval_per_llm: int = 192,
    classification_per_llm: int = 160,
    grounded: bool = True,
    minimum_document_characters: int = MINIMUM_DOCUMENT_CHARACTERS,
    seed: int = 0,
    unit_requests: int = UNIT_REQUESTS,
    name: str = "synthesize",
) -> Step:
    """Table `pairs` of synthetic pairs, and `rejected` with the rule that an answer broke.

    Every row names its LLM, licence, prompt file, seed document and sampling. With two LLMs or
    more, tasks of an LLM are only given to the others. `grounded` rejects queries that have no
    content word in common with their document: right for small LLMs, needless for large ones.
    """
    pool = tuple(llms)
    refuse_bad_pool(pool)
    config = {
        "llms": [llm.config() for llm in pool],
        "retrieval_per_llm": retrieval_per_llm,
        "classification_per_llm": classification_per_llm if tasks else 0,
        "tasks_of": "the other LLMs" if len(pool) > 1 else "the same LLM",
        "grounded": grounded,
        "minimum_document_characters": minimum_document_characters,
        "seed": seed,
        "unit_requests": unit_requests,
        "prompts": [load_prompt(name).id for name in ("doc2query", "code2query", "sample")],
    }
    inputs = {"documents": documents} | ({"tasks": tasks} if tasks else {})
    place = os.path.abspath(cache)
    return Step(
        name=name,
        version=1,
        config=config,
        inputs=inputs,
        work=lambda context: _synthesize(context, pool, place),
        summary="let the LLMs write queries for documents and texts for each other's tasks",
    )


def _synthesize(context: Context, llms: Sequence[LLM], cache: str) -> None:
    config, folder = context.config, context.inputs["documents"]
    places = seed_documents(
        folder,
        context.input_shards("documents", "documents"),
        llms,
        counts=[llm.requests(config["retrieval_per_llm"]) for llm in llms],
        seed=config["seed"],
        minimum_characters=config["minimum_document_characters"],
    )
    tasks = _tasks(context)
    pool = []
    for llm, own in zip(llms, places, strict=True):
        asked = retrieval_requests(llm, own, seed=config["seed"])
        samples = _samples(context, llm, tasks, alone=len(llms) == 1)
        size = config["unit_requests"]
        more = {"folder": folder.uri, "grounded": config["grounded"]}
        units = units_of("retrieval", asked, size=size, **more)
        pool.append((llm, units + units_of("classification", samples, size=size)))
    run_pool(context, pool, cache=cache, kinds=KINDS, schemas={"pairs": PAIR})
    context.facts["tasks"] = len(tasks)


def _tasks(context: Context) -> list[dict[str, Any]]:
    """The tasks, each sentence once."""
    if "tasks" not in context.inputs or not read_manifest(context.inputs["tasks"]).table("tasks"):
        return []
    distinct: dict[str, dict[str, Any]] = {}
    for task in read_table(context.inputs["tasks"], "tasks").to_pylist():
        distinct.setdefault(task["instruction"].casefold(), task)
    return list(distinct.values())


def _samples(
    context: Context, llm: LLM, tasks: Sequence[Mapping[str, Any]], *, alone: bool
) -> list[dict[str, Any]]:
    count = llm.requests(context.config["classification_per_llm"])
    given = [
        task
        for task in tasks
        if (alone or task["llm"] != llm.name) and task["language"] in llm.languages
    ]
    if count and not given:
        raise UserError(
            found=f"no classification task for {llm.name} to write texts for",
            expected="at least one that another LLM of the pool invented",
            do="raise tasks_per_llm, or see why in table `rejected` of the step before",
        )
    return sample_requests(llm, given, count=count, seed=context.config["seed"])
