"""The candidates of some queries in one pool, and which of them the rules take.

Without ranks the search itself keeps to the ceiling, so that a query finds its negatives however
many documents score too high. With a rank window, or when candidates are to be stored, the best
documents are found whatever they score, and the rules are applied to the list; queries whose list
ends before they have enough are searched again under their ceiling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datagen.candidates import EXCLUSIONS
from datagen.mining_rules import Rules, choose
from datagen.threads import Run
from datagen.topk import Excluded, Matrix, TopK, dot, top_k


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
    """The queries of a unit (`members`) that compete in one pool (`rows` of the documents)."""

    members: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    documents: Matrix
    ceilings: np.ndarray  # of the members
    query_ids: Sequence[str]  # of the members
    rules: Rules
    device: str
    run: Run

    def pairs(self, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """[3, pairs]: member number, place in the pool, mark; of the pairs that are in both."""
        asker, document, mark = pairs
        place = np.searchsorted(self.rows, document)
        member = np.searchsorted(self.members, asker)
        place, member = _within(place, self.rows), _within(member, self.members)
        if not len(self.rows):
            return np.empty((3, 0), np.int64)
        inside = (self.rows[place] == document) & (self.members[member] == asker)
        return np.stack([member, place, mark])[:, inside]

    def choose(self, excluded: np.ndarray, given: np.ndarray, *, candidates: int) -> Chosen:
        """The negatives of each member, and its best `candidates` whatever the ceiling."""
        barred = np.concatenate([excluded[:2], given[:2]], axis=1)
        rules, window = self.rules, self.rules.rank_window or 0
        depth = max(window, candidates)
        listed = self._search(depth, barred) if depth else None
        if window:
            assert listed is not None
            found = TopK(
                rows=listed.rows[:, :window],
                scores=listed.scores[:, :window],
                above=(listed.scores[:, :window] > self.ceilings[:, None]).sum(1),
            )
        else:
            found = self._below(listed, barred)
        taken = choose(found.scores, self.ceilings, self.query_ids, rules)
        early = found.scores[:, : rules.skip_top]
        skipped = ((early <= self.ceilings[:, None]) & (early > -np.inf)).sum(1)
        best = _packed(found, taken, rules.negatives)
        return Chosen(best=best, listed=listed if candidates else None, skipped=skipped)

    def _below(self, listed: TopK | None, barred: np.ndarray) -> TopK:
        """The best `depth` of each member under its ceiling, from its list where that suffices."""
        depth = self.rules.depth
        if listed is None:
            return self._search(depth, barred, ceilings=self.ceilings)
        eligible = (listed.scores <= self.ceilings[:, None]) & (listed.rows >= 0)
        above = (listed.scores > self.ceilings[:, None]).sum(1)
        whole = TopK(rows=listed.rows, scores=listed.scores, above=above)
        found = _packed(whole, eligible & (eligible.cumsum(1) <= depth), depth)
        short = np.flatnonzero((eligible.sum(1) < depth) & (listed.rows >= 0).all(1))
        if len(short):
            again = self._search(depth, barred, ceilings=self.ceilings, only=short)
            found.rows[short], found.scores[short] = again.rows, again.scores
            found.above[short] = again.above
        return found

    def _search(
        self,
        k: int,
        barred: np.ndarray,
        *,
        ceilings: np.ndarray | None = None,
        only: np.ndarray | None = None,
    ) -> TopK:
        total = len(self.members)
        only = np.arange(total) if only is None else only
        excluded = Excluded.of(barred[0], barred[1])
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

    def count(
        self,
        chosen: Chosen,
        excluded: np.ndarray,
        given: np.ndarray,
        counts: Mapping[str, np.ndarray],
    ) -> None:
        """Fill the counts of the rules for these queries."""
        total = len(self.members)
        barred = np.unique(np.concatenate([excluded[:2], given[:2]], axis=1), axis=1)
        left = len(self.rows) - np.bincount(barred[0], minlength=total)
        counts["candidates"][self.members] = left
        counts["above_ceiling"][self.members] = chosen.best.above
        counts["skipped_top"][self.members] = chosen.skipped
        member, place, mark = excluded
        scores = dot(self.vectors, self.documents, (self.members[member], self.rows[place]))
        passes = scores <= self.ceilings[member]
        caught = passes & (scores >= chosen.best.scores[member, -1])
        for number, rule in enumerate(EXCLUSIONS):
            own = mark == number
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
