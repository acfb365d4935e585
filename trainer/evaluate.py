"""Evaluate a sentence-transformers folder on task folders or benchmarks, with the scores of mteb.

A model trained with instructions (its saved prompts contain `Instruct: `) gets the instruction of
each task in the template it was trained with, `datagen.schema.format_query`: retrieval puts it on
the queries only; sts, bitext, clustering, classification and pair_classification put it on every
text, as mteb encodes both sides of those alike. Any other model gets its own saved prompts, looked
up as mteb does. What was used is written beside each score.

A result carries a fingerprint of weights, pooling, tokenizer, task files and settings; a second run
into the same folder takes results of the same fingerprint over and computes the rest.
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
from datagen.schema import UserError, format_query
from datagen.store import Folder
from trainer.benchmark import BenchmarkTask, find_benchmarks
from trainer.scoring import METRICS
from trainer.tasks import EvaluationTask, find_tasks, load_task
from trainer.text_encoder import TextEncoder, load_text_encoder, settings_digest, weights_digest

log = logging.getLogger("embedmix")

RESULTS = "results.json"
PARTIAL = "results.partial.json"
_LIBRARIES = ("mteb", "sentence-transformers", "transformers", "torch", "scikit-learn", "numpy")

Instructions = Literal["auto", "always", "never"]
Task = EvaluationTask | BenchmarkTask


def evaluate(
    model: str,
    tasks: str | Sequence[str],
    output: str,
    *,
    benchmarks: Sequence[str] = (),
    batch_size: int = 32,
    max_length: int | None = None,
    dtype: str | None = None,
    only: Sequence[str] = (),
    instructions: Instructions = "auto",
    widths: Sequence[int] = (),
) -> dict[str, Any]:
    """Score a model on task folders and benchmarks; writes `output/results.json`, one object each.

    `benchmarks` are names of mteb, loaded from a Hub. `max_length` in tokens and `dtype` (float32,
    bfloat16) default to what the model was saved with. `widths` are sizes of Matryoshka vectors to
    score as well; texts are encoded once for all of them. Returns `tasks` (the same list), `means`
    (main score per type, 0..1), `languages` (per language) and `results` (the path).
    """
    found = _find(tasks, benchmarks, only)
    identity = {
        "path": model,
        "sha256": weights_digest(model),
        "settings_sha256": settings_digest(model),
    }
    encoder = load_text_encoder(model, max_length=max_length, dtype=dtype, batch_size=batch_size)
    _refuse_widths(widths, encoder)
    encoder.keep_all = bool(widths)
    identity |= {"dtype": encoder.dtype, "max_length": encoder.model.max_seq_length}
    target = Folder(output)
    known = _known_results(target)
    results: list[dict[str, Any]] = []
    for number, place in enumerate(found, start=1):
        task = load_task(place) if isinstance(place, str) else place
        result = _evaluate_task(task, encoder, identity, instructions, known, widths)
        results.append(result)
        target.write_json(PARTIAL, results)
        score = "undefined" if result["main_score"] is None else f"{result['main_score']:.4f}"
        done = "up to date" if result["fingerprint"] in known else f"{result['seconds']:.1f} s"
        log.info(
            "evaluate: %d of %d: %s %s %s (%s)",
            number, len(found), result["task"], result["main_metric"], score, done,
        )  # fmt: skip
    target.write_json(RESULTS, results)
    target.delete(PARTIAL)
    means = {"means": type_means(results), "languages": language_means(results)}
    return {"tasks": results, **means, "results": target.path(RESULTS)}


def _find(
    tasks: str | Sequence[str], benchmarks: Sequence[str], only: Sequence[str]
) -> list[str | BenchmarkTask]:
    """Folders and tasks of benchmarks; every fault of the data shows before a model is loaded."""
    folders = find_tasks(tasks, only=only) if tasks or not benchmarks else []
    for folder in folders:
        load_task(folder)
    named = find_benchmarks(benchmarks) if benchmarks else []
    return [*folders, *(task for task in named if not only or task.type in only)]


def _refuse_widths(widths: Sequence[int], encoder: TextEncoder) -> None:
    full = encoder.model.get_embedding_dimension()
    if any(not 0 < width < full for width in widths):
        raise UserError(
            found=f"widths {list(widths)}",
            expected=f"numbers from 1 to {full - 1}: vectors have {full} values",
            do="mend --widths",
            exit_status=2,
        )


def type_means(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean main score per type, in the order of types; None where a score is undefined."""
    means: dict[str, float | None] = {}
    kinds = {result["type"] for result in results}
    for kind in [*(k for k in METRICS if k in kinds), *sorted(kinds - METRICS.keys())]:
        means[kind] = _mean([r["main_score"] for r in results if r["type"] == kind])
    return means


def language_means(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean main score per language, over the tasks (of a benchmark, the subsets) that have it."""
    scores: dict[str, list[float | None]] = {}
    for result in results:
        for part in result.get("subsets") or [result]:
            for language in part["languages"]:
                scores.setdefault(language, []).append(part["main_score"])
    return {language: _mean(scores[language]) for language in sorted(scores)}


def _mean(scores: Sequence[float | None]) -> float | None:
    return None if None in scores else fmean(scores)  # type: ignore[arg-type]


def _evaluate_task(
    task: Task,
    encoder: TextEncoder,
    identity: Mapping[str, Any],
    instructions: Instructions,
    known: Mapping[str, dict[str, Any]],
    widths: Sequence[int],
) -> dict[str, Any]:
    prompts = task_prompts(task, encoder.saved_prompts, instructions=instructions)
    versions = {"embedmix": __version__, **{name: version(name) for name in _LIBRARIES}}
    settings = {**identity, "path": None, "task": task.digest, "prompts": prompts} | versions
    settings |= {"widths": list(widths)} if widths else {}
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if fingerprint in known:
        return {**known[fingerprint], "model": dict(identity)}
    started = time.monotonic()
    task.load()
    scores, *cut = (
        task.score(encoder.for_task(prompts, width=width), batch_size=encoder.batch_size)
        for width in (None, *widths)
    )
    encoder.forget()
    task.unload()
    return {
        "task": task.name,
        "type": task.type,
        "languages": list(task.languages),
        "main_score": scores.pop("main_score"),
        "main_metric": task.main_metric,
        "subsets": scores.pop("subsets", None),
        "scores": scores,
        "matryoshka": {str(width): found for width, found in zip(widths, cut, strict=True)},
        "prompts": prompts,
        "rows": task.rows,
        "seconds": round(time.monotonic() - started, 2),
        "model": dict(identity),
        "versions": versions,
        "folder": task.folder,
        "revision": task.digest,
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
    task: Task, saved: Mapping[str, str], *, instructions: Instructions
) -> dict[str, str]:
    """The prompt in front of each side's texts: `query` and `document`, or `text` for both."""
    wanted = instructions == "always"
    if instructions == "auto":
        wanted = any("Instruct: " in prompt for prompt in saved.values())
    sides = ("query", "document") if task.two_sided else ("text",)
    if not wanted:
        return {side: _saved_prompt(task, saved, side) for side in sides}
    prompt = format_query(task.instruction, "")
    return {side: "" if side == "document" else prompt for side in sides}


def _saved_prompt(task: Task, saved: Mapping[str, str], side: str) -> str:
    from mteb.models.abs_encoder import get_prompt
    from mteb.types import PromptType

    kind = None if side == "text" else PromptType(side)
    return get_prompt(dict(saved), task.metadata, kind) or ""
