"""What a pool of texts remembers: band hashes and form hashes in sorted runs, and where texts are.

A run is sorted once and never changes; the last two are merged while they are of like size, as in a
log-structured merge tree (O'Neil et al. 1996): a text is moved a logarithm of times, and there are
no more runs than that to look into. Merging is a compiled loop, some 10 nanoseconds a hash.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.fold_kernel import compiled

BUCKET = 8  # texts of a run that a text is compared with when they share a band
Column: TypeAlias = pa.Array | pa.ChunkedArray


class Run(Protocol):
    """What is sorted once, and merged with another."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


R = TypeVar("R", bound=Run)


@compiled
def _merge(
    one: np.ndarray, one_of: np.ndarray, other: np.ndarray, other_of: np.ndarray,
    hashes: np.ndarray, numbers: np.ndarray,
) -> None:  # fmt: skip
    """Two sorted rows of hashes, with their numbers, as one; equal ones in their order."""
    i, j = 0, 0
    for at in range(len(hashes)):
        if j >= len(other) or (i < len(one) and one[i] <= other[j]):
            hashes[at], numbers[at] = one[i], one_of[i]
            i += 1
        else:
            hashes[at], numbers[at] = other[j], other_of[j]
            j += 1


@dataclass(frozen=True)
class BandRun:
    """Texts by the hash of each of their bands: sorted hashes [bands, n], and numbers of texts."""

    hashes: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, bands: np.ndarray) -> "BandRun":
        """A run of the bands [n, bands] of texts that are numbered in their order."""
        hashes = np.ascontiguousarray(bands.T)
        order = np.argsort(hashes, axis=1, kind="stable")
        return cls(np.take_along_axis(hashes, order, 1), order.astype(np.uint32))

    def __len__(self) -> int:
        return self.hashes.shape[1]

    @property
    def nbytes(self) -> int:
        return self.hashes.nbytes + self.numbers.nbytes

    @classmethod
    def merged(cls, one: "BandRun", other: "BandRun") -> "BandRun":
        size = (len(one.hashes), len(one) + len(other))
        hashes, numbers = np.empty(size, np.uint32), np.empty(size, np.uint32)
        for band in range(len(hashes)):
            parts = (one.hashes, one.numbers, other.hashes, other.numbers, hashes, numbers)
            _merge(*(part[band] for part in parts))
        return cls(hashes, numbers)

    def sharing(self, asked: "BandRun") -> np.ndarray:
        """Pairs [m, 2] of a text of another run and one of this that share a band."""
        found = [np.empty((0, 2), np.int64)]
        for band, (hashes, numbers) in enumerate(zip(self.hashes, self.numbers, strict=True)):
            wanted = asked.hashes[band]  # sorted, so that neighbours look at the same place
            low = np.searchsorted(hashes, wanted)
            hit = np.flatnonzero(hashes[np.minimum(low, len(hashes) - 1)] == wanted)
            high = np.searchsorted(hashes, wanted[hit], side="right")
            low, owners = low[hit], asked.numbers[band][hit].astype(np.int64)
            for step in range(BUCKET):
                more = low + step < high
                if not more.any():
                    break
                found.append(np.stack([owners[more], numbers[low[more] + step]], axis=1))
        return np.concatenate(found)

    def renumbered(self, numbers: np.ndarray) -> "BandRun":
        """The texts i with numbers[i] >= 0, under these numbers, which ascend."""
        new = numbers[self.numbers]
        stays, size = new >= 0, (len(self.hashes), int((numbers >= 0).sum()))
        return BandRun(self.hashes[stays].reshape(size), new[stays].astype(np.uint32).reshape(size))


class FormRun:
    """Sorted hashes of the folded forms of texts."""

    def __init__(self, forms: np.ndarray):
        self.forms = np.sort(forms)

    def __len__(self) -> int:
        return len(self.forms)

    @property
    def nbytes(self) -> int:
        return self.forms.nbytes

    @classmethod
    def merged(cls, one: "FormRun", other: "FormRun") -> "FormRun":
        return cls(np.concatenate([one.forms, other.forms]))

    def holds(self, forms: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self.forms, forms), len(self.forms) - 1)
        return self.forms[at] == forms


def push(runs: list[R], run: R, merged: Callable[[R, R], R]) -> None:
    """Append a run that is not empty, and merge the last two while they are of like size."""
    if len(run):
        runs.append(run)
    while len(runs) > 1 and len(runs[-1]) * 2 > len(runs[-2]):
        last = runs.pop()
        runs[-1] = merged(runs[-1], last)


class Store:
    """Texts by number, in the Arrow arrays that they came in; only their places are kept here."""

    def __init__(self) -> None:
        self._arrays: list[pa.Array] = []
        self._starts = [0]
        self._places: list[np.ndarray] = []
        self._firsts = [0]

    def __len__(self) -> int:
        return self._firsts[-1]

    def copy(self) -> "Store":
        """The same texts; further ones of either are not in the other."""
        other = Store()
        other._arrays, other._starts = [*self._arrays], [*self._starts]
        other._places, other._firsts = [*self._places], [*self._firsts]
        return other

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._places)

    def add(self, columns: Sequence[Column], places: np.ndarray) -> None:
        """Number the texts at `places` of the columns, counted through one after the other."""
        base = self._starts[-1]
        for column in columns:
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            for chunk in chunks:
                self._arrays.append(chunk)
                self._starts.append(self._starts[-1] + len(chunk))
        self._places.append(base + places.astype(np.int64))
        self._firsts.append(len(self) + len(places))

    def gather(self, numbers: np.ndarray) -> pl.Series:
        """The texts of some numbers [n], ascending."""
        place = np.concatenate(
            [self._places[at][local] for at, local in _parts(self._firsts, numbers)] or [numbers]
        )
        texts = [
            pl.Series(self._arrays[at].take(pa.array(local)), dtype=pl.String)
            for at, local in _parts(self._starts, place)
        ]
        return pl.concat([pl.Series(dtype=pl.String), *texts])


def _parts(starts: Sequence[int], values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Ascending values by the part that they lie in, counted from its start."""
    edges = np.asarray(starts)
    part = np.searchsorted(edges, values, side="right") - 1
    for at in np.unique(part).tolist():
        yield at, values[part == at] - edges[at]
