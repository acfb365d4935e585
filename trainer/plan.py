"""The batches of a stage, in order: what each process reads of them, one batch ahead.

The plan is data: (epoch, row numbers) of every batch, the same on all processes, made from the
seed. A process reads and tokenises its part of each batch while the batch before is computed.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from trainer.data import Example, StageData
from trainer.distributed import own_rows
from trainer.encoder import marked, tokenize
from trainer.train import StageConfig

Plan = Sequence[tuple[int, np.ndarray]]


class Share(NamedTuple):
    """What one process has of a batch of `total` rows: texts, and their token ids."""

    total: int
    task: str
    examples: list[Example]
    ids: list[list[list[int]]]


def stage_plan(data: StageData, stage: StageConfig, seed: int) -> Plan:
    """(epoch, row numbers) of every batch of a stage."""
    return [
        (epoch, rows)
        for epoch in range(stage.epochs)
        for rows in data.plan(
            seed=seed, epoch=epoch, batch_size=stage.batch_size, max_rows=stage.max_rows
        )
    ]


def shares(
    data: StageData,
    plan: Plan,
    *,
    tokenizer: Any,
    max_length: int,
    seed: int,
    pool_instruction: bool = True,
) -> Iterator[Share]:
    """Our part of each batch of a plan; ids are marked where instructions stay out of a mean."""

    def read(epoch: int, rows: np.ndarray) -> Share:
        own = rows[own_rows(len(rows))]
        # A process without rows has to know the task all the same.
        examples = data.examples((own if len(own) else rows[:1]).tolist(), seed=seed, epoch=epoch)
        task = examples[0].task
        examples = examples[: len(own)]
        texts = [text for example in examples for text in example.texts]
        found = tokenize(tokenizer, texts, max_length=max_length) if texts else []
        if not pool_instruction:
            found = marked(tokenizer, texts, found, max_length=max_length)
        flat = iter(found)
        ids = [[next(flat) for _ in example.texts] for example in examples]
        return Share(len(rows), task, examples, ids)

    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(read, *batch) for batch in plan[:1]]
        for following in [*plan[1:], None]:
            share = coming.pop().result()
            if following is not None:
                coming.append(pool.submit(read, *following))
            yield share
