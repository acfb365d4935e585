"""Train on a mix: base, two runs, their merge, and the scores of all four.

    python recipes/train.py --recipe demo --mix out/demo/mix --output out/demo
    ray job submit --working-dir . -- python recipes/train.py --recipe demo --workers 8 \\
        --mix /shared/demo/mix --output /shared/demo

With --workers each run is spread over so many workers of the Ray cluster, else the runs are
processes of this machine, side by side. Leaves OUTPUT/models/{base,run-1,run-2,merged} and
OUTPUT/results.json. What is up to date is not made again.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Read when torch loads: threads that wait for each other sleep, so a busy machine stays usable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; the log has its own progress

from datagen.packaged import resolve_model
from datagen.schema import UserError
from datagen.store import Folder, read_manifest
from trainer.base import prepare_base
from trainer.evaluate import evaluate
from trainer.merge import merge
from trainer.ray_train import train_on_ray
from trainer.train import StageConfig, TrainConfig, train

log = logging.getLogger("embedmix")


def demo(mix: str, output: Path, *, cache: str, smoke: bool) -> list[TrainConfig]:
    """Two runs over the demo mix that differ in their seed, on six layers of a small decoder."""
    llm, licence = resolve_model("smollm2-135m-instruct", cache)
    shape = {"layers": 6, "max_length": 128}
    base = prepare_base(llm, str(output / "models" / "base"), licence=licence, **shape)
    stages = (
        # One negative, then four; a lower learning rate the second time (Nemotron, Table 8).
        StageConfig(
            name="pretrain",
            negatives=1,
            learning_rate=3e-4,
            batch_size=16,  # more and smaller steps than 32: so little data wants them
            max_rows=64 if smoke else 1536,
            warmup_steps=10,
            max_length=64,
        ),
        StageConfig(
            name="finetune",
            negatives=4,
            learning_rate=2e-4,
            batch_size=16,
            max_rows=64 if smoke else 2560,
            warmup_steps=10,
            max_length=64,
        ),
    )
    return [
        TrainConfig(
            mix=mix,
            base=base,
            output=str(output / "models" / f"run-{n}"),
            stages=stages,
            seed=n,
            # So few steps of an untrained base learn more beside easy negatives: five points more
            # than with hard ones alone (benchmarks/results/ablations.md).
            loss="gecko",
            micro_tokens=4096,  # half the activations of the default at the same speed
            threads=1,  # two runs side by side: a second thread in each gains less than this
        )
        for n in (1, 2)
    ]


RECIPES = {"demo": demo}


def train_one(config: TrainConfig) -> None:
    """One run in a process of its own."""
    _log_to_stdout()
    train(config)


def _log_to_stdout() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    for name in ("mteb", "sentence_transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(configs: list[TrainConfig], *, output: Path, workers: int | None = None) -> None:
    """Train each configuration, merge the results, and score base, runs and merge."""
    models = output / "models"
    runs = [config.output for config in configs]
    if workers is None:
        with ProcessPoolExecutor(len(configs), mp_context=get_context("spawn")) as pool:
            list(pool.map(train_one, configs))
    else:
        for config in configs:
            train_on_ray(config, workers=workers)
    merge(runs, str(models / "merged"))
    tasks = str(output / "steps" / "hold_out" / "tasks")
    results = {}
    for name in ("base", *(Path(run).name for run in runs), "merged"):
        log.info("evaluate %s", name)
        place = str(output / "scores" / name)
        scored = evaluate(str(models / name), tasks, place, dtype="bfloat16")
        results[name] = scored["tasks"]
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (output / "results.json").write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="one of " + ", ".join(RECIPES))
    parser.add_argument("--mix", required=True, help="folder of a finished mix")
    parser.add_argument("--output", required=True, help="folder for models/ and results.json")
    parser.add_argument("--workers", type=int, metavar="N", help="of the Ray cluster, for each run")
    parser.add_argument("--smoke", action="store_true", help="the same on very few rows")
    arguments = parser.parse_args(argv)
    _log_to_stdout()
    try:
        if arguments.recipe not in RECIPES:
            raise UserError(
                found=f"recipe {arguments.recipe!r}",
                expected="one of " + ", ".join(RECIPES),
                do="name one of these, or add yours to RECIPES",
                exit_status=2,
            )
        read_manifest(Folder(arguments.mix))
        cache = os.environ.get("EMBEDMIX_CACHE", ".cache/embedmix")
        output = Path(arguments.output)
        recipe = RECIPES[arguments.recipe]
        configs = recipe(arguments.mix, output, cache=cache, smoke=arguments.smoke)
        run(configs, output=output, workers=arguments.workers)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
