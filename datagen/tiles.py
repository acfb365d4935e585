"""Candidates for the best documents of each query, by products of low precision.

Blocks of documents meet blocks of queries. Of each product only the maxima of groups of documents
are looked at, and only groups that exceed what a query's last candidate scores, so that after the
first blocks hardly anything but the product itself costs time. Products are in bfloat16 where the
CPU multiplies it natively (5 times the rate of float32 on a core with AVX512-BF16), in float16 on a
GPU, else in float32. How far a score can be from the exact one is known: the rounding errors of
both vectors are measured, the rest is bounded; datagen.topk makes it good.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from datagen.schema import UserError
from datagen.threads import Run
from datagen.topk_types import Excluded, Matrix, TopK

LONGEST = 1.01  # vectors must have unit length, give or take the rounding to float16
_GROUP = 64  # documents whose maximum is looked at first
_HEAVY = 4  # rows of which more than a quarter of the groups count are taken whole
_PIECE = 1024  # documents that one thread makes ready
# Half a unit in the last place of a score as the product gives it, relative to the score.
_ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def fastest(device: str, dtype: np.dtype) -> str:
    """The precision in which this machine multiplies fastest without wide errors."""
    import torch

    if device != "cpu":
        return "float16" if dtype == np.float16 else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


@dataclass(frozen=True, kw_only=True)
class _Running:
    """Tensors of the search so far, a row for each query, best candidates first."""

    queries: Any
    scores: Any
    rows: Any
    above: Any


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Documents from row `start` on, padded; `limits` is the ceiling of each query."""

    rows: Any
    start: int
    count: int
    limits: Any


