"""Models to score, each once: what a run gave is kept beside it, with what decided it.

A job trains a model, merges some, or takes one that is there, and scores it on task folders. Its
record says which configuration, mix, base and tasks it is of: the same job is not run again, and
another one in its place is an error that names the key. In a Ray job (RAY_ADDRESS) jobs are Ray
tasks, else they follow each other in this process.
"""

import gc
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datagen.schema import UserError
from datagen.steps import start_ray
from datagen.store import Folder
from recipes.ablation_scores import means
from trainer.evaluate import evaluate
from trainer.merge import merge
from trainer.tasks import load_task
from trainer.train import TrainConfig, model_digest, refuse_drift, train

log = logging.getLogger("embedmix")

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to score: a run to train first, models to merge first, or one that is there."""

    output: str
    tasks: tuple[str, ...]
    train: TrainConfig | None = None
    merge: tuple[str, ...] = ()
    keep: bool = False  # the weights of what was trained
    dtype: str | None = None  # to score in: that of the model, or bfloat16

    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        tasks: dict[str, Any] = {"tasks": [load_task(folder).digest for folder in self.tasks]}
        tasks |= {"scored_in": self.dtype} if self.dtype else {}
        if self.train is not None:
            return {**self.train.identity(), **tasks}
        return {"models": [model_digest(m) for m in self.merge or (self.output,)], **tasks}


def score(job: Job, *, place: str) -> list[dict[str, Any]]:
    """The scores of a job, kept in `place`/result.json; UserError where that is of another one."""
    identity, record = job.identity(), Path(place) / RESULT
    if record.is_file():
        known = json.loads(record.read_text())
        refuse_drift(record.parent, known["identity"], identity)
        return known["tasks"]
    if job.train is not None:
        train(job.train)
    elif job.merge:
        merge(job.merge, job.output)
    found = evaluate(job.output, list(job.tasks), f"{place}/scores", dtype=job.dtype)["tasks"]
    tasks = [{key: task[key] for key in ("task", "type", "main_score")} for task in found]
    if undefined := [task["task"] for task in tasks if task["main_score"] is None]:
        raise UserError(
            found=f"{job.output} has no defined score on {', '.join(undefined)}",
            expected="a number for every task",
            do="leave these tasks out",
        )
    Folder(place).write_json(RESULT, {"identity": identity, "tasks": tasks})
    if job.train is not None and not job.keep:
        for file in Path(job.output).rglob("*.safetensors"):
            file.unlink()
    return tasks


def _score(job: Job, place: str) -> dict[str, Any]:
    """`score` with a user's mistake as data: Ray would wrap it in three tracebacks."""
    try:
        return {"tasks": score(job, place=place)}
    except UserError as error:
        return {"user_error": error.fields()}
    finally:
        gc.collect()  # model and optimiser refer to each other: three runs held 5 GB


def in_ray() -> bool:
    """Whether a Ray job runs this, or the user names a cluster."""
    return "RAY_ADDRESS" in os.environ


def score_all(jobs: Mapping[Any, tuple[Job, str]], *, cpus: float, gpus: float) -> dict[Any, dict]:
    """Means of every job: Ray tasks in a Ray job, else one after the other in this process."""
    if in_ray():
        import ray

        start_ray()
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(_score)
        running = {remote.remote(*job): key for key, job in jobs.items()}
        answers: dict[Any, dict] = {}
        started = time.monotonic()
        while running:
            (done,), _ = ray.wait(list(running))
            key, answer = running.pop(done), ray.get(done)
            if "user_error" in answer:
                raise UserError(**answer["user_error"])
            answers[key] = means(answer["tasks"])
            meter = tqdm.format_meter(len(answers), len(jobs), time.monotonic() - started, ncols=0)
            log.info("%s %s", meter.strip(), key)
        return {key: answers[key] for key in jobs}
    found = {}
    for number, (key, (job, place)) in enumerate(jobs.items(), 1):
        log.info("[%d/%d] %s", number, len(jobs), key)
        found[key] = means(score(job, place=place))
        gc.collect()
    return found
