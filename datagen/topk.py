"""Exact top-k by dot product, without ever holding the score matrix.

Blocks of queries meet blocks of documents; each product leaves only its best candidates, which are
merged into a running list per query. Documents above a query's ceiling, and those excluded for it,
never enter.

Floating-point sums depend on block shapes, threads and device, so candidates are taken with a few
to spare, scored again in float64, and a query's result is accepted only when the last score it
keeps is out of reach of every document that was not a candidate (by the error bound of a float32
dot product); else more candidates are taken. The result is therefore the top-k by float64 score,
ties by row number, on any hardware; for float16 vectors the float64 sums are exact. On a GPU these
are multiplied as they are, with sums in float32, and only the scores of a tile are rounded to
float16: twice the rate of TF32 at a known error, which the last step makes good. NV-Retriever's
filters (arXiv 2407.15831, section 4) are ceilings.

Cost: 2 x queries x documents x width floating-point operations; memory is one tile of scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from datagen.threads import Run

SPARE = 8  # candidates beyond k
LONGEST = 1.01  # vectors must have unit length, give or take the rounding to float16
_GROUP = 64  # documents whose maximum is looked at first
_RESCORED_VALUES = 1 << 18  # what fits the cache


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


def top_k(
    queries: np.ndarray,
    documents: Matrix,
    *,
    k: int,
    ceilings: np.ndarray | None = None,
    excluded: Excluded | None = None,
    device: str = "cpu",
    half: bool | None = None,
    run: Run = map,
    query_block: int = 256,
    document_block: int = 8_192,
) -> TopK:
    """The k best documents of each query with float32(score) <= ceiling, excluded pairs aside.

    `queries` [Q, width] and `documents` [N, width] are float16 or float32 vectors of unit length;
    `ceilings` float64 [Q]. `half` multiplies float16 vectors as such: the default on a GPU. `run`
    maps over the blocks of queries, by default one after the other.
    """
    total = len(queries)
    ceilings = np.full(total, np.inf) if ceilings is None else np.asarray(ceilings, np.float64)
    excluded = excluded or Excluded.of(np.empty(0, np.int64), np.empty(0, np.int64))
    if half is None:
        half = device != "cpu" and queries.dtype == np.float16
    queries = _float32(queries)
    _check_length(queries)
    rows = np.full((total, k), -1, dtype=np.int64)
    scores = np.full((total, k), -np.inf, dtype=np.float32)
    above = np.zeros(total, dtype=np.int64)
    todo, wanted = np.arange(total), k + SPARE
    while len(todo):
        search = _Search(
            queries=queries[todo],
            documents=documents,
            wanted=min(wanted, documents.shape[0]),
            ceilings=ceilings[todo],
            excluded=excluded.of_queries(todo, total),
            device=device,
            half=half,
            run=run,
        )
        found = search.candidates(query_block, document_block)
        best, certain = search.settle(found, k)
        done = todo[certain]
        rows[done], scores[done], above[done] = (
            best.rows[certain], best.scores[certain], best.above[certain],
        )  # fmt: skip
        todo, wanted = todo[~certain], wanted * 4
    return TopK(rows=rows, scores=scores, above=above)


def dot(queries: np.ndarray, documents: Matrix, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float32 scores of (query row, document row) pairs, summed in float64."""
    left, right = pairs
    scores = np.empty(len(left), dtype=np.float32)
    step = max(1, _RESCORED_VALUES // max(1, queries.shape[1]))
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        a, b = _float32(queries[left[part]]), _float32(documents[right[part]])
        scores[part] = np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64))
    return scores


