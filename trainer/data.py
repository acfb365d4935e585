"""Read a mix for training: memory-mapped shards, row numbers for ids, a batch plan that is data.

The plan of an epoch is a list of row numbers per batch, made at once from (seed, epoch): its length
is exact, and resuming is an index into it. Batches are homogeneous: rows of one source, and what is
left over of the sources of a task together, so that a hard batch is not diluted by an easy task.
Nothing is looked up in a dict: positives and negatives are row numbers of the documents table, and
a text becomes a Python string only when its batch comes up.

Which texts carry the instruction is the mix's decision: queries where `instruction` is not null,
documents where the row is also `symmetric`. The mix sets that for sts, bitext and clustering. The
papers say it for STS and leave bitext open; both sides carry it here too, since evaluation encodes
both sides of bitext with one prompt.

Cost: one sort of the row numbers an epoch, about 40 bytes of memory a row.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.schema import (
    MIX_DOCUMENT,
    MIX_ROW,
    UserError,
    check_schema,
    format_document,
    format_query,
)
from datagen.store import Folder, open_shard, read_manifest

log = logging.getLogger("embedmix")

_ROW_COLUMNS = (
    *("query_id", "task", "instruction", "query", "symmetric", "in_batch"),
    *("positives", "positive_scores", "negatives", "negative_scores"),
)


class Rows:
    """Random access by row number over the memory-mapped shards of one table of a mix."""

    def __init__(self, folder: Folder, table: str, schema: pa.Schema):
        shards = read_manifest(folder).table(table)
        if not shards:
            raise UserError(
                found=f"{folder.uri} has no rows in {table!r}",
                expected="a mix with that table",
                do="build the mix with this stage, or leave the stage out of the training recipe",
            )
        self.table = f"{folder.uri}/{table}"
        self.parts = [open_shard(folder, shard.name) for shard in shards]
        for part in self.parts:
            check_schema(part, schema, where=self.table)
        self.starts = np.cumsum([0] + [part.num_rows for part in self.parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column over all shards, not copied."""
        return pa.chunked_array([chunk for part in self.parts for chunk in part[name].chunks])

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The named columns of the given rows, in the given order."""
        numbers = np.asarray(rows, dtype=np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise UserError(
                found=f"rows {numbers.min()} to {numbers.max()} of {self.table} referred to",
                expected=f"row numbers from 0 to {len(self) - 1}",
                do="check the mix with `datagen verify`, and build it again",
            )
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        places = zip(shards.tolist(), (numbers - self.starts[shards]).tolist(), strict=True)
        return [
            {name: self.parts[shard][name][at].as_py() for name in columns} for shard, at in places
        ]


@dataclass(frozen=True, kw_only=True)
class Example:
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
    and counted in `skipped`.
    """

    def __init__(self, mix: str, stage: str, *, negatives: int, draw: bool = False):
        folder = Folder(mix)
        self.rows = Rows(folder, stage, MIX_ROW)
        self.documents = Rows(folder, "documents", MIX_DOCUMENT)
        self.negatives, self.draw = negatives, draw
        self.tasks = _codes(self.rows.column("task"))
        self.sources = _codes(self.rows.column("source"))
        positive = _lengths(self.rows.column("positives")) > 0
        usable = positive & (_lengths(self.rows.column("negatives")) > 0)
        self.usable = np.flatnonzero(usable)
        self.skipped = {
            "no_positive": int((~positive).sum()),
            "no_negative": int((positive & ~usable).sum()),
        }
        if any(self.skipped.values()):
            log.warning("%s: rows skipped: %s", self.rows.table, self.skipped)
        if not len(self.usable):
            raise UserError(
                found=f"no row of {self.rows.table} has a positive and a negative",
                expected="mined rows",
                do="build the mix again with the mining step",
            )

    def plan(
        self, *, seed: int, epoch: int, batch_size: int, max_rows: int | None = None
    ) -> list[np.ndarray]:
        """The row numbers of each batch of one epoch, see `batch_plan`."""
        batches = batch_plan(
            self.tasks[self.usable],
            self.sources[self.usable],
            seed=seed,
            epoch=epoch,
            batch_size=batch_size,
            max_rows=max_rows,
        )
        return [self.usable[batch] for batch in batches]

    def examples(self, rows: Sequence[int], *, seed: int, epoch: int) -> list[Example]:
        """Texts of the given rows; with several positives, one is drawn by (seed, epoch, query)."""
        found = self.rows.take(rows, _ROW_COLUMNS)
        return [self._example(row, seed=seed, epoch=epoch) for row in found]

    def _example(self, row: dict[str, Any], *, seed: int, epoch: int) -> Example:
        key = f"{seed}/{epoch}/{row['query_id']}".encode()
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        positive = draw % len(row["positives"])
        order = range(len(row["negatives"]))
        if self.draw:
            order = np.random.default_rng(draw).permutation(len(order)).tolist()
        chosen = order[: self.negatives]
        numbers = [row["positives"][positive], *(row["negatives"][n] for n in chosen)]
        scores = [row["positive_scores"][positive], *(row["negative_scores"][n] for n in chosen)]
        documents = self.documents.take(numbers, ("title", "text", "cluster"))
        texts = [format_document(d["title"], d["text"]) for d in documents]
        if row["symmetric"]:
            texts = [format_query(row["instruction"], text) for text in texts]
        return Example(
            query_id=row["query_id"],
            task=row["task"],
            in_batch=row["in_batch"],
            documents=tuple(numbers),
            clusters=tuple(d["cluster"] for d in documents),
            scores=tuple(scores),
            known=tuple(row["positives"]),
            query=format_query(row["instruction"], row["query"]),
            positive=texts[0],
            negatives=tuple(texts[1:]),
        )


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Small integers for the values of a text column, in their alphabetical order."""
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    ranks = np.argsort(np.argsort(np.asarray(encoded.dictionary.to_pylist())))
    return ranks[encoded.indices.to_numpy(zero_copy_only=False)].astype(np.int32)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(column).to_numpy()


def batch_plan(
    tasks: np.ndarray,
    sources: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    max_rows: int | None = None,
) -> list[np.ndarray]:
    """Positions per batch, homogeneous in task and as far as possible in source.

    Every row is used exactly once; `max_rows` takes a seeded part of the rows, another one each
    epoch. Full batches hold one source; the remainders of a task's sources are cut into batches of
    that task, the last of which may be smaller. The order of batches is shuffled.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(tasks))[:max_rows]
    batches: list[np.ndarray] = []
    for of_task in _groups(order, tasks):
        left = []
        for rows in _groups(of_task, sources):
            whole = len(rows) - len(rows) % batch_size
            batches += [rows[i : i + batch_size] for i in range(0, whole, batch_size)]
            left.append(rows[whole:])
        rest = generator.permutation(np.concatenate(left))
        batches += [rest[i : i + batch_size] for i in range(0, len(rest), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def _groups(rows: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """The rows split by their key, in the order of keys, each part in the order given."""
    sorted_rows = rows[np.argsort(keys[rows], kind="stable")]
    borders = np.flatnonzero(np.diff(keys[sorted_rows])) + 1
    return np.split(sorted_rows, borders) if len(rows) else []
