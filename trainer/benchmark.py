"""Benchmarks of the mteb library by name (`MTEB(eng, v2)`): their tasks, loaded from a Hub.

Data, revisions, splits and scores are mteb's own; prompts, the encoder and what is written beside
each score are those of local folders (trainer/evaluate.py). A task is loaded when its turn comes
and let go after it. Of an aggregate its parts are scored. Whether a Hub answers is asked first,
which takes a second, unless HF_HUB_OFFLINE says that all data lies in its cache.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from datagen.schema import UserError
from trainer.scoring import METRICS, plain, score_subset, task_threads

TIMEOUT_S = 5.0
_OURS = {kind: ours for ours, (kind, _, _) in METRICS.items()}


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """One task of mteb's registry; `task` is mteb's object."""

    task: Any

    @property
    def name(self) -> str:
        return str(self.metadata.name)

    @property
    def type(self) -> str:
        """Our word where there is one, else mteb's in small letters: reranking, summarization."""
        kind = self.metadata.type
        return _OURS.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()

    @property
    def languages(self) -> tuple[str, ...]:
        by_subset = self.metadata.hf_subsets_to_langscripts.values()
        return tuple(sorted({code for part in by_subset for code in _codes(part)}))

    @property
    def instruction(self) -> str | None:
        told = self.metadata.prompt
        told = told.get("query") if isinstance(told, dict) else told
        return told or getattr(self.task, "abstask_prompt", None)

    @property
    def two_sided(self) -> bool:
        """Whether mteb tells queries from documents when it asks for vectors."""
        from mteb.abstasks import AbsTaskRetrieval

        return isinstance(self.task, AbsTaskRetrieval)

    @property
    def metadata(self) -> Any:
        return self.task.metadata

    @property
    def main_metric(self) -> str:
        return str(self.metadata.main_score)

    @property
    def rows(self) -> dict[str, int]:
        """Not counted: the revision says which rows there are."""
        return {}

    @property
    def folder(self) -> str:
        return f"hub:{self.metadata.dataset['path']}"

    @property
    def digest(self) -> str:
        return str(self.metadata.dataset["revision"])

    def load(self) -> None:
        """Fetch the data, or find it in the Hub's cache; UserError where neither works."""
        try:
            self.task.load_data()
        except (OSError, RuntimeError, ValueError) as error:  # the client wraps what stopped it
            raise UserError(
                found=f"{self.name} ({self.folder}) could not be loaded: {str(error)[:300]}",
                expected="its data at the Hub, or in its cache",
                do="run the same command again: finished tasks are kept; some need HF_TOKEN",
            ) from error

    def score(self, encoder: Any, *, batch_size: int) -> dict[str, Any]:
        """Scores by split and subset, and `main_score`: their mean."""
        parts = []
        with task_threads(self.type):
            for split in self.task.eval_splits:
                for subset in self.task.hf_subsets:
                    scores = score_subset(self.task, encoder, split, subset, batch_size=batch_size)
                    langs = self.metadata.hf_subsets_to_langscripts[subset]
                    parts.append({"split": split, "subset": subset, "languages": _codes(langs)})
                    parts[-1] |= {"main_score": scores["main_score"], "scores": scores}
        main = [part["main_score"] for part in parts]
        return plain({"main_score": None if None in main else fmean(main), "subsets": parts})

    def unload(self) -> None:
        self.task.unload_data()


def find_benchmarks(names: Sequence[str]) -> list[BenchmarkTask]:
    """The tasks of benchmarks, each once; UserError for a name mteb lacks, and without a Hub."""
    import mteb

    found: dict[str, BenchmarkTask] = {}
    for name in names:
        try:
            tasks = mteb.get_benchmark(name).tasks
        except KeyError as error:
            raise UserError(
                found=f"--benchmark {name!r}",
                expected=f"a benchmark of mteb ({error.args[0]})",
                do="name one of mteb.get_benchmarks()",
                exit_status=2,
            ) from error
        for task in _parts(tasks):
            if task.metadata.modalities != ["text"]:
                raise UserError(
                    found=f"{name}: {task.metadata.name} is of {task.metadata.modalities}",
                    expected="tasks of texts",
                    do="name another benchmark",
                    exit_status=2,
                )
            found.setdefault(task.metadata.name, BenchmarkTask(task=task))
    if found:
        _check_hub()
    return list(found.values())


def _parts(tasks: Any) -> Iterator[Any]:
    for task in tasks:
        inside = getattr(task.metadata, "tasks", None)
        yield from _parts(inside) if inside else [task]


def _codes(languages: Sequence[str]) -> list[str]:
    return [code.replace("-", "_") for code in languages]


def _check_hub() -> None:
    from huggingface_hub import constants, errors, get_session

    if constants.is_offline_mode():
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        get_session().head(endpoint, timeout=TIMEOUT_S)
    except (errors.HTTPError, OSError, RuntimeError) as error:
        raise UserError(
            found=f"no answer from {endpoint}: {error}",
            expected="a Hub that benchmarks are loaded from",
            do="name local folders with --tasks, set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 "
            "if its cache holds the data",
        ) from error
