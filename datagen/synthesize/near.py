"""Texts that come in one after the other: which of them resemble one that stayed before.

The keys are those of dedup (`datagen.minhash`): folded forms for equal texts, bands of MinHash
signatures for near ones, verified on shingles and numbers, so what a pool lets through is what
dedup would keep. A row stays when none of its texts resembles a text of an earlier row that stayed;
texts of one row may resemble each other. The order of rows decides; the same blocks in the same
order give the same answer.

Texts are kept as the Arrow arrays that came in, by reference, and read again to verify: those of
memory-mapped shards stay on disk. Beside them a text of 21 bands takes 184 bytes, fewer with fewer
bands: of pairs at Jaccard 0.8 (0.9) 21 bands find 0.998 (1.0), 10 bands 0.952 (0.999). Cost: some
10 microseconds a text and core in a small pool, 20 in one of two million, and 10 milliseconds a
call: ask for thousands of rows at once.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.minhash import (
    BANDS,
    TextKeys,
    candidate_pairs,
    check_options,
    mix,
    text_keys,
    verified,
)
from datagen.minhash import DEFAULT_BACKEND as KEYS
from datagen.synthesize.near_runs import BandRun, Column, FormRun, Store, push
from datagen.synthesize.select import Rule, Verdict
from datagen.synthesize.written import written_texts

NEAR_DUPLICATE = "near_duplicate"
PIECE = 1 << 14  # texts whose keys a thread makes at once
PAIRS = 1 << 13  # candidates verified at once
Gather = Callable[[np.ndarray], pl.Series]


class Pool:
    """The texts that stayed; `add` asks about new ones and lets those in that stay."""

    def __init__(self, *, similarity: float = 0.8, bands: int = BANDS, backend: str = KEYS):
        check_options(backend, similarity)
        self._similarity, self._bands, self._backend = similarity, bands, backend
        self._store = Store()
        self._forms: list[FormRun] = []
        self._runs: list[BandRun] = []

    def __len__(self) -> int:
        return len(self._store)

    def copy(self) -> "Pool":
        """The same texts, growing on its own; runs never change, so both pools have them."""
        other = Pool(similarity=self._similarity, bands=self._bands, backend=self._backend)
        other._store = self._store.copy()
        other._forms, other._runs = [*self._forms], [*self._runs]
        return other

    @property
    def nbytes(self) -> int:
        """Memory beside the texts."""
        runs = sum(run.nbytes for run in self._runs)
        return runs + sum(run.nbytes for run in self._forms) + self._store.nbytes

    def add(self, *columns: Column) -> np.ndarray:
        """Which rows [n] are near-duplicates of an earlier one; the texts of the others enter.

        Columns hold the texts of the same rows, null where a row has none.
        """
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            keys = partial(text_keys, backend=self._backend)
            block = _Block(columns, keys, threads=threads, indexed=self._bands)
            known = self._known(block, threads)
            pairs = block.heads[candidate_pairs(block.bands, np.arange(len(block.heads)))]
            edges = _verified(block.gather, pairs, self._similarity, threads)
        drops = _greedy(block, known, edges)
        self._enter(columns, block, ~drops[block.rows])
        return drops

    def _known(self, block: "_Block", threads: ThreadPoolExecutor) -> np.ndarray:
        """Which texts of a block resemble one of the pool."""
        found = np.zeros(len(block.form), bool)
        for run in self._forms:
            found |= run.holds(block.form)
        shared = [np.empty((0, 2), np.int64), *(run.sharing(block.run) for run in self._runs)]
        pairs = np.unique(np.concatenate(shared), axis=0)
        pairs[:, 0] = block.heads[pairs[:, 0]]
        pairs = pairs[~found[pairs[:, 0]]]
        pairs[:, 1] += len(block.form)
        near = _verified(partial(self._gather, block), pairs, self._similarity, threads)
        found[near[:, 0]] = True
        return found[block.first]

    def _gather(self, block: "_Block", numbers: np.ndarray) -> pl.Series:
        """Texts of a block by position, and those of the pool by number beyond."""
        own = np.searchsorted(numbers, len(block.form))
        others = self._store.gather(numbers[own:] - len(block.form))
        return pl.concat([block.gather(numbers[:own]), others])

    def _enter(self, columns: Sequence[Column], block: "_Block", stays: np.ndarray) -> None:
        """Remember the texts that stay, equal ones once."""
        distinct = np.unique(block.first[stays])
        numbers = np.full(len(block.form), -1)
        numbers[distinct] = len(self) + np.arange(len(distinct))
        self._store.add(columns, block.places[distinct])
        push(self._forms, FormRun(block.form[distinct]), FormRun.merged)
        push(self._runs, block.run.renumbered(numbers[block.heads]), BandRun.merged)


class _Block:
    """The texts [m] of some rows, one column after the other, nulls left out.

    `places` count through the columns; `rows` are the rows of the texts; `first` is the first text
    of the same form; `heads` are the first ones that are long enough to sign, `bands` theirs, and
    `run` as many of these as a pool looks at.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        make_keys: Callable[[pl.Series], TextKeys],
        *,
        threads: ThreadPoolExecutor,
        indexed: int,
    ):
        series = [pl.Series("text", column, dtype=pl.String) for column in columns]
        whole = pl.concat(series)
        self.count = len(series[0])
        self.places = np.flatnonzero(whole.is_not_null().to_numpy())
        self.rows = self.places % max(self.count, 1)
        self.texts = whole.drop_nulls()
        starts = range(0, len(self.texts), PIECE)
        parts = list(threads.map(make_keys, [self.texts.slice(at, PIECE) for at in starts]))
        none = np.empty(0, np.uint64)
        self.form = np.concatenate([none, *(mix(p.form[:, 0]) ^ p.form[:, 1] for p in parts)])
        where = [p.where + at for p, at in zip(parts, starts, strict=True)]
        signed = np.concatenate([np.empty(0, np.int64), *where])
        bands = np.concatenate([np.empty((0, BANDS), np.uint32), *(p.bands for p in parts)])
        _, index, inverse = np.unique(self.form, return_index=True, return_inverse=True)
        self.first = index[inverse]
        heads = self.first[signed] == signed
        self.heads, self.bands = signed[heads], bands[heads]
        self.run = BandRun.of(self.bands[:, :indexed])

    def gather(self, positions: np.ndarray) -> pl.Series:
        return self.texts.gather(positions)


