"""A run on the processes of a Ray cluster: what torchrun does, where Ray has the machines.

Ray Train places the workers, joins them into a group, and starts them again when one dies; the run
then resumes at its last checkpoint (trainer/loop.py). Mix, base and output are folders that all
nodes see.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from datagen.steps import start_ray
from trainer.train import TrainConfig, earlier_run, train

_FOLDERS = ("mix", "base", "teacher", "teacher_cache", "output", "tensorboard")


def train_on_ray(
    config: TrainConfig, *, workers: int, cpus: float = 1.0, retries: int = 3
) -> dict[str, Any]:
    """`train` on that many workers, with a GPU each where the cluster has as many.

    Joins the cluster of RAY_ADDRESS or of the Ray job, else starts Ray here. Workers are started
    again `retries` times. UserError when the cluster is too small, and for what `train` refuses.
    """
    told = {name: getattr(config, name) for name in _FOLDERS}
    places: dict[str, Any] = {n: str(Path(p).absolute()) for n, p in told.items() if p}
    config = replace(config, **places)  # a worker has another working directory
    record = earlier_run(config, config.identity())
    if record is not None:
        return record
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    start_ray(show_workers=True)
    has = ray.cluster_resources()
    if workers < 1 or has.get("CPU", 0) < workers * cpus:
        raise UserError(
            found=f"{workers} workers of {cpus:g} CPUs",
            expected=f"at least 1, and at most what the cluster has: {has.get('CPU', 0):g} CPUs",
            do="ask for fewer workers, or add nodes",
            exit_status=2,
        )
    output = Path(config.output)
    place = output.with_name(f".{output.name}.ray")
    refused = place / "refused.json"
    refused.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config, "refused": str(refused)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=has.get("GPU", 0) >= workers,
            resources_per_worker={"CPU": cpus},
        ),
        run_config=RunConfig(
            name=output.name,
            storage_path=str(place),
            failure_config=FailureConfig(max_failures=retries),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError:
        if not refused.is_file():
            raise
        raise UserError(**json.loads(refused.read_text())) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found: dict[str, Any] = json.loads((output / "run.json").read_text())
    return found


def _work(told: Mapping[str, Any]) -> None:
    """One worker. What a run refuses once it would refuse each time, so the next start ends it."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("embedmix").setLevel(logging.INFO)
    refused = Path(told["refused"])
    if refused.is_file():
        raise RuntimeError(refused.read_text())
    try:
        train(told["config"])
    except UserError as error:
        refused.parent.mkdir(parents=True, exist_ok=True)
        refused.write_text(json.dumps(error.fields()))
        raise
