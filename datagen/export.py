"""Write a stage of a mix in the layout of another trainer, with texts in place of row numbers.

The rows of each task and source become files of their own, read in blocks of some thousand: their
documents are gathered from the shards, so memory does not grow with the mix. Everything is written
into a folder beside the one asked for, which gets its name when all is there: what has the name is
whole. Layouts are in datagen.export_layouts.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.mix_shards import Sharded, take_ordered
from datagen.schema import MIX_DOCUMENT, STAGES, UserError
from datagen.store import Folder, Manifest, read_manifest

BLOCK_ROWS = 8192
ABOUT = "export.json"


@dataclass(frozen=True)
class Mix:
    """A finished mix: its manifest, its documents, and its stages."""

    folder: Folder
    manifest: Manifest
    documents: Sharded
    stages: dict[str, Sharded]

    @classmethod
    def open(cls, uri: str) -> "Mix":
        """UserError (exit status 2) when the folder is not a mix."""
        folder = Folder(uri)
        manifest = read_manifest(folder)
        found = [stage for stage in STAGES if manifest.table(stage)]
        if not found or not manifest.table("documents"):
            raise UserError(
                found=f"{uri} has the tables {sorted({s.table for s in manifest.shards})}",
                expected="a finished mix: documents, and pretrain or finetune",
                do="name the folder `mix` of a build's output",
                exit_status=2,
            )
        stages = {stage: Sharded.of(folder, stage) for stage in found}
        return cls(folder, manifest, Sharded.of(folder, "documents"), stages)

    def stage(self, name: str | None) -> str:
        """The stage of that name, or the last one; UserError when the mix does not have it."""
        name = name or list(self.stages)[-1]
        if name not in self.stages:
            raise UserError(
                found=f"{self.folder.uri} has no stage {name!r}",
                expected="one of " + ", ".join(self.stages),
                do="name one of these",
                exit_status=2,
            )
        return name

    def read_documents(self, numbers: np.ndarray) -> pa.Table:
        """The documents of ascending row numbers."""
        places = self.documents.places(numbers)
        parts = [take_ordered(self.documents.open(shard), rows) for shard, rows in places]
        return pa.concat_tables([MIX_DOCUMENT.empty_table(), *parts]).combine_chunks()


@dataclass(frozen=True)
class Group:
    """The rows of one task and source of a stage, and the name that its files have."""

    mix: Mix
    stage: str
    task: str
    source: str
    name: str
    rows: tuple[tuple[int, int], ...]  # runs of rows: first, one after the last

    def blocks(self) -> Iterator[pa.Table]:
        """Rows of MIX_ROW, some thousand at a time."""
        table = self.mix.stages[self.stage]
        for first, last in self.rows:
            for start in range(first, last, BLOCK_ROWS):
                rows = np.arange(start, min(start + BLOCK_ROWS, last))
                parts = [take_ordered(table.open(s), r) for s, r in table.places(rows)]
                yield pa.concat_tables(parts).combine_chunks()

    def numbers(self) -> np.ndarray:
        """Row numbers of all documents that the rows refer to, ascending."""
        seen = np.zeros(len(self.mix.documents), dtype=bool)
        for block in self.blocks():
            for name in ("positives", "negatives"):
                seen[pc.list_flatten(block[name]).to_numpy()] = True
        return np.flatnonzero(seen)

    def instructions(self) -> set[str | None]:
        """The instructions that rows carry; None where one carries none."""
        return {text for b in self.blocks() for text in b["instruction"].unique().to_pylist()}


def groups(mix: Mix, stage: str) -> list[Group]:
    """The tasks and sources of a stage, in the order of their names."""
    runs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    start, table = 0, mix.stages[stage]
    for shard in range(len(table.names)):
        frame = pl.DataFrame(table.open(shard).select(["task", "source"]))
        found = frame.select(pl.struct("task", "source").rle().alias("run")).unnest("run")
        for rows, key in found.iter_rows():
            runs.setdefault((key["task"], key["source"]), []).append((start, start + rows))
            start += rows
    names = file_names(runs)
    return [
        Group(mix, stage, task, source, names[task, source], tuple(found))
        for (task, source), found in sorted(runs.items())
    ]


def file_names(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name that any file system takes for each task and source, no two of them the same."""
    names: dict[tuple[str, str], str] = {}
    for task, source in sorted(keys):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{task}-{source}").strip(".")
        name, number = plain, 2
        while name.lower() in {other.lower() for other in names.values()}:
            name, number = f"{plain}-{number}", number + 1
        names[task, source] = name
    return names


Writer = Callable[[Group, Path, int], dict[str, Any]]


def export_mix(
    uri: str,
    output: str,
    *,
    writer: Writer,
    layout: str,
    stage: str | None = None,
    negatives: int | None = None,
) -> dict[str, Any]:
    """Write one stage of a mix into a new folder; gives what was written, and what was not.

    `negatives` is how many each row has at least (rows with fewer are left out, counted) and, where
    a layout has a column for each, at most; without it, what the stage asks of every row.
    """
    mix = Mix.open(uri)
    stage = mix.stage(stage)
    count = _negatives_of(mix.manifest, stage) if negatives is None else negatives
    if count < 1:
        raise UserError(
            found=f"{count} negatives",
            expected="at least 1",
            do="mend --negatives",
            exit_status=2,
        )
    target = _new_folder(output)
    place = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    place.mkdir(parents=True)
    try:
        files = [
            {"task": group.task, "source": group.source, **writer(group, place, count)}
            for group in groups(mix, stage)
        ]
        about = {
            "layout": layout,
            "mix": mix.manifest.digest,
            "stage": stage,
            "negatives": count,
            "rows": sum(file["rows"] for file in files),
            "left_out": sum(file["left_out"] for file in files),
            "files": files,
        }
        Folder(str(place)).write_json(ABOUT, about)
        os.rename(place, target)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {**about, "output": str(target)}


def _negatives_of(manifest: Manifest, stage: str) -> int:
    told = {one["name"]: one["negatives"] for one in manifest.config.get("stages", [])}
    return told.get(stage, 1)


def _new_folder(output: str) -> Path:
    target = Path(output).absolute()
    if "://" in output or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(
            found=f"--output {output}",
            expected="a local folder that is not there yet, or an empty one",
            do="choose another --output, or delete it",
            exit_status=2,
        )
    return target


def enough(block: pa.Table, negatives: int) -> pa.Table:
    """The rows with at least as many negatives, and a positive."""
    counts = (pc.list_value_length(block[n]).to_numpy() for n in ("negatives", "positives"))
    many, some = counts
    return block.filter(pa.array((many >= negatives) & (some > 0)))


def texts(mix: Mix, numbers: Sequence[np.ndarray]) -> list[pa.Array]:
    """Title and text of documents as an encoder sees them, for each array of row numbers."""
    distinct, places = np.unique(np.concatenate(numbers), return_inverse=True)
    documents = mix.read_documents(distinct)
    title, text = documents["title"], documents["text"]
    titled = pc.greater(pc.utf8_length(pc.fill_null(title, "")), 0)
    joined = pc.binary_join_element_wise(pc.fill_null(title, ""), text, "\n")
    whole = pc.if_else(titled, joined, text).combine_chunks()
    bounds = np.cumsum([len(part) for part in numbers])[:-1]
    return [whole.take(pa.array(part)) for part in np.split(places, bounds)]
