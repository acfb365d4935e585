"""What becomes of queries that found fewer negatives than were asked for: dropped, or filled up.

An exact search under the ceiling that finds too few has found all that the pool holds. What pads
them is therefore drawn from all pools, from a generator of the query's id, and holds the exclusions
and the ceiling like any other negative; it stands behind what was found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datagen.candidates import Plan
from datagen.mining_rules import Rules, generator
from datagen.topk import Matrix, dot

_DRAWS = 8  # documents drawn for each that is missing

Flat = tuple[np.ndarray, np.ndarray, np.ndarray]  # columns of (query, rank or mark, document)


def cut(parts: Sequence[Flat], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(query, document) in order of query and rank, at most `count` a query."""
    queries, rank, documents = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rank, queries))
    queries, documents = queries[order], documents[order]
    kept = rank_in(queries) < count
    return queries[kept], documents[kept]


def once(parts: Sequence[Flat]) -> list[Flat]:
    """The columns put together, a document of a query only at its first rank."""
    queries, rank, documents = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rank, documents, queries))
    same = np.stack([queries[order], documents[order]])
    first = order[np.r_[True, (same[:, 1:] != same[:, :-1]).any(0)]] if len(order) else order
    return [(queries[first], rank[first], documents[first])]


def rank_in(sorted_keys: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal keys."""
    return np.arange(len(sorted_keys)) - np.searchsorted(sorted_keys, sorted_keys)


def dropped(
    queries: np.ndarray, documents: np.ndarray, rules: Rules, counts: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What is left without the queries that have too few; `counts` gets a 1 for each of them."""
    few = np.bincount(queries, minlength=len(counts["dropped"])) < rules.negatives
    counts["dropped"][:] = few
    return queries[~few[queries]], documents[~few[queries]]


@dataclass(frozen=True, kw_only=True)
class Padding:
    """The queries of a unit, as far as drawing for them needs."""

    rules: Rules
    plan: Plan
    vectors: np.ndarray
    documents: Matrix
    ids: Sequence[str]
    public: np.ndarray
    ceilings: np.ndarray
    excluded: tuple[np.ndarray, np.ndarray]  # columns of (query, document)

    def fill(
        self, queries: np.ndarray, documents: np.ndarray, counts: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(query, document) pairs with what was drawn for those that have too few."""
        found = np.bincount(queries, minlength=len(self.ids))
        parts = [(queries, rank_in(queries), documents)]
        for query in np.flatnonzero(found < self.rules.negatives):
            missing = int(self.rules.negatives - found[query])
            drawn = self._drawn(query, documents[queries == query], missing)
            counts["padded"][query] = len(drawn)
            parts.append((np.full(len(drawn), query), found[query] + np.arange(len(drawn)), drawn))
        return cut(parts, self.rules.negatives)

    def _drawn(self, query: int, taken: np.ndarray, missing: int) -> np.ndarray:
        draw = generator(self.ids[query], self.rules.seed)
        rows = self.plan.visible(public=bool(self.public[query]))
        some = np.unique(rows[draw.integers(0, len(rows), _DRAWS * missing)])
        barred = self.excluded[1][self.excluded[0] == query]
        some = draw.permutation(np.setdiff1d(some, np.concatenate([barred, taken])))
        scores = dot(self.vectors, self.documents, (np.full(len(some), query), some))
        allowed = scores <= self.ceilings[query]
        some, scores = some[allowed][:missing], scores[allowed][:missing]
        return some[np.argsort(-scores, kind="stable")]
