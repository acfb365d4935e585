"""Mine hard negatives: encode queries and documents, take the best that are not positives.

First every document and query is encoded (datagen.embed), then each unit of queries meets its
pools in an exact blocked top-k (datagen.negatives). Each rule is counted per query in the table
`rules` and per source in the manifest:

- the rules of datagen.mining_rules: ceilings, ranks, sampling, languages;
- `known_positive`, `positive_cluster`, `query_cluster`, `own_text`: what a query must never meet,
  whatever the score (datagen.candidates).
- `given`: negatives that the source itself names come first, in its order, under no ceiling,
  unless they are positives or in a cluster of one.

A query keeps the negatives that exist, unless the rules say that it be dropped or padded. Cost: one
forward pass a text, then 2 x queries x documents x width operations; memory is the plan (about 60
bytes a document in each worker), one block of vectors and one tile of scores.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from datagen.embed import embed, row_units, teachers_of
from datagen.encoder_model import (
    PRECISIONS,
    EncoderModel,
    encoder_model,
    inspect_unit_encoder,
)
from datagen.mining_facts import mining_facts
from datagen.mining_plan import make_plan, write_plan
from datagen.mining_rules import Rules
from datagen.mining_search import FOUND, Searcher, search_units
from datagen.negatives import CANDIDATES, RULE_COUNTS, Miner
from datagen.schema import MINED, UserError
from datagen.steps import Context, Step, Workers
from datagen.store import read_manifest, read_table, shard_name
from datagen.vectors import STORED


def mine_negatives(
    deduped: Step,
    *,
    encoder: str | EncoderModel,
    margin: float | None = 0.95,
    negatives: int = 24,
    rules: Rules | None = None,
    candidates: int = 0,
    embedded: Step | None = None,
    teachers: Sequence[Step] = (),
    queries_per_unit: int = 4096,
    documents_per_unit: int = 1 << 20,
    name: str = "mine",
    **embedding: Any,
) -> Step:
    """Negatives for every query of a step with `queries` and `documents`: the table `mined`.

    `margin` and `negatives` are short for the `rules` with no others. `candidates` of each query
    are stored with their scores, so that other rules can be tried (datagen.sweep). `encoder` and
    `embedding` are as in `embed_texts`; `embedded` is a step that has encoded the same texts so
    already, `teachers` are such steps with other encoders: scores are then the mean of all, or
    each has negatives of its own (`rules.teachers`). More than `documents_per_unit` documents are
    searched in ranges of so many, each by any of the workers, with the same result.
    """
    rules = rules or Rules(negatives=negatives, margin=margin)
    embed_step = embed_texts(deduped, encoder=encoder, **embedding)
    config = {
        **embed_step.config,
        "rules": rules.record(),
        "candidates": candidates,
        "queries_per_unit": queries_per_unit,
        "documents_per_unit": documents_per_unit,
    }
    _refuse_candidates_of_each(rules, candidates)
    earlier = {f"teacher_{i}": step for i, step in enumerate(teachers)}
    earlier |= {"embedded": embedded} if embedded else {}
    return Step(
        name=name,
        version=3,
        config=config,
        inputs={"deduped": deduped, **earlier},
        work=partial(_mine, encode=embed_step.work, **_resources(**embedding)),
        summary="encode queries and documents, find hard negatives by exact top-k",
    )


def embed_texts(
    deduped: Step,
    *,
    encoder: str | EncoderModel,
    max_length: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    with_instruction: bool = False,
    dtype: str = "float32",
    stored: str = "float16",
    batch_tokens: int = 2048,
    rows_per_unit: int = 1024,
    actors: int = 1,
    threads: int = 2,
    gpus: float = 0.0,
    cache: str | None = None,
    name: str = "embed",
) -> Step:
    """Vectors of the queries and documents of a step.

    `encoder` is a model folder, a Hub id or an EncoderModel; the digest of its files, not its
    place, enters the configuration.
    Prompts default to those that the folder declares, `max_length` (tokens) to the model's own.
    `dtype` is what the model computes in, `stored` what vectors are kept in. A batch has at most
    `batch_tokens` tokens (2,048 suit a CPU's cache, 65,536 a GPU), a unit of work `rows_per_unit`
    rows. Each of `actors` processes has `threads` threads and `gpus` GPUs. Vectors are looked up
    and kept in `cache` (by default `embeddings` beside the folder of steps), which all steps and
    runs can share.
    """
    _check_precision(dtype, stored)
    model = encoder_model(encoder)
    info = inspect_unit_encoder(model)
    embedding = {
        "encoder": info.digest,
        "max_length": max_length,
        "queries_prompt": info.query_prompt(query_prompt),
        "documents_prompt": info.document_prompt(document_prompt),
        "with_instruction": with_instruction,
        "dtype": dtype,
        "stored": stored,
        "batch_tokens": batch_tokens,
        "rows_per_unit": rows_per_unit,
    }
    resources = _resources(actors=actors, threads=threads, gpus=gpus)
    return Step(
        name=name,
        version=1,
        config={"embedding": embedding},
        inputs={"deduped": deduped},
        work=partial(embed, encoder=model, cache=cache, **resources),
        summary="encode queries and documents",
    )


def _resources(
    *, actors: int = 1, threads: int = 2, gpus: float = 0.0, **others: Any
) -> dict[str, Any]:
    # The tokenizer has threads of its own; it would take every core of the machine.
    env = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    workers = Workers(actors=actors, num_cpus=threads, num_gpus=gpus, env=env)
    return {"threads": threads, "workers": workers}


def _check_precision(dtype: str, stored: str) -> None:
    if dtype in PRECISIONS and stored in STORED:
        return
    raise UserError(
        found=f"dtype {dtype!r}, stored {stored!r}",
        expected=f"dtype one of {', '.join(PRECISIONS)}, stored one of {', '.join(STORED)}",
        do="mend the arguments of mining",
        exit_status=2,
    )


def _refuse_candidates_of_each(rules: Rules, candidates: int) -> None:
    if rules.teachers == "each" and candidates:
        raise UserError(
            found=f"{candidates} candidates to store, and scores of each teacher's own",
            expected="one score a document, to which other rules can be applied",
            do="store candidates of the mean of the teachers, or none",
            exit_status=2,
        )


def _mine(
    context: Context,
    *,
    encode: Callable[[Context], Any],
    threads: int,
    workers: Workers,
) -> None:
    if "embedded" not in context.inputs:
        encode(context)
    teachers = teachers_of(context)
    deduped, plan = context.inputs["deduped"], context.folder.folder("plan")
    queries = read_table(deduped, "queries")
    write_plan(plan, make_plan(queries, read_table(deduped, "documents")))
    config = context.config
    reader = {
        "deduped": deduped.uri,
        "plan": plan.uri,
        "teachers": teachers,
        "rules": config["rules"],
        "candidates": config["candidates"],
        "threads": threads,
    }
    units = row_units(context, "queries", size=config["queries_per_unit"])
    found = _search(context, units, reader, workers)
    context.map_units(
        [{**unit, "found": names} for unit, names in zip(units, found, strict=True)],
        Miner,
        schemas={"mined": MINED, "rules": RULE_COUNTS, "candidates": CANDIDATES},
        phase="mine",
        workers=workers,
        constructor={
            **reader,
            "documents": context.input_shards("deduped", "documents"),
            "place": context.folder.uri,
        },
    )
    shards = {t: [s.name for s in context.shards if s.table == t] for t in ("mined", "rules")}
    context.facts["mining"] = mining_facts(
        context.folder, shards, queries["source"], negatives=config["rules"]["negatives"]
    )
    context.folder.delete_folder("plan")
    for name in chain.from_iterable(found):
        context.folder.delete(name)
    context.shards = [shard for shard in context.shards if shard.table != "found"]


def _search(
    context: Context,
    units: Sequence[Mapping[str, Any]],
    reader: Mapping[str, Any],
    workers: Workers,
) -> list[list[str]]:
    """For each unit of queries the shards of what was found in ranges of the documents.

    None where the documents are one range: mining searches it.
    """
    size, documents = context.config["documents_per_unit"], read_manifest(context.inputs["deduped"])
    ranges = -(-documents.rows("documents") // size)
    if ranges <= 1:
        return [[] for _ in units]
    context.map_units(
        search_units(units, documents.rows("documents"), size),
        Searcher,
        schemas={"found": FOUND},
        phase="search",
        workers=workers,
        constructor=reader,
    )
    return [
        [shard_name("found", unit * ranges + number) for number in range(ranges)]
        for unit in range(len(units))
    ]
