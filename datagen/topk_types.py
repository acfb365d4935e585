"""What a search by dot product reads and gives."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Matrix(Protocol):
    """Rows of vectors in memory or on disk; a numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class TopK:
    """Per query: document rows (-1 where fewer exist), scores (-inf there), best first.

    `above` counts the documents that the ceiling kept out.
    """

    rows: np.ndarray  # int64 [queries, k]
    scores: np.ndarray  # float32 [queries, k]
    above: np.ndarray  # int64 [queries]


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """Pairs (query, document row) that may not be taken; sorted by document row."""

    queries: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, queries: np.ndarray, documents: np.ndarray) -> "Excluded":
        order = np.argsort(documents, kind="stable")
        return cls(queries=queries[order], documents=documents[order])

    def of_queries(self, chosen: np.ndarray, total: int) -> "Excluded":
        """The pairs of some queries, renumbered."""
        number = np.full(total, -1)
        number[chosen] = np.arange(len(chosen))
        kept = number[self.queries] >= 0
        return Excluded(queries=number[self.queries][kept], documents=self.documents[kept])
