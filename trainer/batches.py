"""The batches of an epoch: row numbers, each row once, of one task and mostly one source."""

import numpy as np

from trainer.distinct import Positives, spread


def batch_plan(
    tasks: np.ndarray,
    sources: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    max_rows: int | None = None,
    usable: np.ndarray | None = None,
    positives: Positives | None = None,
) -> list[np.ndarray]:
    """Rows per batch, homogeneous in task and as far as possible in source; of `usable` ones.

    Every row is used exactly once; `max_rows` takes a seeded part of the rows, another one each
    epoch. Full batches hold one source; the remainders of a task's sources are cut into batches of
    that task, the last of which may be smaller. Rows of a batch that share one of the `positives`
    change places with others (trainer/distinct.py). The order of batches is shuffled.
    """
    generator = np.random.default_rng([seed, epoch])
    # Half the memory of 64 bits, and the same draw.
    kind = np.int32 if len(tasks) < 2**31 else np.int64
    of = np.arange(len(tasks), dtype=kind) if usable is None else usable.astype(kind)
    order = generator.permutation(of)[:max_rows]
    batches: list[np.ndarray] = []
    for of_task in _groups(order, tasks):
        left = []
        for rows in _groups(of_task, sources):
            whole = len(rows) - len(rows) % batch_size
            if positives is not None:
                spread(rows, positives, batch_size=batch_size, seed=[seed, epoch])
            batches += [rows[i : i + batch_size] for i in range(0, whole, batch_size)]
            left.append(rows[whole:])
        rest = generator.permutation(np.concatenate(left))
        if positives is not None:
            spread(rest, positives, batch_size=batch_size, seed=[seed, epoch])
        batches += [rest[i : i + batch_size] for i in range(0, len(rest), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def _groups(rows: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """The rows split by their key, in the order of keys, each part in the order given.

    A pass for each key: sorting would hold four times the memory of the rows.
    """
    own = keys[rows]
    return [rows[own == key] for key in np.unique(own)]
