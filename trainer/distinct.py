"""No document is the positive of two rows of one batch: such rows change places in the plan.

A document that is positive twice makes each row's positive a negative of the other; the losses mask
it, which costs both a negative. So the plan moves it: the later of two such rows of a batch changes
places with a row drawn from any batch of a window, and the batches that changed are looked at again
until no row is left or after ROUNDS. What then remains (a document with more rows than there are
batches) is masked. Rows that take no in-batch negatives have no documents here: labels of
classification are shared by design. Mined negatives may be shared: hubs are hard for many queries.

Cost: a sort of each window, 1.7 s of one core for 16.1 million rows; 8 bytes of memory a row while
an epoch is planned.
"""

from typing import NamedTuple

import numpy as np

from trainer.rows import Rows, ranges

ROUNDS = 64
WINDOW = 1 << 18  # rows that may change places
BLOCK = 1 << 20  # rows read at once


class Positives(NamedTuple):
    """The documents of each row, one after the other: those of row i begin at `starts[i]`."""

    values: np.ndarray
    starts: np.ndarray

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(documents of these rows, how many each has)."""
        counts = self.starts[rows + 1] - self.starts[rows]
        return self.values[ranges(self.starts[rows], counts)], counts


def read_positives(rows: Rows) -> Positives:
    """All positives of a stage, none where a row takes no in-batch negatives."""
    values, counts = [], []
    for begin in range(0, len(rows), BLOCK):
        block = np.arange(begin, min(begin + BLOCK, len(rows)))
        kept = rows.flags(block, "in_batch")
        found, some = rows.lists(block[kept], "positives")
        own = np.zeros(len(block), np.int32)
        own[kept] = some
        values.append(found.astype(np.int32))
        counts.append(own)
    total = sum(map(len, values))
    starts = np.zeros(len(rows) + 1, np.int32 if total < 2**31 else np.int64)
    np.cumsum(np.concatenate(counts), out=starts[1:])
    return Positives(np.concatenate(values), starts)


def spread(rows: np.ndarray, positives: Positives, *, batch_size: int, seed: list[int]) -> None:
    """Swap rows in place until no batch (a run of `batch_size` rows) has a positive twice."""
    generator = np.random.default_rng(seed)
    window = max(1, WINDOW // batch_size) * batch_size
    ends = [*range(window, len(rows) - window + 1, window), len(rows)]  # the last one is longer
    for begin, end in zip([0, *ends], ends, strict=False):
        part = rows[begin:end]
        places = np.arange(len(part))
        for _ in range(ROUNDS):
            bad = places[repeated(part[places], places // batch_size, positives)]
            others = np.setdiff1d(np.arange(len(part)), bad, assume_unique=True)
            partners = generator.permutation(others)[: len(bad)]
            bad = bad[: len(partners)]
            if not len(bad):
                break
            part[bad], part[partners] = part[partners], part[bad]
            changed = np.zeros(len(part) // batch_size + 1, bool)
            changed[bad // batch_size] = changed[partners // batch_size] = True
            places = np.flatnonzero(np.repeat(changed, batch_size)[: len(part)])


def repeated(rows: np.ndarray, batches: np.ndarray, positives: Positives) -> np.ndarray:
    """Which rows have a positive that an earlier row of their batch has."""
    documents, counts = positives.of(rows)
    owner = np.repeat(np.arange(len(rows)), counts)
    key = batches[owner].astype(np.int64) << 32 | documents
    order = np.argsort(key, kind="stable")
    key, owner = key[order], owner[order]
    again = (key[1:] == key[:-1]) & (owner[1:] != owner[:-1])
    found = np.zeros(len(rows), bool)
    found[owner[1:][again]] = True
    return found
