"""Which of several runs to merge, chosen by a score on held-out tasks.

Greedy soup (arXiv 2203.05482, recipe 1): the runs in the order of their scores; each is added to
the mean if the mean then scores at least as well. The result is never worse than the best run on
the tasks that chose it, so these must not be the tasks that it is reported on.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from trainer.merge import merge

log = logging.getLogger("embedmix")

Score = Callable[[str], float]


def greedy_soup(models: Sequence[str], output: str, *, score: Score) -> dict[str, Any]:
    """Merge the models whose weighted mean scores best; `score` takes a model folder.

    Returns the recipe of the merge with the scores: of each run alone, and of each mean tried.
    """
    if len(set(models)) < 2:
        raise UserError(
            found=f"{len(set(models))} models",
            expected="at least two different ones to choose from",
            do="name more models",
            exit_status=2,
        )
    alone = {model: score(model) for model in dict.fromkeys(models)}
    ranked = sorted(alone, key=lambda model: (-alone[model], model))
    chosen, best = [ranked[0]], alone[ranked[0]]
    tried: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=Path(output).absolute().parent) as place:
        for model in ranked[1:]:
            folder = f"{place}/{len(tried)}"
            merge([*chosen, model], folder)
            found = score(folder)
            shutil.rmtree(folder)
            tried.append({"added": model, "score": found, "kept": found >= best})
            log.info("soup: with %s %.4f, best so far %.4f", model, found, best)
            if found >= best:
                chosen, best = [*chosen, model], found
    recipe = merge(chosen, output)
    return {**recipe, "soup": {"alone": alone, "tried": tried, "score": best}}


def score_on(tasks: Sequence[str]) -> Score:
    """The mean of the main scores on folders of tasks, as `trainer evaluate` gives them."""
    from trainer.evaluate import evaluate

    def score(model: str) -> float:
        with tempfile.TemporaryDirectory() as place:
            found = evaluate(model, tasks, place)["tasks"]
        return sum(task["main_score"] for task in found) / len(found)

    return score
