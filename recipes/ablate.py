"""Ablations: what each decision of the recipe is worth, on a small model and any mix, over seeds.

    python recipes/ablate.py --mix out/demo/mix --base out/demo/models/base \\
        --tasks out/demo/steps/hold_out/tasks --output out/ablations
    ray job submit --working-dir . -- python recipes/ablate.py ... --gpus 1

One run trains one variant with one seed, on the second stage (as the ablations of
llama-embed-nemotron-8b do), and scores it. Runs that are there are not run again, so a stopped
command continues, and more tables or seeds add to what is there. Variants of the data are mixes of
their own, in OUTPUT/mixes; weights stay for the baseline only, which is merged. In a Ray job each
run is a Ray task. Writes OUTPUT/ablations.md.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Read when torch loads: threads that wait for each other sleep, so a busy machine stays usable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

from datagen.packaged import resolve_model
from datagen.schema import UserError
from datagen.steps import versions
from recipes.ablation_runs import Job, in_ray, score_all
from recipes.ablation_scores import lifted, render
from recipes.ablations import BASELINE, TABLES, TWO_STAGES, Variant, table_of, variants
from recipes.mix_variants import derive, llm_rows, size_of
from trainer.tasks import find_tasks, load_task
from trainer.train import StageConfig, TrainConfig

TRAINED = {"second stage": BASELINE, "both stages": TWO_STAGES}
Scores = dict[str, dict[int, dict[str, float]]]  # variant -> seed -> means


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """All that the command is asked for; `told` is the command itself."""

    mix: str
    base: str
    tasks: tuple[str, ...]
    output: Path
    told: str
    tables: tuple[str, ...] = TABLES
    encoder: str = "all-minilm-l6-v2"
    score_dtype: str | None = None
    languages: tuple[str, ...] = ()
    seeds: int = 3
    steps: int = 64
    batch_size: int = 32
    negatives: int = 4
    learning_rate: float = 2e-4
    max_length: int = 64
    threads: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def rows(self) -> int:
        return self.steps * self.batch_size

    @cached_property
    def variants(self) -> dict[str, Variant]:
        written = llm_rows(self.mix)
        return variants(self.tables, rows=self.rows, llms=written, languages=self.languages)

    def run(self) -> str:
        """Derive the mixes, run what is missing, and give the page as Markdown."""
        mixes = self._mixes()
        jobs: dict[Any, tuple[Job, str]] = {}
        for name, seed in product(self.variants, range(1, self.seeds + 1)):
            place = str(self.output / "runs" / name / f"seed-{seed}")
            jobs[name, seed] = (self._job(name, mixes[name], place, seed), place)
        jobs["base", 0] = (self._scored(output=self.base), str(self.output / "base"))
        found = score_all(jobs, cpus=self.cpus, gpus=self.gpus)
        scores: Scores = {}
        for (name, seed), one in found.items():
            scores.setdefault(name, {})[seed] = one
        if "merging" in self.tables:
            scores |= self._merged(scores[BASELINE])
        return self._page(scores)

    def _mixes(self) -> dict[str, str]:
        """The mix of each variant; variants of training share one."""
        cache = os.environ.get("EMBEDMIX_CACHE", ".cache/embedmix")
        encoder = None
        if any(v.rules.random_negatives for v in self.variants.values()):
            encoder, _ = resolve_model(self.encoder, cache)
        made: dict[Any, str] = {}
        for name, variant in self.variants.items():
            key = variant.rules, variant.stages
            made[key] = made.get(key) or derive(
                self.mix,
                str(self.output / "mixes"),
                name=name,
                rules=variant.rules,
                negatives={stage: self._negatives[stage] for stage in variant.stages},
                encoder=encoder,
            )
        return {name: made[v.rules, v.stages] for name, v in self.variants.items()}

    @property
    def _negatives(self) -> dict[str, int]:
        return {"pretrain": 1, "finetune": self.negatives}

    def _job(self, name: str, mix: str, place: str, seed: int) -> Job:
        stages = [
            StageConfig(
                name=stage,
                negatives=self._negatives[stage],
                learning_rate=self.learning_rate,
                batch_size=self.batch_size,
                warmup_steps=10,
                max_length=self.max_length,
            )
            for stage in self.variants[name].stages
        ]
        config = TrainConfig(
            mix=mix,
            base=self.base,
            output=place,
            stages=tuple(stages),
            seed=seed,
            threads=self.threads or (max(1, int(self.cpus)) if in_ray() else None),
            micro_tokens=4096,
            checkpoint_steps=1_000,
        )
        config = replace(config, **self.variants[name].options)
        return self._scored(output=place, train=config, keep=name == BASELINE)

    def _scored(self, **job: Any) -> Job:
        return Job(tasks=self.tasks, dtype=self.score_dtype, **job)

    def _merged(self, single: Mapping[int, Mapping[str, float]]) -> Scores:
        """Merges of pairs of baseline runs and of all, the best run, and the mean of each pair."""
        sizes = sorted({2, len(single)}) if len(single) > 1 else []
        groups = [seeds for size in sizes for seeds in combinations(sorted(single), size)]
        jobs = {}
        for seeds in groups:
            place = str(self.output / "merged" / "-".join(map(str, seeds)))
            runs = tuple(str(self.output / "runs" / BASELINE / f"seed-{seed}") for seed in seeds)
            jobs[seeds] = (self._scored(output=place, merge=runs), place)
        found = score_all(jobs, cpus=self.cpus, gpus=self.gpus)
        best = max(single.values(), key=lambda run: run["tasks"])
        scores: Scores = {"best": {0: dict(best)}}
        for number, (seeds, merged) in enumerate(found.items(), 1):
            if len(seeds) == len(single):
                scores["merged-all"] = {0: merged}
            else:
                own = [single[seed] for seed in seeds]
                both = {name: fmean(run[name] for run in own) for name in merged}
                scores.setdefault("merged-pairs", {})[number] = merged
                # Under keys of their own: pairs share runs, so differences have no interval.
                scores.setdefault("pair-means", {})[-number] = both
        return scores

    def _page(self, scores: Scores) -> str:
        shape = json.loads((Path(self.base) / "config.json").read_text())
        names = ", ".join(load_task(folder).name for folder in self.tasks)
        found = {**versions(), "cores": len(os.sched_getaffinity(0))}
        about = [
            "# Ablations",
            f"`{self.told}`",
            f"One stage (finetune) of {self.rows:,} public rows "
            + (f"with queries in {', '.join(self.languages)} " if self.languages else "")
            + f"in batches of "
            f"{self.batch_size} and the synthetic rows, {self.negatives} negatives, learning "
            f"rate {self.learning_rate:g}, {self.max_length} tokens, {self.seeds} seeds. Seeds "
            "change the order of batches, not the rows. Scores are main scores x 100 on "
            f"{len(self.tasks)} tasks ({names}), by vectors in "
            f"{self.score_dtype or 'the dtype of the saved model'}. ± is half of the 95 % "
            "confidence interval over seeds; differences are paired by seed; * marks those whose "
            "interval excludes 0, without correction for the number of comparisons.",
            f"Base: {shape['num_hidden_layers']} layers of {shape['hidden_size']}, untrained as an "
            f"encoder. Mix: {size_of(self.mix)}.",
            "Versions: " + ", ".join(f"{key} {value}" for key, value in found.items()) + ".",
            lifted(scores["base"][0], {k: scores[v] for k, v in TRAINED.items() if v in scores}),
        ]
        tables = [render(table_of(name, self.variants), scores) for name in self.tables]
        return "\n\n".join([*about, *tables]) + "\n"


NUMBERS: dict[str, tuple[type, str]] = {
    "seeds": (int, "runs of each variant"),
    "steps": (int, "over public rows"),
    "batch_size": (int, "rows"),
    "negatives": (int, "per row"),
    "learning_rate": (float, "peak"),
    "max_length": (int, "tokens"),
    "threads": (int, "of a run (one for each core; in Ray, those of a run)"),
    "cpus": (float, "of a run that is a Ray task"),
    "gpus": (float, "of a run that is a Ray task"),
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--mix", required=True, help="folder of a finished mix")
    found.add_argument("--base", required=True, help="model folder, best of `trainer export`")
    found.add_argument("--tasks", required=True, nargs="+", metavar="DIR", help="to score on")
    found.add_argument("--output", required=True, help="folder for mixes/, runs/, ablations.md")
    found.add_argument(
        "--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="T", help="(all)"
    )
    for name, (kind, about) in NUMBERS.items():
        default = getattr(Ablation, name)
        told = about + (f" ({default:g})" if default is not None else "")
        flag = f"--{name.replace('_', '-')}"
        found.add_argument(flag, type=kind, default=default, metavar="N", help=told)
    found.add_argument(
        "--languages", nargs="+", default=[], metavar="L", help="of queries, as eng (all)"
    )
    found.add_argument(
        "--score-dtype",
        choices=("float32", "bfloat16"),
        help="of the models when they are scored (as saved)",
    )
    found.add_argument(
        "--encoder", default=Ablation.encoder, metavar="M", help="scores random negatives"
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    told = sys.argv[1:] if argv is None else list(argv)
    given = vars(parser().parse_args(told))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    for name in ("mteb", "sentence_transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if min(given["seeds"], given["steps"], given["batch_size"]) < 1:
            raise UserError(
                found=", ".join(f"{k} {given[k]}" for k in ("seeds", "steps", "batch_size")),
                expected="numbers of at least 1",
                do="mend these options",
                exit_status=2,
            )
        # Ray tasks run elsewhere than this process.
        given |= {name: os.path.abspath(given[name]) for name in ("mix", "base")}
        given |= {name: tuple(given[name]) for name in ("tables", "languages")}
        given["output"] = Path(given["output"]).absolute()
        given["tasks"] = tuple(find_tasks([os.path.abspath(place) for place in given["tasks"]]))
        ablation = Ablation(**given, told=shlex.join(["python", "recipes/ablate.py", *told]))
        page = ablation.run()
        (ablation.output / "ablations.md").write_text(page, encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print("\n" + page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
