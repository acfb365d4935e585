"""Evaluation sets by name: task folders, BEIR folders, Hub datasets, and whole MTEB benchmarks.

    tasks/squad                         a task folder, or a folder of them
    beir/scifact                        a BEIR folder, or a folder of them
    hub:org/name[@revision][/config]    a dataset of the Hub
    mteb:MTEB(eng, v2), mteb:SciFact    a benchmark, or a task of one, at the revision it pins

The benchmarks' tasks are in `evaluation_sets.jsonl`, so naming them needs no other package.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, Protocol

from pyarrow.fs import FileType

from datagen.beir import BeirFolder, find_beir
from datagen.hub_sets import HubSet
from datagen.schema import UserError
from datagen.store import Folder
from datagen.task_folders import TaskFolder, TaskTexts, find_tasks

HUB, MTEB = "hub:", "mteb:"
LIST = "evaluation_sets.jsonl"


class EvaluationSet(Protocol):
    """One evaluation task, wherever it is."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    def identity(self) -> tuple[str, str]:
        """Its name, and a digest of its content."""

    def read(self) -> TaskTexts:
        """Its texts."""


def find_sets(name: str) -> list[EvaluationSet]:
    """The evaluation sets behind a path, URI, `hub:` id or `mteb:` name."""
    if name.startswith(HUB):
        return [HubSet.parse(name.removeprefix(HUB))]
    if name.startswith(MTEB):
        return [_mteb_set(task) for task in mteb_tasks(name.removeprefix(MTEB))]
    place = Folder(name)
    if place.filesystem.get_file_info(place.path()).type == FileType.File:
        raise UserError(
            found=f"{name} is a file",
            expected="a task folder, a BEIR folder, or a folder of them",
            do="name the folder",
            exit_status=2,
        )
    beir: list[EvaluationSet] = [BeirFolder(folder) for folder in find_beir(name)]
    return beir or [TaskFolder(folder) for folder in find_tasks(name)]


def distinct_sets(sets: Iterable[EvaluationSet]) -> dict[str, str]:
    """Digest of each set by name; UserError where two have one name."""
    digests: dict[str, str] = {}
    for found in sets:
        name, digest = found.identity()
        if digests.setdefault(name, digest) != digest:
            raise UserError(
                found=f"two tasks named {name!r}, one of them {found.place}",
                expected="a name of its own for each task",
                do="rename one in its task.json, or leave one out",
                exit_status=2,
            )
    return digests


@functools.cache
def listed_tasks() -> tuple[dict[str, Any], ...]:
    """The tasks of the listed benchmarks: name, type, benchmarks, repo, revision, splits, ..."""
    lines = files("datagen").joinpath(LIST).read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def mteb_tasks(name: str) -> list[dict[str, Any]]:
    """The listed tasks of a benchmark, or the one of that name."""
    found = [task for task in listed_tasks() if name in (task["name"], *task["benchmarks"])]
    if not found:
        benchmarks = sorted({name for task in listed_tasks() for name in task["benchmarks"]})
        raise UserError(
            found=f"{MTEB}{name}",
            expected="a task of, or one of " + ", ".join(f"{MTEB}{b}" for b in benchmarks),
            do=f"check the name, or name the dataset as {HUB}org/name",
            exit_status=2,
        )
    return found


def _mteb_set(task: dict[str, Any]) -> HubSet:
    return dataclasses.replace(
        HubSet.parse(task["repo"]),
        revision=task["revision"],
        splits=tuple(task["splits"]),
        name=task["name"],
    )
