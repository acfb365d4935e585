"""Read a mix for training: memory-mapped shards, row numbers for ids, a batch plan that is data.

The plan of an epoch is a list of row numbers per batch, made at once from (seed, epoch): its length
is exact, and resuming is an index into it. Batches are homogeneous: rows of one source, and what is
left over of the sources of a task together, so that a hard batch is not diluted by an easy task.
Nothing is looked up in a dict: positives and negatives are row numbers of the documents table, and
a text becomes a Python string only when its batch comes up. Tasks and sources of the rows are not
read: the mix lies in blocks of one task and source, and its manifest says where.

Which texts carry the instruction is the mix's decision: queries where `instruction` is not null,
documents where the row is also `symmetric`. The mix sets that for sts, bitext and clustering. The
papers say it for STS and leave bitext open; both sides carry it here too, since evaluation encodes
both sides of bitext with one prompt.

Cost: 5 bytes of memory a row, and while an epoch is planned 20; 15 microseconds for a row of six
texts.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from datagen.schema import (
    MIX_DOCUMENT,
    MIX_ROW,
    UserError,
    format_document,
    format_query,
)
from datagen.store import Folder, open_shard, read_manifest
from trainer.batches import batch_plan
from trainer.distinct import read_positives
from trainer.rows import Rows

log = logging.getLogger("embedmix")

_ROW_COLUMNS = (
    *("query_id", "instruction", "query", "symmetric", "in_batch"),
    *("positives", "positive_scores", "negatives", "negative_scores"),
)


class Example(NamedTuple):
    """The texts of one training row, as the encoder sees them, and what is known of them.

    `documents` (row numbers), `clusters` and `scores` are of the positive and the negatives, in
    that order; `known` are the row numbers of all positives. `scores` are the teacher's.
    """

    query_id: str
    task: str
    in_batch: bool
    documents: tuple[int, ...]
    clusters: tuple[str | None, ...]
    scores: tuple[float, ...]
    known: tuple[int, ...]
    query: str
    positive: str
    negatives: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Query, positive, negatives."""
        return (self.query, self.positive, *self.negatives)


