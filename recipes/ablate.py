"""Ablations: what each decision of the recipe is worth, on a small model and any mix, over seeds.

    python recipes/ablate.py --mix out/demo/mix --base out/demo/models/base \\
        --tasks out/demo/steps/hold_out/tasks --output out/ablations
    ray job submit --working-dir . -- python recipes/ablate.py ... --gpus 1

One run trains one variant with one seed on the second stage (as the ablations of
llama-embed-nemotron-8b do), and scores it. Runs that are there are not run again, so a stopped
command continues, and more tables or seeds add to what is there. Variants of the data are mixes of
their own, in OUTPUT/mixes; weights stay for the baseline only, which is merged. In a Ray job each
run is a Ray task. Writes OUTPUT/ablations.md.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
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
from datagen.store import Folder, read_manifest
from recipes.ablation_runs import Job, score_all
from recipes.ablation_scores import render, untrained
from recipes.ablations import BASELINE, TABLES, Variant, table_of, variants
from recipes.mix_variants import derive, llm_rows
from trainer.tasks import find_tasks, load_task
from trainer.train import StageConfig, TrainConfig

Scores = dict[str, dict[int, dict[str, float]]]  # variant -> seed -> means


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """All that the command was asked for."""

    arguments: argparse.Namespace
    tasks: tuple[str, ...]
    variants: Mapping[str, Variant]
    output: Path

    def run(self) -> str:
        """Derive the mixes, run what is missing, and give the page as Markdown."""
        given = self.arguments
        mixes = self._mixes()
        jobs: dict[Any, tuple[Job, str]] = {}
        for name in self.variants:
            for seed in range(1, given.seeds + 1):
                place = str(self.output / "runs" / name / f"seed-{seed}")
                jobs[name, seed] = (self._job(name, mixes[name], place, seed), place)
        base = Job(output=given.base, tasks=self.tasks, keep=True)
        jobs["base", 0] = (base, str(self.output / "base"))
        found = score_all(jobs, cpus=given.cpus, gpus=given.gpus)
        scores: Scores = {}
        for (name, seed), one in found.items():
            scores.setdefault(name, {})[seed] = one
        if "merging" in given.tables:
            scores |= self._merged(scores[BASELINE])
        return self._page(scores)

    def _mixes(self) -> dict[str, str]:
        """The mix of each variant; variants of training share one."""
        cache = os.environ.get("EMBEDMIX_CACHE", ".cache/embedmix")
        encoder = None
        if any(v.rules.random_negatives for v in self.variants.values()):
            encoder, _ = resolve_model(self.arguments.encoder, cache)
        names: dict[Any, str] = {}
        for name, variant in self.variants.items():
            names.setdefault(variant.rules, name)
        made = {
            rules: derive(
                self.arguments.mix,
                str(self.output / "mixes"),
                name=name,
                rules=rules,
                negatives=self.arguments.negatives,
                encoder=encoder,
            )
            for rules, name in names.items()
        }
        return {name: made[variant.rules] for name, variant in self.variants.items()}

    def _job(self, name: str, mix: str, place: str, seed: int) -> Job:
        given = self.arguments
        stage = StageConfig(
            name="finetune",
            negatives=given.negatives,
            learning_rate=given.learning_rate,
            batch_size=given.batch_size,
            warmup_steps=10,
            max_length=given.max_length,
        )
        config = TrainConfig(
            mix=mix,
            base=given.base,
            output=place,
            stages=(stage,),
            seed=seed,
            threads=given.threads,
            micro_tokens=4096,
            checkpoint_steps=1_000,
        )
        config = replace(config, **self.variants[name].options)
        return Job(output=place, tasks=self.tasks, train=config, keep=name == BASELINE)

    def _merged(self, single: Mapping[int, Mapping[str, float]]) -> Scores:
        """Merges of pairs of baseline runs and of all, the best run, and the mean of each pair."""
        groups: list[tuple[int, ...]] = []
        groups += combinations(sorted(single), 2) if len(single) > 2 else []
        groups += [tuple(sorted(single))] if len(single) > 1 else []
        jobs = {}
        for seeds in groups:
            place = str(self.output / "merged" / "-".join(map(str, seeds)))
            runs = tuple(str(self.output / "runs" / BASELINE / f"seed-{seed}") for seed in seeds)
            jobs[seeds] = (Job(output=place, tasks=self.tasks, merge=runs, keep=True), place)
        found = score_all(jobs, cpus=self.arguments.cpus, gpus=self.arguments.gpus)
        best = max(single.values(), key=lambda run: run["tasks"])
        scores: Scores = {"best": {0: dict(best)}}
        for number, (seeds, merged) in enumerate(found.items(), 1):
            if len(seeds) == len(single):
                scores["merged-all"] = {0: merged}
            else:
                own = [single[seed] for seed in seeds]
                both = {name: fmean(run[name] for run in own) for name in merged}
                scores.setdefault("merged-pairs", {})[number] = merged
                scores.setdefault("pair-means", {})[number] = both
        return scores

    def _page(self, scores: Scores) -> str:
        given = self.arguments
        beside, lift = untrained(scores["base"][0], scores[BASELINE])
        names = ", ".join(load_task(folder).name for folder in self.tasks)
        found = {**versions(), "cores": len(os.sched_getaffinity(0))}
        about = [
            "# Ablations",
            f"`{' '.join(['python', 'recipes/ablate.py', *given.told])}`",
            f"One stage (finetune) of {given.steps * given.batch_size:,} public rows in batches of "
            f"{given.batch_size} and the synthetic rows, {given.negatives} negatives, learning "
            f"rate {given.learning_rate:g}, {given.max_length} tokens, {given.seeds} seeds. Seeds "
            "change the order of batches, not the rows. Scores are main scores x 100 on "
            f"{len(self.tasks)} tasks ({names}). ± is half of the 95 % confidence interval over "
            "seeds; differences are paired by seed; * marks those whose interval excludes 0, "
            "without correction for the number of comparisons.",
            f"Base: {_shape(given.base)}. Mix: {_size(given.mix)}.",
            "Versions: " + ", ".join(f"{key} {value}" for key, value in found.items()) + ".",
            f"## Training\n\n{beside}\n\nTraining lifts the mean of tasks by "
            f"{lift.text(signed=True)}.",
        ]
        tables = [render(table_of(name, self.variants), scores) for name in given.tables]
        return "\n\n".join([*about, *tables]) + "\n"


def _shape(model: str) -> str:
    config = json.loads((Path(model) / "config.json").read_text())
    return f"{config['num_hidden_layers']} layers of {config['hidden_size']}, untrained as encoder"


def _size(mix: str) -> str:
    manifest = read_manifest(Folder(mix))
    rows = f"{manifest.rows('finetune'):,} rows, {manifest.rows('documents'):,} documents"
    return f"{rows}, digest {manifest.digest[:12]}"


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
    numbers: dict[str, tuple[type, Any, str]] = {
        "seeds": (int, 3, "runs of each variant (3)"),
        "steps": (int, 64, "over public rows (64)"),
        "batch-size": (int, 32, "rows (32)"),
        "negatives": (int, 4, "per row (4)"),
        "learning-rate": (float, 2e-4, "peak (2e-4)"),
        "max-length": (int, 64, "tokens (64)"),
        "threads": (int, None, "of a run (one for each core)"),
        "cpus": (float, 1.0, "of a run that is a Ray task (1)"),
        "gpus": (float, 0.0, "of a run that is a Ray task (0)"),
    }
    for name, (kind, default, about) in numbers.items():
        found.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=about)
    found.add_argument(
        "--encoder", default="all-minilm-l6-v2", metavar="M", help="scores random negatives"
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    given.told = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    for name in ("mteb", "sentence_transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if min(given.seeds, given.steps, given.batch_size) < 1:
            raise UserError(
                found=f"--seeds {given.seeds} --steps {given.steps}",
                expected="numbers of at least 1",
                do="mend these options",
                exit_status=2,
            )
        given.mix, given.base = (os.path.abspath(place) for place in (given.mix, given.base))
        output = Path(given.output).absolute()
        ablation = Ablation(
            arguments=given,
            tasks=tuple(find_tasks([os.path.abspath(place) for place in given.tasks])),
            variants=variants(
                given.tables, rows=given.steps * given.batch_size, llms=llm_rows(given.mix)
            ),
            output=output,
        )
        page = ablation.run()
        (output / "ablations.md").write_text(page, encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print("\n" + page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
