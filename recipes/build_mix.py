"""Build a training mix: the steps in order, with every decision of a recipe inline.

    python recipes/build_mix.py --recipe demo --output out/demo
    ray job submit --working-dir . -- python recipes/build_mix.py --recipe demo --output URI
    python recipes/build_mix.py --recipe nemotron --sources YAML --encoder M --output out/nemotron

`nemotron` and `f2llm` are the mixes of two papers (recipes/papers.py), over sources of a YAML file
as in recipes/public_pairs.py, or all of the catalogue that can be read now. With --pool, LLMs write
the synthetic part of `nemotron`.

With plain `python` it starts Ray on this machine; inside a Ray job it joins the cluster. Building a
recipe returns steps and runs nothing; one line in `main` runs them. Running again does nothing for
steps that are up to date and resumes the one that was interrupted.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, also inside a job

from datagen.card import write_card
from datagen.clean import clean
from datagen.decontaminate import decontaminate
from datagen.dedup import dedup
from datagen.holdout import HeldOut, hold_out
from datagen.ingest import ingest
from datagen.language import tag_language
from datagen.mine import mine_negatives
from datagen.mix import write_mix
from datagen.mixes import MIXES
from datagen.packaged import resolve_model
from datagen.report import write_report
from datagen.schema import UserError
from datagen.sources.conversations import ConversationsSource
from datagen.sources.gettext import GettextSource
from datagen.sources.pycode import PycodeSource
from datagen.stages import Stage
from datagen.steps import Step, in_order, run_steps
from datagen.synthesize import LLM, RoundTrip, synthesize, write_tasks
from recipes.papers import from_arguments

DISK_GIB = 2  # what a build of the demo may leave in --output; the least of any
LOCALES_OF_SMOKE = ("ar", "de", "el", "es", "fr", "he", "hi", "ja", "ru", "sw", "tr", "zh_Hans")
LANGUAGES_HELD_OUT = ("deu_Latn", "fra_Latn", "spa_Latn", "por_Latn", "ita_Latn", "nld_Latn")


def demo(*, cache: str, smoke: bool) -> list[Step]:
    """Every kind of step on real parts that come with the installation: minutes on a laptop."""
    smollm2 = LLM(name="SmolLM2-135M-Instruct", model="smollm2-135m-instruct", licence="Apache-2.0")
    gemma3 = LLM(name="Gemma-3-270M", model="gemma3-270m", licence="Gemma", chat=False)
    encoder, _ = resolve_model("all-minilm-l6-v2", cache)

    # Public pairs: sentences in 90 languages, questions in 28, and the standard library's code.
    public = ingest(
        GettextSource(
            locales=LOCALES_OF_SMOKE if smoke else (), max_pairs_per_language=40 if smoke else 260
        ),
        ConversationsSource(max_pairs_per_language=20 if smoke else None),
        PycodeSource(max_characters=90 if smoke else 4000),
    )
    public = clean(public)
    public = tag_language(public)
    held_out = hold_out(
        public,
        [
            HeldOut(
                name="python-stdlib",
                type="retrieval",
                source="python-stdlib",
                rows=50 if smoke else 300,
                instruction="Given a description, retrieve the code that does it.",
                licence="PSF-2.0",
            ),
            HeldOut(
                name="django",
                type="bitext",
                source="django",
                rows=20 if smoke else 100,
                minimum_words=1 if smoke else 3,
                instruction="Retrieve parallel sentences.",
                licence="BSD-3-Clause",
                languages=LANGUAGES_HELD_OUT[:1] if smoke else LANGUAGES_HELD_OUT,
            ),
        ],
    )
    public = dedup(public, source_priority=("python-stdlib", "django", "chatterbot"))
    public = decontaminate(public, against=[held_out])

    # Synthetic pairs: each LLM writes queries for public documents, and texts for the
    # classification tasks that the other one thought of.
    topics = write_tasks(smollm2, gemma3, cache=cache, lists_per_llm=2 if smoke else 16)
    synthetic = synthesize(
        public,
        tasks=topics,
        llms=(smollm2, gemma3),
        cache=cache,
        rows={"retrieval": 8 if smoke else 220, "classification": 8 if smoke else 160},
        # Of what the encoder knows, a query must find its document again.
        round_trip=RoundTrip(
            encoder=encoder,
            languages=("eng", "python"),
            documents=50 if smoke else 1000,
            dtype="bfloat16",
        ),
        block_requests=8 if smoke else 32,
    )
    synthetic = clean(synthetic, name="clean_synthetic")
    synthetic = tag_language(synthetic, name="language_synthetic")
    both = dedup(synthetic, against=public, name="dedup_synthetic")
    both = decontaminate(both, against=[held_out], name="decontaminate_synthetic")

    mined = mine_negatives(both, encoder=encoder, margin=0.95, negatives=24, dtype="bfloat16")
    mix = write_mix(
        both,
        mined,
        stages=[
            Stage(name="pretrain", negatives=1, tasks=("retrieval",)),
            Stage(name="finetune", negatives=4, rows_per_source=80_000),
        ],
        seed=0,
    )
    base, _ = resolve_model("smollm2-135m-instruct", cache)  # what training starts from
    report = write_report(mix, steps=in_order(mix)[:-1], tokenizer=base)
    card = write_card(mix, report, title="embedmix demo")
    return in_order(card)


RECIPES: dict[str, Callable[..., list[Step]]] = {"demo": demo}


def check_disk(output: str, *, gib: float) -> None:
    """Refuse to start where the output would not fit."""
    if "://" in output:
        return
    place = Path(output).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    if free < gib:
        raise UserError(
            found=f"{free:.1f} GiB free at {place}",
            expected=f"at least {gib:g} GiB",
            do="free space, or choose another --output",
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*RECIPES, *MIXES]
    parser.add_argument("--recipe", required=True, help="one of " + ", ".join(known))
    parser.add_argument("--output", required=True, help="folder or URI for steps/ and mix/")
    parser.add_argument("--smoke", action="store_true", help="demo: the same steps on few rows")
    paper = parser.add_argument_group("recipes of papers (" + ", ".join(MIXES) + ")")
    paper.add_argument("--sources", metavar="YAML", help="a list of sources (the catalogue's)")
    paper.add_argument("--against", nargs="+", default=[], metavar="TASKS", help="kept out")
    paper.add_argument("--encoder", metavar="M", help="model folder or packaged name, for mining")
    paper.add_argument("--variants", type=int, default=1, metavar="N", help="mixes to merge (1)")
    paper.add_argument("--pool", metavar="FILE", help="LLMs that write, as YAML; or `nemotron`")
    paper.add_argument(
        "--written", type=float, default=1.0, metavar="P", help="share of the paper's rows (1)"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    try:
        if arguments.recipe not in known:
            raise UserError(
                found=f"recipe {arguments.recipe!r}",
                expected="one of " + ", ".join(known),
                do="name one of these, or add yours to RECIPES",
                exit_status=2,
            )
        cache = os.path.abspath(os.environ.get("EMBEDMIX_CACHE", ".cache/embedmix"))
        check_disk(arguments.output, gib=DISK_GIB)
        if arguments.recipe in RECIPES:
            steps = RECIPES[arguments.recipe](cache=cache, smoke=arguments.smoke)
        else:
            steps = from_arguments(arguments, cache=cache)
        run_steps(steps, arguments.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