def _verified(
    gather: Gather, pairs: np.ndarray, similarity: float, threads: ThreadPoolExecutor
) -> np.ndarray:
    """The pairs [k, 2] of those given whose texts are near-duplicates."""

    def work(start: int) -> np.ndarray:
        from datagen.fold_kernel import fold_texts

        rows, local = np.unique(pairs[start : start + PAIRS], return_inverse=True)
        folded = fold_texts(gather(rows))
        return rows[verified(folded, local.reshape(-1, 2), similarity=similarity)[0]]

    return np.concatenate([pairs[:0], *threads.map(work, range(0, len(pairs), PAIRS))])


def _greedy(block: _Block, known: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which rows go, decided one after the other: those that resemble the pool or a row that
    stayed before them."""
    drops = np.zeros(block.count, bool)
    drops[block.rows[known]] = True
    alike: dict[int, list[int]] = {}
    for one, other in edges.tolist():
        alike.setdefault(one, []).append(other)
        alike.setdefault(other, []).append(one)
    related = np.bincount(block.first, minlength=len(block.form)) > 1
    related[list(alike)] = True
    some = np.flatnonzero(related[block.first])
    some = some[np.argsort(block.rows[some], kind="stable")]
    holder: dict[int, int] = {}  # the row that stayed, by the first text of the same form
    texts = zip(block.rows[some].tolist(), block.first[some].tolist(), strict=True)
    for row, group in groupby(texts, key=lambda text: text[0]):
        forms = [form for _, form in group]
        near = [other for form in forms for other in (form, *alike.get(form, ()))]
        drops[row] |= any(holder.get(other, row) != row for other in near)
        if not drops[row]:
            holder.update(dict.fromkeys(forms, row))
    return drops


def near_duplicate_rule(pool: Pool) -> Rule:
    """Rows of which a text that the LLM wrote resembles one of the pool; the others enter it."""

    def rule(pairs: pa.Table) -> Verdict:
        drops = pool.add(*written_texts(pairs).values())
        return Verdict(NEAR_DUPLICATE, drops, np.ones(len(drops), bool))

    return rule
