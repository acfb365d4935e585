"""The candidates of some queries in one pool, and which of them the rules take.

Without ranks the search itself keeps to the ceiling, so that a query finds its negatives however
many documents score too high. With a rank window, or when candidates are to be stored, the best
documents are found whatever they score, and the rules are applied to the list; queries whose list
ends before they have enough are searched again under their ceiling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from datagen.candidates import EXCLUSIONS
from datagen.mining_rules import Rules, choose
from datagen.threads import Run
from datagen.topk import Excluded, Matrix, TopK, dot, top_k


@dataclass(frozen=True)
class Found:
    """Places in the pool: the best whatever they score, and the best under the ceiling.

    Each is None where the rules do not ask for it.
    """

    listed: TopK | None
    below: TopK | None


@dataclass(frozen=True)
class Chosen:
    """What the rules took, and the list of candidates that is stored (None: not asked for).

    `skipped` counts the documents below the ceiling that `skip_top` left out.
    """

    best: TopK
    listed: TopK | None
    skipped: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PoolSearch:
    """The queries of a unit (`members`) that compete in one pool (`rows` of the documents).

    `excluded` (query, document, mark) and `given` (query, document) may name any queries of the
    unit and any documents.
    """

    members: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    documents: Matrix
    ceilings: np.ndarray  # of the members
    query_ids: Sequence[str]  # of the members
    rules: Rules
    candidates: int
    excluded: tuple[np.ndarray, np.ndarray, np.ndarray]
    given: tuple[np.ndarray, np.ndarray]
    device: str
    run: Run

    def pairs(self, query: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the pairs are of the members and the pool, and [2, those]: their numbers."""
        place = np.searchsorted(self.rows, document)
        member = np.searchsorted(self.members, query)
        place, member = _within(place, self.rows), _within(member, self.members)
        if not len(self.rows):
            return np.zeros(len(query), bool), np.empty((2, 0), np.int64)
        inside = (self.rows[place] == document) & (self.members[member] == query)
        return inside, np.stack([member, place])[:, inside]

    @cached_property
    def _barred(self) -> np.ndarray:
        """[2, pairs]: member number and place of what may not be taken."""
        both = [self.pairs(*columns[:2])[1] for columns in (self.excluded, self.given)]
        return np.concatenate(both, axis=1)

    def find(self) -> Found:
        """What `choose` needs of this pool, or of a part of it."""
        window = self.rules.rank_window or 0
        depth = max(window, self.candidates)
        listed = self._search(depth) if depth else None
        return Found(listed, None if window else self._below(listed))

    def choose(self, found: Found) -> Chosen:
        """The negatives of each member, and its best `candidates` whatever the ceiling."""
        rules, listed, best = self.rules, found.listed, found.below
        if listed is not None and rules.rank_window:
            rows, scores = (c[:, : rules.rank_window] for c in (listed.rows, listed.scores))
            best = TopK(rows, scores, above=(scores > self.ceilings[:, None]).sum(1))
        assert best is not None
        taken = choose(best.scores, self.ceilings, self.query_ids, rules)
        early = best.scores[:, : rules.skip_top]
        skipped = ((early <= self.ceilings[:, None]) & (early > -np.inf)).sum(1)
        return Chosen(
            best=_packed(best, taken, rules.negatives),
            listed=listed if self.candidates else None,
            skipped=skipped,
        )

    def _below(self, listed: TopK | None) -> TopK:
        """The best `depth` of each member under its ceiling, from its list where that suffices."""
        depth = self.rules.depth
        if listed is None:
            return self._search(depth, ceilings=self.ceilings)
        eligible = (listed.scores <= self.ceilings[:, None]) & (listed.rows >= 0)
        above = (listed.scores > self.ceilings[:, None]).sum(1)
        whole = TopK(rows=listed.rows, scores=listed.scores, above=above)
        found = _packed(whole, eligible & (eligible.cumsum(1) <= depth), depth)
        short = np.flatnonzero((eligible.sum(1) < depth) & (listed.rows >= 0).all(1))
        if len(short):
            again = self._search(depth, ceilings=self.ceilings, only=short)
            found.rows[short], found.scores[short] = again.rows, again.scores
            found.above[short] = again.above
        return found

    def _search(
        self, k: int, *, ceilings: np.ndarray | None = None, only: np.ndarray | None = None
    ) -> TopK:
        total = len(self.members)
        only = np.arange(total) if only is None else only
        excluded = Excluded.of(self._barred[0], self._barred[1])
        return top_k(
            self.vectors[self.members[only]],
            PoolRows(self.documents, self.rows),
            k=k,
            ceilings=None if ceilings is None else ceilings[only],
            excluded=excluded.of_queries(only, total),
            device=self.device,
            run=self.run,
        )

    def taken(self, best: TopK) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, rank, document) of what was found."""
        member, rank = np.nonzero(best.rows >= 0)
        return self.members[member], rank, self.rows[best.rows[member, rank]]

    def count(self, chosen: Chosen, counts: Mapping[str, np.ndarray]) -> None:
        """Fill the counts of the rules for these queries."""
        total = len(self.members)
        barred = np.unique(self._barred, axis=1)
        left = len(self.rows) - np.bincount(barred[0], minlength=total)
        counts["candidates"][self.members] = left
        counts["above_ceiling"][self.members] = chosen.best.above
        counts["skipped_top"][self.members] = chosen.skipped
        inside, (member, place) = self.pairs(*self.excluded[:2])
        scores = dot(self.vectors, self.documents, (self.members[member], self.rows[place]))
        passes = scores <= self.ceilings[member]
        caught = passes & (scores >= chosen.best.scores[member, -1])
        for number, rule in enumerate(EXCLUSIONS):
            own = self.excluded[2][inside] == number
            for name, some in ((rule, own), (f"{rule}_caught", own & caught)):
                counts[name][self.members] = np.bincount(member[some], minlength=total)


@dataclass(frozen=True)
class PoolRows:
    """Some rows of a matrix, as a matrix."""

    matrix: Matrix
    members: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.members), *self.matrix.shape[1:]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.matrix[self.members[rows]]


def _packed(found: TopK, taken: np.ndarray, width: int) -> TopK:
    """The taken columns moved to the left, in order; -1 and -inf where there are fewer."""
    order = np.argsort(~taken, axis=1, kind="stable")[:, :width]
    there = np.take_along_axis(taken, order, 1)
    rows = np.full((len(taken), width), -1, np.int64)
    scores = np.full((len(taken), width), -np.inf, np.float32)
    columns = order.shape[1]
    rows[:, :columns] = np.where(there, np.take_along_axis(found.rows, order, 1), -1)
    scores[:, :columns] = np.where(there, np.take_along_axis(found.scores, order, 1), -np.inf)
    return TopK(rows=rows, scores=scores, above=found.above.copy())


def _within(positions: np.ndarray, array: np.ndarray) -> np.ndarray:
    return np.minimum(positions, len(array) - 1)
