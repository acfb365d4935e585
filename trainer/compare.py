"""Compare several results.json: one row per task and per mean of a type, one column per model.

The last rows are what leaderboards rank by: the mean over tasks, the mean over types, and the Borda
count (Colombo et al. 2022): on each task a model gets a point for every model it beats, half a
point for every tie.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from datagen.schema import UserError

UNDEFINED = "n/a"


def compare_languages(files: Sequence[str]) -> str:
    """A Markdown table of the mean main score x 100 per language, over tasks all models have."""
    from trainer.evaluate import language_means

    runs = [_read(file) for file in files]
    shared = set.intersection(*({result["task"] for result in run} for run in runs))
    means = [language_means([r for r in run if r["task"] in shared]) for run in runs]
    languages = sorted({language for found in means for language in found})
    body = [
        [language, str(_tasks_of(runs[0], shared, language)), *(_cell(m, language) for m in means)]
        for language in languages
    ]
    return _markdown(["language", "tasks", *_names(files, runs)], body)


def _tasks_of(run: Sequence[dict[str, Any]], shared: set[str], language: str) -> int:
    return sum(result["task"] in shared and language in result["languages"] for result in run)


def compare(files: Sequence[str]) -> str:
    """A Markdown table of main scores x 100; a dash marks a task that a model was not scored on.

    A mean covers the tasks that every model has, so that columns can be compared.
    """
    from trainer.evaluate import type_means

    runs = [_read(file) for file in files]
    names = _names(files, runs)
    tasks: dict[str, str] = {}  # name -> type
    for run in runs:
        tasks |= {result["task"]: result["type"] for result in run}
    scores = [{result["task"]: result["main_score"] for result in run} for run in runs]
    shared = {task for task in tasks if all(task in found for found in scores)}
    means = [type_means([r for r in run if r["task"] in shared]) for run in runs]
    order = sorted(tasks, key=lambda task: (tasks[task], task))
    body = [[tasks[t], t, *(_cell(found, t) for found in scores)] for t in order]
    kinds = sorted({tasks[task] for task in shared})
    counts = {kind: sum(tasks[t] == kind for t in shared) for kind in kinds}
    for kind in kinds:
        cells = [_cell(found, kind) for found in means]
        body.append([kind, f"mean of {counts[kind]} shared tasks", *cells])
    return _markdown(["type", "task", *names], [*body, *_overall(scores, tasks, sorted(shared))])


def _overall(
    scores: Sequence[dict[str, float | None]], types: dict[str, str], shared: Sequence[str]
) -> list[list[str]]:
    """Means over tasks and types and Borda counts, over the tasks with a score of every model."""
    defined = [task for task in shared if all(found[task] is not None for found in scores)]
    if not defined:
        return []
    table = np.array([[found[task] for task in defined] for found in scores], dtype=float)
    own = np.array([types[task] for task in defined])
    kinds = np.mean([table[:, own == kind].mean(axis=1) for kind in np.unique(own)], axis=0)
    borda = (rankdata(table, axis=0) - 1).sum(axis=1)  # ties share their places
    count = f"of {len(defined)} shared tasks"
    return [
        ["all", f"mean {count}", *(f"{100 * mean:.2f}" for mean in table.mean(axis=1))],
        ["all", "mean of their types", *(f"{100 * mean:.2f}" for mean in kinds)],
        ["all", f"Borda count {count}", *(f"{points:g}" for points in borda)],
    ]


def _read(file: str) -> list[dict[str, Any]]:
    path = Path(file) / "results.json" if Path(file).is_dir() else Path(file)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, list) and all(
            {"task", "type", "main_score"} <= {*r} for r in results
        ):
            return results
        found = f"{path} is another kind of JSON"
    except (OSError, ValueError) as error:
        found = f"{path}: {error}"
    raise UserError(
        found=found,
        expected="a results.json written by trainer evaluate, or its folder",
        do="check the path",
        exit_status=2,
    )


def _names(files: Sequence[str], runs: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Column names: the models' folder names, with the place of the results where two are alike."""
    names = [
        Path(run[0]["model"]["path"]).name if run and "model" in run[0] else file
        for file, run in zip(files, runs, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({file})"
        for name, file in zip(names, files, strict=True)
    ]


def _cell(scores: dict[str, float | None], key: str) -> str:
    if key not in scores:
        return "-"
    score = scores[key]
    return UNDEFINED if score is None else f"{100 * score:.2f}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(line(row) for row in [head, rule, *body])
