"""Mine hard negatives: encode queries and documents, take the best that are not positives.

First every document and query is encoded (datagen.embed), then each unit of queries meets its
pools in an exact blocked top-k (datagen.negatives). Each rule is counted per query in the table
`rules` and per source in the manifest:

- `ceiling`: TopK-PercPos of NV-Retriever (arXiv 2407.15831, section 4): a negative scores at most
  p - (1 - margin) x |p|, where p is the lowest score among the query's positives: with margin 0.95
  this is 0.95 x p for a positive p, and still below p for a negative one.
- `known_positive`, `positive_cluster`, `query_cluster`: what a query must never meet, whatever the
  score (datagen.candidates).
- `given`: negatives that the source itself names come first, in its order, under no ceiling,
  unless they are positives or in a cluster of one.

Nothing is filled at random: a query keeps the negatives that exist. Cost: one forward pass a text,
then 2 x queries x documents x width operations; memory is the plan (about 60 bytes a document in
each worker), one block of vectors and one tile of scores.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datagen.candidates import EXCLUSIONS, make_plan, write_plan
from datagen.embed import earlier_vectors, embed, row_units
from datagen.encode import PRECISIONS, STORED, EncoderInfo, inspect_encoder
from datagen.mine_input import MiningInput, read_mining_input
from datagen.mining_facts import mining_facts
from datagen.negatives import RULE_COUNTS, Miner
from datagen.schema import MINED, QUARANTINE, UserError
from datagen.steps import Context, Step, Workers, run_steps
from datagen.store import Folder, read_table

RULES = ("ceiling", *EXCLUSIONS, "given")


def mine_negatives(
    deduped: Step,
    *,
    encoder: str,
    margin: float = 0.95,
    negatives: int = 24,
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
    embedded: Step | None = None,
    name: str = "mine",
) -> Step:
    """Negatives for every query of a step with `queries` and `documents`: the table `mined`.

    `encoder` is a model folder; the digest of its files, not its place, enters the configuration.
    Prompts default to those that the folder declares, `max_length` (tokens) to the model's own.
    `dtype` is what the model computes in, `stored` what vectors are kept in. A batch has at most
    `batch_tokens` padded tokens (2,048 suit a CPU's cache, 65,536 a GPU), a unit of work
    `rows_per_unit` rows. Each of `actors` processes has `threads` threads and `gpus` GPUs.
    Vectors are kept in `cache` (by default `embeddings` beside the folder of steps), which other
    steps and runs share. `embedded` is an earlier mining step of the same texts and encoder: its
    vectors are used as they are, without looking them up.
    """
    _check_arguments(margin=margin, negatives=negatives, dtype=dtype, stored=stored)
    info = inspect_encoder(encoder)
    config = {
        "embedding": {
            "encoder": info.digest,
            "max_length": max_length,
            "queries_prompt": _prompt(info, query_prompt, "query"),
            "documents_prompt": _prompt(info, document_prompt, "document", "passage"),
            "with_instruction": with_instruction,
            "dtype": dtype,
            "stored": stored,
            "batch_tokens": batch_tokens,
            "rows_per_unit": rows_per_unit,
        },
        "margin": margin,
        "negatives": negatives,
        "rules": list(RULES),
    }
    # The tokenizer has threads of its own; it would take every core of the machine.
    env = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    workers = Workers(actors=actors, num_cpus=threads, num_gpus=gpus, env=env)
    return Step(
        name=name,
        version=2,
        config=config,
        inputs={"deduped": deduped, **({"embedded": embedded} if embedded else {})},
        work=partial(_work, encoder=encoder, cache=cache, threads=threads, workers=workers),
        summary="encode queries and documents, find hard negatives by exact top-k",
    )


def _prompt(info: EncoderInfo, given: str | None, *names: str) -> str:
    if given is not None:
        return given
    return next((info.prompts[name] for name in names if name in info.prompts), "")


def _check_arguments(*, margin: float, negatives: int, dtype: str, stored: str) -> None:
    if 0 < margin <= 1 and negatives > 0 and dtype in PRECISIONS and stored in STORED:
        return
    raise UserError(
        found=f"margin {margin}, {negatives} negatives, dtype {dtype!r}, stored {stored!r}",
        expected="a margin in (0, 1], at least 1 negative, dtype one of "
        f"{', '.join(PRECISIONS)}, stored one of {', '.join(STORED)}",
        do="mend the arguments of mining",
        exit_status=2,
    )


def _work(
    context: Context, *, encoder: str, cache: str | None, threads: int, workers: Workers
) -> None:
    if "embedded" in context.inputs:
        place, vectors = earlier_vectors(context)
    else:
        beside = context.folder.uri.rsplit("/steps/", 1)[0] + "/embeddings"
        vectors = embed(context, encoder, cache=cache or beside, threads=threads, workers=workers)
        place = context.folder
    deduped, plan = context.inputs["deduped"], context.folder.folder("plan")
    queries = read_table(deduped, "queries")
    write_plan(plan, make_plan(queries, read_table(deduped, "documents")))
    negatives = context.config["negatives"]
    context.map_units(
        row_units(context, "queries"),
        Miner,
        schemas={"mined": MINED, "rules": RULE_COUNTS},
        phase="mine",
        workers=workers,
        constructor={
            "deduped": deduped.uri,
            "plan": plan.uri,
            "place": place.uri,
            "vectors": vectors,
            "documents": context.input_shards("deduped", "documents"),
            "margin": context.config["margin"],
            "negatives": negatives,
            "threads": threads,
        },
    )
    shards = {t: [s.name for s in context.shards if s.table == t] for t in ("mined", "rules")}
    context.facts["mining"] = mining_facts(
        context.folder, shards, queries["source"], negatives=negatives
    )
    context.folder.delete_folder("plan")


def mine_files(
    queries: str | Sequence[str],
    documents: str | Sequence[str],
    output: str,
    *,
    encoder: str,
    margin: float = 0.95,
    negatives: int = 24,
    max_length: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    with_instruction: bool = False,
    dtype: str = "float32",
    actors: int = 1,
    threads: int = 2,
    cache: str | None = None,
    executor: Literal["ray", "local"] = "local",
) -> dict[str, Any]:
    """Mine over plain files and write `mined.parquet` in `output`; returns the counts.

    Queries have query_id, query and positives (list of doc_id), and may have an instruction;
    documents doc_id, text and perhaps title. Columns written: query_id, positives, positive_scores,
    negatives and negative_scores, best first. Work in progress is kept in `output`/.work, from
    which the same command resumes; it is deleted at the end. Vectors are kept in `cache`, or with
    the work in progress when there is none. UserError for what cannot be used.
    """
    inspect_encoder(encoder)
    data = read_mining_input(_listed(queries), _listed(documents))
    read = data.step()
    mine = mine_negatives(
        read,
        encoder=encoder,
        margin=margin,
        negatives=negatives,
        max_length=max_length,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        with_instruction=with_instruction,
        dtype=dtype,
        stored="float32",
        actors=actors,
        threads=threads,
        cache=cache,
    )
    work = Folder(output).folder(".work")
    manifest = run_steps([read, mine], work.uri, executor=executor)["mine"]
    mined = read_table(work.folder(mine.place), "mined")
    _write_parquet(Folder(output), "mined.parquet", _as_given(mined, data))
    if data.quarantine:
        rows = pa.Table.from_pylist(data.quarantine, schema=QUARANTINE)
        _write_parquet(Folder(output), "quarantine.parquet", rows)
    Folder(output).delete_folder(".work")
    facts = manifest.stats["mining"]["sources"]["queries"]
    return {
        "output": f"{output}/mined.parquet",
        "queries": len(mined),
        "documents": len(data.documents),
        "quarantined": len(data.quarantine),
        "negatives": int(pc.sum(pc.list_value_length(mined["negatives"])).as_py()),
        "queries_with_fewer_negatives": facts["queries_with_fewer"],
        "median_lowest_positive_score": facts["median_lowest_positive_score"],
        "ceiling_share_of_top": facts["ceiling_share_of_top"],
        "near_duplicates_kept_out": sum(facts["caught"].values()),
        "encoder": manifest.config["embedding"]["encoder"],
        "seconds": manifest.run["seconds"],
    }


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def _as_given(mined: pa.Table, data: MiningInput) -> pa.Table:
    """The mined rows under the ids and types of the user's files."""
    repeated = pa.list_(data.doc_id_type)
    columns = {
        "query_id": data.query_ids,
        "positives": mined["positives"].cast(repeated),
        "positive_scores": mined["positive_scores"],
        "negatives": mined["negatives"].cast(repeated),
        "negative_scores": mined["negative_scores"],
    }
    return pa.table(columns)


def _write_parquet(folder: Folder, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write_bytes(name, sink.getvalue())