def _float32(vectors: np.ndarray) -> np.ndarray:
    """numpy converts float16 one by one; torch is 20 times as fast."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(vectors)).float().numpy()


def _check_length(vectors: np.ndarray) -> None:
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if len(squares) and not squares.max() <= LONGEST**2:
        raise ValueError(f"vectors of length {squares.max() ** 0.5}: expected unit length")


@dataclass(frozen=True, kw_only=True)
class _Running:
    """Tensors of the search so far, a row for each query."""

    queries: Any
    limits: Any
    scores: Any
    rows: Any
    above: Any


@dataclass(frozen=True, kw_only=True)
class _Search:
    queries: np.ndarray
    documents: Matrix
    wanted: int
    ceilings: np.ndarray
    excluded: Excluded
    device: str
    half: bool
    run: Run

    @property
    def error(self) -> float:
        """Bound of |score of a tile - exact|, whatever the order of summation."""
        summed = float(self.queries.shape[1] * 2.0**-24 * LONGEST**2 * 1.01)
        return summed + (2.0**-11 if self.half else 0.0)  # half a unit of the scores from 1 to 2

    @property
    def limited(self) -> bool:
        """Without a ceiling three passes over every tile fall away."""
        return bool((self.ceilings < np.inf).any())

    def candidates(self, query_block: int, document_block: int) -> TopK:
        """Candidates by float32 score, every eligible one in order of score, ties in any order."""
        import torch

        total = len(self.queries)
        if self.device != "cpu":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        limits = torch.from_numpy((self.ceilings + self.error).astype(np.float32))
        found = _Running(
            queries=self._on_device(self.queries),
            limits=torch.nextafter(limits, torch.tensor(torch.inf)).to(self.device),
            scores=torch.full((total, self.wanted), -torch.inf, device=self.device),
            rows=torch.full((total, self.wanted), -1, dtype=torch.int64, device=self.device),
            above=torch.zeros(total, dtype=torch.int64, device=self.device),
        )
        parts = [slice(i, i + query_block) for i in range(0, total, query_block)]
        for start, block in self._document_blocks(document_block):
            documents = self._on_device(block).T
            list(self.run(partial(self._meet, found, documents, start), parts))
        found.rows[found.scores == -torch.inf] = -1
        columns = (found.rows, found.scores, found.above)
        return TopK(*(column.cpu().numpy() for column in columns))

    def _on_device(self, vectors: np.ndarray) -> Any:
        import torch

        tensor = torch.from_numpy(vectors)  # float32; what came as float16 loses nothing
        return (tensor.half() if self.half else tensor).to(self.device)

    def _meet(self, found: "_Running", documents: Any, start: int, part: slice) -> None:
        """One tile: some queries and a block of documents, the first of them row `start`."""
        import torch

        tile = found.queries[part] @ documents
        self._exclude(tile, part.start, start)
        if self.limited:
            over = tile > found.limits[part, None]
            found.above[part] += over.view(torch.uint8).sum(1, dtype=torch.int32)
            tile.masked_fill_(over, -torch.inf)
        values, columns = _largest(tile, min(self.wanted, tile.shape[1]))
        values = torch.cat([found.scores[part], values.float()], 1)
        columns = torch.cat([found.rows[part], columns + start], 1)
        found.scores[part], order = values.topk(self.wanted, dim=1)
        found.rows[part] = columns.gather(1, order)

    def _document_blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.documents.shape[0], size):
            block = _float32(self.documents[start : start + size])
            _check_length(block)
            yield start, block

    def _exclude(self, tile: Any, first_query: int, first_document: int) -> None:
        """Rule out the tile's excluded pairs."""
        import torch

        last = first_document + tile.shape[1]
        low, high = np.searchsorted(self.excluded.documents, (first_document, last))
        if low == high:
            return
        queries = self.excluded.queries[low:high] - first_query
        inside = (queries >= 0) & (queries < tile.shape[0])
        columns = self.excluded.documents[low:high][inside] - first_document
        index = torch.from_numpy(queries[inside]), torch.from_numpy(columns)
        tile[index[0].to(tile.device), index[1].to(tile.device)] = -torch.inf

    def settle(self, found: TopK, k: int) -> tuple[TopK, np.ndarray]:
        """Score candidates exactly, apply the ceiling, keep k; and which queries are settled."""
        total, wanted = found.rows.shape
        taken = found.rows >= 0
        scores = np.full((total, wanted), -np.inf, dtype=np.float32)
        where = np.nonzero(taken)
        scores[where] = dot(self.queries, self.documents, (where[0], found.rows[where]))
        over = scores > self.ceilings[:, None]
        kept = taken & ~over
        scores[~kept] = -np.inf
        rows = np.where(kept, found.rows, np.iinfo(np.int64).max)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        best = np.full((total, k), -np.inf, dtype=np.float32)
        best[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
        best_rows = np.full((total, k), -1, dtype=np.int64)
        best_rows[:, : order.shape[1]] = np.take_along_axis(found.rows, order, 1)
        best_rows[best == -np.inf] = -1
        everything = (~taken).any(1) | (wanted == self.documents.shape[0])
        # float32 rounding of the final score adds half a unit in the last place of 1.
        reach = found.scores.min(1, initial=np.inf) + self.error + 2.0**-24
        certain = everything | (best[:, -1] > reach)
        return TopK(rows=best_rows, scores=best, above=found.above + over.sum(1)), certain


def _largest(tile: Any, k: int) -> tuple[Any, Any]:
    """topk(k) of each row: the k groups with the largest maxima hold the k largest values."""
    import torch

    rows, columns = tile.shape
    groups = columns // _GROUP
    if columns % _GROUP or groups < 4 * k:
        return tile.topk(k, dim=1)
    grouped = tile.view(rows, groups, _GROUP)
    chosen = grouped.amax(2).topk(k, dim=1).indices
    inside = grouped.gather(1, chosen[:, :, None].expand(-1, -1, _GROUP)).view(rows, -1)
    values, order = inside.topk(k, dim=1)
    group = chosen.gather(1, torch.div(order, _GROUP, rounding_mode="floor"))
    return values, group * _GROUP + order % _GROUP