@dataclass(kw_only=True)
class Tiles:
    """One pass over the documents for some queries: `candidates`, then `reach`."""

    queries: np.ndarray  # float32, of unit length
    documents: Matrix
    wanted: int
    ceilings: np.ndarray
    excluded: Excluded
    device: str
    precision: str
    run: Run
    error: float = 0.0  # of a score before it is rounded, known after the pass
    rooms: dict[int, Any] = field(default_factory=dict)  # of each thread, for a tile

    def candidates(self, query_block: int, document_block: int) -> TopK:
        """Candidates by approximate score, best first, ties in any order."""
        import torch

        total = len(self.queries)
        if self.device != "cpu":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        queries, lost = self._rounded(torch.from_numpy(self.queries).to(self.device))
        found = _Running(
            queries=queries,
            scores=torch.full((total, self.wanted), -torch.inf, device=self.device),
            rows=torch.full((total, self.wanted), -1, dtype=torch.int64, device=self.device),
            above=torch.zeros(total, dtype=torch.int64, device=self.device),
        )
        parts = [slice(i, i + query_block) for i in range(0, total, query_block)]
        for block in self._blocks(document_block, lost):
            list(self.run(partial(self._meet, found, block), parts))
        found.rows[found.scores == -torch.inf] = -1
        return TopK(*(tensor.cpu().numpy() for tensor in (found.rows, found.scores, found.above)))

    def reach(self, scores: np.ndarray) -> np.ndarray:
        """The highest exact score of a document whose approximate score is at most this."""
        scores = np.clip(scores, -2, 2)  # infinite where there are too few
        return scores + np.abs(scores) * _ROUNDING[self.precision] * LONGEST + self.error

    def _rounded(self, vectors: Any) -> tuple[Any, float]:
        """Vectors in the precision of the products, and the longest difference."""
        import torch

        lengths = torch.linalg.vector_norm(vectors, dim=1)
        if len(vectors) and not lengths.max() <= LONGEST:
            raise UserError(
                found=f"vectors of length {lengths.max():.4g}",
                expected="finite vectors of unit length",
                do="delete the step that encoded them and run it again",
            )
        if self.precision == "float32" or not len(vectors):
            return vectors, 0.0
        rounded = vectors.to(getattr(torch, self.precision))
        return rounded, float(torch.linalg.vector_norm(vectors - rounded.float(), dim=1).max())

    def _blocks(self, size: int, lost: float) -> Iterator[_Block]:
        import torch

        total, width = self.documents.shape
        limited = bool((self.ceilings < np.inf).any())
        summed = width * 2.0**-24 * LONGEST**2 + 2.0**-24
        for start in range(0, total, size):
            count = min(size, total - start)
            room = -(-count // _GROUP) * _GROUP
            dtype = getattr(torch, self.precision)
            rows = torch.zeros((room, width), dtype=dtype, device=self.device)
            pieces = range(0, count, _PIECE if self.device == "cpu" else size)
            fill = partial(self._fill, rows, start, count)
            worst = max(self.run(fill, pieces), default=0.0)
            error = 1.02 * (lost + worst + summed)
            self.error = max(self.error, error)
            limits = self._limits(error) if limited else None
            yield _Block(rows=rows, start=start, count=count, limits=limits)

    def _limits(self, error: float) -> Any:
        """Approximate scores above which an exact one is above the ceiling."""
        import torch

        highest = self.ceilings + error
        highest += np.abs(highest) * _ROUNDING[self.precision] * LONGEST
        limits = np.nextafter(highest.astype(np.float32), np.float32(np.inf))
        return torch.from_numpy(limits).to(self.device)

    def _fill(self, rows: Any, start: int, count: int, low: int) -> float:
        import torch

        high = min(count, low + (_PIECE if self.device == "cpu" else count))
        piece = np.ascontiguousarray(self.documents[start + low : start + high])
        rounded, lost = self._rounded(torch.from_numpy(piece).to(self.device).float())
        rows[low:high] = rounded
        return lost

    def _meet(self, found: _Running, block: _Block, part: slice) -> None:
        """One tile: some queries and a block of documents."""
        import torch

        queries = found.queries[part]
        tile = self._room((len(block.rows), len(queries)), queries)
        torch.mm(block.rows, queries.T, out=tile)
        tile[block.count :] = -torch.inf
        self._exclude(tile, part.start, block)
        limits = None if block.limits is None else block.limits[part]
        floor = found.scores[part, -1]
        low = floor if limits is None else torch.minimum(floor, limits)
        groups = len(tile) // _GROUP
        grouped = tile.view(groups, _GROUP, len(queries))
        hits = _above(grouped, low).T
        heavy = (low < 0) | (hits.sum(1) > groups // _HEAVY)
        whole = heavy.nonzero()[:, 0]
        if len(whole):
            hits[whole] = False
            values = _below(tile[:, whole].T.float(), whole, limits, found.above[part])
            values, rows = values.topk(min(self.wanted, len(tile)), dim=1)
            _merge(found, part.start + whole, values, rows + block.start)
        query, group = hits.nonzero(as_tuple=True)
        if len(query):
            values = grouped[group, :, query].float()
            values = _below(values, query, limits, found.above[part])
            entry, place = (values > floor[query, None]).nonzero(as_tuple=True)
            rows = group[entry] * _GROUP + place + block.start
            some, scores, rows = _padded(query[entry], values[entry, place], rows)
            _merge(found, part.start + some, scores, rows)

    def _room(self, shape: tuple[int, int], like: Any) -> Any:
        """Where a thread puts its tiles, one after the other: fresh pages cost a tenth of one."""
        key = threading.get_ident()
        if (room := self.rooms.get(key)) is None or room.numel() < shape[0] * shape[1]:
            room = self.rooms[key] = like.new_empty(shape[0] * shape[1])
        return room[: shape[0] * shape[1]].view(shape)

    def _exclude(self, tile: Any, first_query: int, block: _Block) -> None:
        """Rule out the tile's excluded pairs."""
        import torch

        ends = (block.start, block.start + block.count)
        low, high = np.searchsorted(self.excluded.documents, ends)
        if low == high:
            return
        queries = self.excluded.queries[low:high] - first_query
        inside = (queries >= 0) & (queries < tile.shape[1])
        rows = self.excluded.documents[low:high][inside] - block.start
        index = torch.from_numpy(rows), torch.from_numpy(queries[inside])
        tile[index[0].to(tile.device), index[1].to(tile.device)] = -torch.inf


def _above(grouped: Any, low: Any) -> Any:
    """[groups, queries]: whether a group has a value above the bound of the query, where >= 0.

    The bits of positive floats, read as integers, have their order, and those of negative ones are
    negative: integers of 16 bits are compared several times as fast as bfloat16.
    """
    import torch

    bits = torch.int16 if grouped.dtype.itemsize == 2 else torch.int32
    bound = low.clamp_min(0).to(grouped.dtype)
    under = bound.view(bits) - (bound.float() > low).to(bits)  # rounded down, never up
    return grouped.view(bits).amax(1) > under


def _below(values: Any, queries: Any, limits: Any, above: Any) -> Any:
    """Values [n, documents] of the queries, those above the ceiling counted and put to -inf."""
    import torch

    if limits is None:
        return values
    over = values > limits[queries, None]
    above.index_add_(0, queries, over.sum(1))
    return values.masked_fill_(over, -torch.inf)


def _padded(queries: Any, scores: Any, rows: Any) -> tuple[Any, Any, Any]:
    """(queries, scores, rows) of entries in order of query, a row for each query that has some."""
    import torch

    some, counts = torch.unique_consecutive(queries, return_counts=True)
    width = int(counts.max()) if len(some) else 0
    line = torch.repeat_interleave(torch.arange(len(some), device=some.device), counts)
    place = torch.arange(len(line), device=some.device) - (counts.cumsum(0) - counts)[line]
    wide = torch.full((len(some), width), -torch.inf, device=some.device)
    wide_rows = torch.full((len(some), width), -1, dtype=torch.int64, device=some.device)
    wide[line, place], wide_rows[line, place] = scores, rows
    return some, wide, wide_rows


def _merge(found: _Running, queries: Any, scores: Any, rows: Any) -> None:
    """Put fresh candidates into the lists of the queries."""
    import torch

    scores = torch.cat([found.scores[queries], scores], 1)
    rows = torch.cat([found.rows[queries], rows], 1)
    best, order = scores.topk(found.scores.shape[1], dim=1)
    found.scores[queries], found.rows[queries] = best, rows.gather(1, order)