class StageData:
    """One stage of a mix as training examples with at most `negatives` negatives each.

    They are the first ones, which are the hardest; with `draw`, drawn by (seed, epoch, query).

    Rows without a positive or without a negative teach nothing; they are left out of every plan,
    and counted in `skipped`. `tasks` and `sources` are small integers, one a row, ordered by name.
    """

    def __init__(self, mix: str, stage: str, *, negatives: int, draw: bool = False):
        folder = Folder(mix)
        self.rows = Rows(folder, stage, MIX_ROW, _ROW_COLUMNS)
        self.documents = Rows(folder, "documents", MIX_DOCUMENT, ("title", "text", "cluster"))
        self.negatives, self.draw = negatives, draw
        self.tasks, self.sources, self.task_names = _codes(folder, stage)
        usable, self.skipped = _usable(folder, stage)
        self.usable = None if usable.all() else np.flatnonzero(usable)
        if any(self.skipped.values()):
            log.warning("%s: rows skipped: %s", self.rows.table, self.skipped)
        if not usable.any():
            raise UserError(
                found=f"no row of {self.rows.table} has a positive and a negative",
                expected="mined rows",
                do="build the mix again with the mining step",
            )

    def plan(
        self, *, seed: int, epoch: int, batch_size: int, max_rows: int | None = None
    ) -> list[np.ndarray]:
        """The row numbers of each batch of one epoch, see `batch_plan`."""
        return batch_plan(
            self.tasks,
            self.sources,
            usable=self.usable,
            positives=read_positives(self.rows),
            seed=seed,
            epoch=epoch,
            batch_size=batch_size,
            max_rows=max_rows,
        )

    def examples(self, rows: Sequence[int] | np.ndarray, *, seed: int, epoch: int) -> list[Example]:
        """Texts of the given rows; with several positives, one is drawn by (seed, epoch, query)."""
        numbers = np.asarray(rows, dtype=np.int64)
        ids = self.rows.strings(numbers, "query_id")
        draws = [_draw(f"{seed}/{epoch}/{key}") for key in ids]
        known, positives, scores = self._positives(numbers, draws)
        negatives, negative_scores = self._negatives(numbers, draws)
        counts = [1 + len(some) for some in negatives]
        chosen = [[one, *some] for one, some in zip(positives, negatives, strict=True)]
        documents = self._documents(np.array([n for some in chosen for n in some], dtype=np.int64))
        columns = (self.rows.strings(numbers, n) for n in ("instruction", "query"))
        tasks = [self.task_names[code] for code in self.tasks[numbers].tolist()]
        flags = (self.rows.flags(numbers, n).tolist() for n in ("in_batch", "symmetric"))
        examples, at = [], 0
        for i, (task, instruction, query, in_batch, both) in enumerate(
            zip(tasks, *columns, *flags, strict=True)
        ):
            own = documents[at : at + counts[i]]
            at += counts[i]
            texts = [format_query(instruction, text) if both else text for text, _ in own]
            examples.append(
                Example(
                    query_id=ids[i] or "",
                    task=task,
                    in_batch=in_batch,
                    documents=tuple(chosen[i]),
                    clusters=tuple(cluster for _, cluster in own),
                    scores=(scores[i], *negative_scores[i]),
                    known=tuple(known[i]),
                    query=format_query(instruction, query or ""),
                    positive=texts[0],
                    negatives=tuple(texts[1:]),
                )
            )
        return examples

    def sample(self, count: int) -> list[Example]:
        """Examples of at most `count` usable rows, evenly spaced: every source by its share."""
        total = len(self.tasks) if self.usable is None else len(self.usable)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
        rows = chosen if self.usable is None else self.usable[chosen]
        return self.examples(rows, seed=0, epoch=0)

    def _positives(
        self, numbers: np.ndarray, draws: Sequence[int]
    ) -> tuple[list[list[int]], list[int], list[float]]:
        """For each row all its positives, the one that is drawn, and its score."""
        known, scores = (
            _split(*self.rows.lists(numbers, f"positive{s}")) for s in ("s", "_scores")
        )
        at = [draw % len(some) for draw, some in zip(draws, known, strict=True)]
        drawn = [some[i] for some, i in zip(known, at, strict=True)]
        return known, drawn, [some[i] for some, i in zip(scores, at, strict=True)]

    def _negatives(
        self, numbers: np.ndarray, draws: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """For each row its negatives, the first ones or those drawn, and their scores."""
        most = None if self.draw else self.negatives
        found, scores = (
            _split(*self.rows.lists(numbers, f"negative{s}", most=most)) for s in ("s", "_scores")
        )
        if not self.draw:
            return found, scores
        orders = [
            np.random.default_rng(draw).permutation(len(some))[: self.negatives].tolist()
            for draw, some in zip(draws, found, strict=True)
        ]
        return (
            [[some[i] for i in order] for some, order in zip(found, orders, strict=True)],
            [[some[i] for i in order] for some, order in zip(scores, orders, strict=True)],
        )

    def _documents(self, numbers: np.ndarray) -> list[tuple[str, str | None]]:
        """Text as the encoder sees it, and cluster, of each document."""
        columns = (self.documents.strings(numbers, name) for name in ("title", "text", "cluster"))
        return [
            (format_document(title, text or ""), cluster)
            for title, text, cluster in zip(*columns, strict=True)
        ]


def _split(values: np.ndarray, counts: np.ndarray) -> list[list[Any]]:
    """The values of each row, as Python numbers."""
    flat, ends = values.tolist(), np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def _codes(folder: Folder, stage: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Small integers for the task and the source of each row, in their alphabetical order; and the
    names of the tasks."""
    manifest = read_manifest(folder)
    told = manifest.stats.get("blocks", {}).get(stage)
    found = told or _read_blocks(folder, [shard.name for shard in manifest.table(stage)])
    rows = [block["rows"] for block in found]
    tasks, sources = ([block[key] for block in found] for key in ("task", "source"))
    return _repeated(tasks, rows), _repeated(sources, rows), sorted(set(tasks))


def _repeated(names: Sequence[str], rows: Sequence[int]) -> np.ndarray:
    rank = {name: i for i, name in enumerate(sorted(set(names)))}
    kind = np.int16 if len(rank) < 2**15 else np.int32
    return np.repeat(np.array([rank[name] for name in names], kind), rows)


def _read_blocks(folder: Folder, shards: Sequence[str]) -> list[Mapping[str, Any]]:
    """The blocks of a mix whose manifest does not tell them."""
    blocks: list[Mapping[str, Any]] = []
    for name in shards:
        table = open_shard(folder, name).select(["task", "source"])
        runs = pc.run_end_encode(pc.binary_join_element_wise(*table.columns, "\x1f"))
        for chunk in runs.chunks:
            sizes = np.diff(chunk.run_ends.to_numpy(), prepend=0).tolist()
            for value, rows in zip(chunk.values.to_pylist(), sizes, strict=True):
                task, source = value.split("\x1f", 1)
                blocks.append({"task": task, "source": source, "rows": rows})
    return blocks


def _usable(folder: Folder, stage: str) -> tuple[np.ndarray, dict[str, int]]:
    """(rows with a positive and a negative, how many others).

    Each shard is mapped for this alone: pages that were only looked at for lengths are given back.
    """
    masks, skipped = [], {"no_positive": 0, "no_negative": 0}
    for shard in read_manifest(folder).table(stage):
        table = open_shard(folder, shard.name)
        positive, negative = (
            pc.list_value_length(table[name]).to_numpy() > 0 for name in ("positives", "negatives")
        )
        masks.append(positive & negative)
        skipped["no_positive"] += int((~positive).sum())
        skipped["no_negative"] += int((positive & ~negative).sum())
    return np.concatenate(masks), skipped
