"""A few rows of every task of a mix, with their texts: what a reader looks at first.

Rows are taken from as many sources as there are, in turn, so that a small source shows beside a
large one; inside a source a query id is a hash, so its first rows are a random sample. The same mix
gives the same rows. Cost: one pass over three columns; only the texts of the sampled rows are read.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from datagen.mix_shards import Sharded, take_ordered
from datagen.store import Folder, Manifest, open_shard

SHOWN_POSITIVES = 3
SHOWN_NEGATIVES = 4


def sample_rows(folder: Folder, manifest: Manifest, *, per_task: int) -> dict[str, list[dict]]:
    """Task -> rows of MIX_ROW, at most `per_task`, whose documents are texts instead of numbers.

    Each row gains `stage`, and `positives` and `negatives` become lists of {title, text, score}
    beside `positive_count` and `negative_count`. A task is shown from the last stage that has it.
    """
    chosen: dict[str, list[tuple[str, int, str]]] = {}
    for stage in ("finetune", "pretrain"):
        for task, places in _choose(folder, manifest, stage, per_task=per_task).items():
            chosen.setdefault(task, [(shard, row, stage) for shard, row in places])
    rows = _read(folder, {place[:2] for places in chosen.values() for place in places})
    numbers = {n for row in rows.values() for n in _shown_numbers(row)}
    documents = _read_documents(folder, numbers)
    return {
        task: [_with_texts(rows[shard, row], documents, stage) for shard, row, stage in places]
        for task, places in sorted(chosen.items())
    }


def _choose(
    folder: Folder, manifest: Manifest, stage: str, *, per_task: int
) -> dict[str, list[tuple[str, int]]]:
    """Task -> (shard, row) of the rows to show, taken from (origin, source) in turn."""
    groups: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    keys = ["task", "origin", "source"]
    for shard in manifest.table(stage):
        frame = pl.DataFrame(open_shard(folder, shard.name).select(keys)).with_row_index("row")
        first = frame.group_by(keys).agg(pl.col("row").head(per_task)).sort(keys)
        for task, origin, source, rows in first.iter_rows():
            groups.setdefault((task, origin, source), []).extend((shard.name, row) for row in rows)
    found: dict[str, list[tuple[str, int]]] = {}
    for task in sorted({key[0] for key in groups}):
        queues = [places for key, places in sorted(groups.items()) if key[0] == task]
        found[task] = _in_turn(queues, per_task)
    return found


def _in_turn(queues: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """At most `count` items: the first of each queue (spread over all queues), then the second."""
    if len(queues) > count:
        return [queues[i * len(queues) // count][0] for i in range(count)]
    longest = max((len(queue) for queue in queues), default=0)
    items = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    return items[:count]


def _read(folder: Folder, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], dict]:
    """(shard, row) -> the row; each shard is opened once, which counts where it is downloaded."""
    by_shard: dict[str, list[int]] = {}
    for shard, row in sorted(places):
        by_shard.setdefault(shard, []).append(row)
    found = {}
    for shard, rows in by_shard.items():
        table = open_shard(folder, shard)
        for row in rows:
            found[shard, row] = table.slice(row, 1).to_pylist()[0]
    return found


def _read_documents(folder: Folder, numbers: set[int]) -> dict[int, dict]:
    """Documents of a mix by row number."""
    documents, rows = Sharded.of(folder, "documents"), np.array(sorted(numbers), np.int64)
    parts = [take_ordered(documents.open(i), own) for i, own in documents.places(rows)]
    found = chain.from_iterable(part.to_pylist() for part in parts)
    return dict(zip(rows.tolist(), found, strict=True))


def _shown_numbers(row: Mapping[str, Any]) -> list[int]:
    return row["positives"][:SHOWN_POSITIVES] + row["negatives"][:SHOWN_NEGATIVES]


def _with_texts(
    row: Mapping[str, Any], documents: Mapping[int, dict], stage: str
) -> dict[str, Any]:
    shown = dict(row, stage=stage)
    for side, limit in (("positive", SHOWN_POSITIVES), ("negative", SHOWN_NEGATIVES)):
        numbers, scores = row[f"{side}s"], row[f"{side}_scores"]
        shown[f"{side}_count"] = len(numbers)
        shown[f"{side}s"] = [
            {**documents[number], "score": score}
            for number, score in zip(numbers[:limit], scores[:limit], strict=True)
        ]
    return shown
