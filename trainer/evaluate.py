"""Evaluate a sentence-transformers folder on local task folders, with the scores of mteb.

A model trained with instructions (its saved prompts contain `Instruct: `) gets the instruction of
each task in the template it was trained with, `datagen.schema.format_query`: retrieval puts it on
the queries only; sts, bitext, clustering, classification and pair_classification put it on every
text, as mteb encodes both sides of those alike. Any other model gets its own saved prompts, looked
up as mteb does. What was used is written beside each score.

A result carries a fingerprint of weights, task files and settings; a second run into the same
folder takes results of the same fingerprint over and computes the rest.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import fmean
from typing import Any, Literal

from datagen import __version__
from datagen.schema import format_query
from datagen.store import Folder
from trainer.scoring import METRICS, mteb_metadata, score_task
from trainer.tasks import EvaluationTask, find_tasks, load_task
from trainer.text_encoder import TextEncoder, load_text_encoder, weights_digest

log = logging.getLogger("embedmix")

RESULTS = "results.json"
PARTIAL = "results.partial.json"
_LIBRARIES = ("mteb", "sentence-transformers", "transformers", "torch", "scikit-learn", "numpy")

Instructions = Literal["auto", "always", "never"]


def evaluate(
    model: str,
    tasks: str | Sequence[str],
    output: str,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    dtype: str | None = None,
    only: Sequence[str] = (),
    instructions: Instructions = "auto",
) -> dict[str, Any]:
    """Score a model on task folders; writes `output/results.json`, a list of one object per task.

    `max_length` in tokens and `dtype` (float32, bfloat16) default to what the model was saved with.
    Returns `tasks` (the same list), `means` (main score per type, 0..1) and `results` (the path).
    """
    folders = find_tasks(tasks, only=only)
    for folder in folders:
        load_task(folder)  # every fault of the data shows before the model is loaded
    identity = {"path": model, "sha256": weights_digest(model)}
    encoder = load_text_encoder(model, max_length=max_length, dtype=dtype, batch_size=batch_size)
    identity |= {"dtype": encoder.dtype, "max_length": encoder.model.max_seq_length}
    target = Folder(output)
    known = _known_results(target)
    results: list[dict[str, Any]] = []
    for number, folder in enumerate(folders, start=1):
        result = _evaluate_task(load_task(folder), encoder, identity, instructions, known)
        results.append(result)
        target.write_json(PARTIAL, results)
        score = "undefined" if result["main_score"] is None else f"{result['main_score']:.4f}"
        done = "up to date" if result["fingerprint"] in known else f"{result['seconds']:.1f} s"
        log.info(
            "evaluate: %d of %d: %s %s %s (%s)",
            number, len(folders), result["task"], result["main_metric"], score, done,
        )  # fmt: skip
    target.write_json(RESULTS, results)
    target.delete(PARTIAL)
    return {"tasks": results, "means": type_means(results), "results": target.path(RESULTS)}


def type_means(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean main score per type, in the order of types; None where a score is undefined."""
    means: dict[str, float | None] = {}
    for kind in METRICS:
        scores = [result["main_score"] for result in results if result["type"] == kind]
        if scores:
            means[kind] = None if None in scores else fmean(scores)
    return means


def _evaluate_task(
    task: EvaluationTask,
    encoder: TextEncoder,
    identity: Mapping[str, Any],
    instructions: Instructions,
    known: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    prompts = task_prompts(task, encoder.saved_prompts, instructions=instructions)
    versions = {"embedmix": __version__, **{name: version(name) for name in _LIBRARIES}}
    settings = {**identity, "path": None, "task": task.digest, "prompts": prompts} | versions
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if fingerprint in known:
        return {**known[fingerprint], "model": dict(identity)}
    started = time.monotonic()
    scores = score_task(task, encoder.for_task(prompts), batch_size=encoder.batch_size)
    return {
        "task": task.name,
        "type": task.type,
        "languages": list(task.languages),
        "main_score": scores.pop("main_score"),
        "main_metric": METRICS[task.type][2],
        "scores": scores,
        "prompts": prompts,
        "rows": task.rows,
        "seconds": round(time.monotonic() - started, 2),
        "model": dict(identity),
        "versions": versions,
        "folder": task.folder,
        "fingerprint": fingerprint,
    }


def _known_results(target: Folder) -> dict[str, dict[str, Any]]:
    """Results of earlier runs into the same folder, by fingerprint."""
    found: dict[str, dict[str, Any]] = {}
    for name in (RESULTS, PARTIAL):
        if target.exists(name):
            found |= {result["fingerprint"]: result for result in target.read_json(name)}
    return found


def task_prompts(
    task: EvaluationTask, saved: Mapping[str, str], *, instructions: Instructions
) -> dict[str, str]:
    """The prompt in front of each side's texts: `query` and `document`, or `text` for both."""
    wanted = instructions == "always"
    if instructions == "auto":
        wanted = any("Instruct: " in prompt for prompt in saved.values())
    sides = ("query", "document") if task.type == "retrieval" else ("text",)
    if not wanted:
        return {side: _saved_prompt(task, saved, side) for side in sides}
    prompt = format_query(task.instruction, "")
    return {side: "" if side == "document" else prompt for side in sides}


def _saved_prompt(task: EvaluationTask, saved: Mapping[str, str], side: str) -> str:
    from mteb.models.abs_encoder import get_prompt
    from mteb.types import PromptType

    kind = None if side == "text" else PromptType(side)
    return get_prompt(dict(saved), mteb_metadata(task), kind) or ""
