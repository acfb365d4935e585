"""Compare several results.json: one row per task and per mean of a type, one column per model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datagen.schema import UserError

UNDEFINED = "n/a"


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
    return _markdown(["type", "task", *names], body)


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
