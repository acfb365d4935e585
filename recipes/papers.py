"""The mixes of two papers over the sources at hand, with what LLMs write where a pool is given.

Sources, rows and stages are in datagen.mixes; the steps here. Of what LLMs write, `nemotron` takes
6.8M retrieval rows in pretraining, and retrieval, classification, STS and bitext in fine-tuning
(arXiv 2511.07025, tables 2 and 9); `--written 0.01` asks for a hundredth. Which languages it asked
for, the paper does not say: each LLM writes in all that its pool lists, every fifth query in
another language than its document.
"""

import argparse
from collections.abc import Mapping, Sequence
from math import ceil

from datagen.card import write_card
from datagen.clean import clean
from datagen.decontaminate import decontaminate
from datagen.dedup import dedup
from datagen.ingest import source
from datagen.language import tag_language
from datagen.mine import mine_negatives
from datagen.mix import mix_documents, write_mix
from datagen.mixes import MIXES
from datagen.packaged import resolve_model
from datagen.report import write_report
from datagen.schema import UserError
from datagen.sources import Source
from datagen.steps import Step, in_order
from datagen.synthesize import LLM, synthesize, write_tasks
from datagen.synthesize.knobs import Knobs
from datagen.synthesize.pools import load_pool
from recipes.public_pairs import public_pairs, read_sources

CROSS_LINGUAL = 0.2
TEXTS_PER_TASK, TASKS_PER_CALL = 20, 10


def published(
    recipe: str,
    *,
    sources: Sequence[Source],
    against: Sequence[str],
    encoder: str,
    cache: str,
    variants: int = 1,
    llms: Sequence[LLM] = (),
    written: float = 1.0,
) -> list[Step]:
    """The mix of a paper over the sources at hand; `variants` differ in which rows they drew.

    `llms` write the share `written` of the rows that the paper had written; without any, the mix
    has public rows alone.
    """
    told = MIXES[recipe]()
    names = [source.name for source in sources]
    *_, pairs = public_pairs(sources, against=against)
    if llms:
        rows = told.written_rows(written)
        pairs = _with_written(pairs, llms, rows, against=against, cache=cache)
        names += [f"synthetic_{kind}" for kind in rows]
    stages = told.stages_for(names)
    model, _ = resolve_model(encoder, cache)
    mined = mine_negatives(pairs, encoder=model, margin=0.95, negatives=told.max_negatives)
    shared = None
    if variants > 1:
        mixes = [(stages, seed) for seed in range(variants)]
        most = told.max_negatives
        shared = mix_documents(pairs, mined, mixes=mixes, max_negatives=most, may_be_empty=names)
    cards = []
    for seed in range(variants):
        end = f"-{seed + 1}" if shared else ""
        mix = write_mix(
            pairs,
            mined,
            stages=stages,
            seed=seed,
            max_negatives=told.max_negatives,
            documents=shared,
            may_be_empty=names,
            name=f"mix{end}",
        )
        report = write_report(mix, steps=in_order(mix)[:-1], name=f"report{end}")
        cards.append(write_card(mix, report, title=f"{recipe}{end}", name=f"card{end}"))
    return in_order(*cards)


def _with_written(
    public: Step,
    llms: Sequence[LLM],
    rows: Mapping[str, int],
    *,
    against: Sequence[str],
    cache: str,
) -> Step:
    """The public pairs, and after them what the LLMs write, cleaned as those were."""
    languages = tuple(sorted({language for llm in llms for language in llm.languages}))
    knobs = Knobs(  # as large LLMs do best; see datagen.synthesize.knobs for small ones
        languages=languages,
        cross_lingual=CROSS_LINGUAL if len(languages) > 1 else 0.0,
        calls=2,
        labels=False,
        tasks_per_call=TASKS_PER_CALL,
    )
    texts = rows.get("classification", 0)
    lists = ceil(texts / TEXTS_PER_TASK / TASKS_PER_CALL / len(llms))
    tasks = write_tasks(*llms, cache=cache, lists_per_llm=lists, knobs=knobs) if lists else None
    pairs = synthesize(
        public, tasks=tasks, llms=llms, cache=cache, rows=rows, knobs=knobs, grounded=False
    )
    pairs = clean(pairs, name="clean_synthetic")
    pairs = tag_language(pairs, name="language_synthetic")
    pairs = dedup(pairs, against=public, name="dedup_synthetic")
    if not against:
        return pairs
    return decontaminate(pairs, against=against, name="decontaminate_synthetic")


def from_arguments(arguments: argparse.Namespace, *, cache: str) -> list[Step]:
    """The steps that the command of recipes/build_mix.py asks for."""
    if arguments.encoder is None or arguments.variants < 1 or arguments.smoke:
        raise UserError(
            found=f"--encoder {arguments.encoder}, --variants {arguments.variants}"
            + (", --smoke" if arguments.smoke else ""),
            expected="a model to mine with, at least one variant, and all rows",
            do="give --encoder, e.g. a folder of Qwen3-Embedding-8B or all-minilm-l6-v2",
            exit_status=2,
        )
    recipe = MIXES[arguments.recipe]()
    if arguments.sources:
        sources = read_sources(arguments.sources)
    else:
        sources = [source("catalog", name=name) for name in recipe.ready()]
    return published(
        arguments.recipe,
        sources=sources,
        against=arguments.against,
        encoder=arguments.encoder,
        cache=cache,
        variants=arguments.variants,
        llms=load_pool(arguments.pool) if arguments.pool else (),
        written=arguments.written,
    )
