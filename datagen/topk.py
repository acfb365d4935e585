"""Exact top-k by dot product, without ever holding the score matrix.

Blocks of queries meet blocks of documents; each product leaves only its best candidates, which are
merged into a running list per query (datagen.tiles). Documents above a query's ceiling, and those
excluded for it, never enter.

Floating-point sums depend on block shapes, threads and device, so candidates are taken with a few
to spare, scored again in float64, and a query's result is accepted only when the last score it
keeps is out of reach of every document that was not a candidate, by the error bound of the
products; else the query is searched again, in float32, with more candidates. The result is
therefore the top-k by float64 score, ties by row number, on any hardware; for float16 vectors the
float64 sums are exact. So the best of the whole are the best of the best of its parts (`merged`),
whoever searched them. NV-Retriever's filters (arXiv 2407.15831, section 4) are ceilings.

Cost: 2 x queries x documents x width floating-point operations; memory is one tile of scores.
"""

from collections.abc import Sequence

import numpy as np

from datagen.threads import Run
from datagen.tiles import Tiles, fastest
from datagen.topk_types import Excluded, Matrix, TopK

__all__ = ["Excluded", "Matrix", "TopK", "dot", "merged", "top_k"]

SPARE = 8  # candidates beyond k, and beyond twice k where products are of low precision
# Queries and documents of a tile: what the cache of a core holds, what fills a GPU.
_BLOCKS = {"cpu": (1_024, 4_096), "gpu": (4_096, 32_768)}
_RESCORED_VALUES = 1 << 18  # what fits the cache


def top_k(
    queries: np.ndarray,
    documents: Matrix,
    *,
    k: int,
    ceilings: np.ndarray | None = None,
    excluded: Excluded | None = None,
    device: str = "cpu",
    precision: str | None = None,
    run: Run = map,
    query_block: int | None = None,
    document_block: int | None = None,
) -> TopK:
    """The k best documents of each query with float32(score) <= ceiling, excluded pairs aside.

    `queries` [Q, width] and `documents` [N, width] are float16 or float32 vectors of unit length
    (UserError for others); `ceilings` float64 [Q]. `precision` of the first products changes the
    time, not the result: by default what the device multiplies fastest. `run` maps over the blocks
    of queries, by default one after the other.
    """

    total = len(queries)
    ceilings = np.full(total, np.inf) if ceilings is None else np.asarray(ceilings, np.float64)
    excluded = excluded or Excluded.of(np.empty(0, np.int64), np.empty(0, np.int64))
    precision = precision or fastest(device, queries.dtype)
    usual = _BLOCKS["cpu" if device == "cpu" else "gpu"]
    blocks = query_block or usual[0], document_block or usual[1]
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    out = TopK(
        rows=np.full((total, k), -1, dtype=np.int64),
        scores=np.full((total, k), -np.inf, dtype=np.float32),
        above=np.zeros(total, dtype=np.int64),
    )
    todo, wanted = np.arange(total), k + SPARE + (0 if precision == "float32" else k)
    while len(todo):
        tiles = Tiles(
            queries=queries[todo],
            documents=documents,
            wanted=min(wanted, documents.shape[0]),
            ceilings=ceilings[todo],
            excluded=excluded.of_queries(todo, total),
            device=device,
            precision=precision,
            run=run,
        )
        best, certain = _settle(tiles, tiles.candidates(*blocks), k)
        done = todo[certain]
        for whole, part in zip(_columns(out), _columns(best), strict=True):
            whole[done] = part[certain]
        todo = todo[~certain]
        wanted, precision = (k + SPARE if precision != "float32" else wanted * 4), "float32"
    return out


def merged(parts: Sequence[TopK]) -> TopK:
    """The top-k of the whole from the top-k of its parts, whose rows count through the whole."""
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    best = _best(rows, scores, parts[0].rows.shape[1])
    return TopK(*best, above=np.sum([part.above for part in parts], axis=0))


def dot(
    queries: np.ndarray,
    documents: Matrix,
    pairs: tuple[np.ndarray, np.ndarray],
    *,
    run: Run = map,
) -> np.ndarray:
    """float32 scores of (query row, document row) pairs, summed in float64."""
    import torch

    left, right = pairs
    scores = np.empty(len(left), dtype=np.float32)
    step = max(1, _RESCORED_VALUES // max(1, queries.shape[1]))
    order = np.argsort(right, kind="stable")  # documents lie on disk in this order

    def score(start: int) -> None:
        part = order[start : start + step]
        both = [queries[left[part]], np.ascontiguousarray(documents[right[part]])]
        a, b = (torch.from_numpy(one).double() for one in both)
        scores[part] = (a * b).sum(1).float().numpy()

    for _ in run(score, range(0, len(left), step)):
        pass
    return scores


def _columns(found: TopK) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.rows, found.scores, found.above


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k columns by (score descending, row ascending); -inf marks what is not there."""
    keys = np.where(scores > -np.inf, rows, np.iinfo(np.int64).max)
    order = np.lexsort((keys, -scores), axis=1)[:, :k]
    best = np.full((len(rows), k), -np.inf, dtype=np.float32)
    best[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
    best_rows = np.full((len(rows), k), -1, dtype=np.int64)
    best_rows[:, : order.shape[1]] = np.take_along_axis(rows, order, 1)
    best_rows[best == -np.inf] = -1
    return best_rows, best


def _settle(tiles: Tiles, found: TopK, k: int) -> tuple[TopK, np.ndarray]:
    """Score candidates exactly, apply the ceiling, keep k; and which queries are settled."""
    taken = found.rows >= 0
    scores = np.full(found.rows.shape, -np.inf, dtype=np.float32)
    where = np.nonzero(taken)
    pairs = (where[0], found.rows[where])
    scores[where] = dot(tiles.queries, tiles.documents, pairs, run=tiles.run)
    over = scores > tiles.ceilings[:, None]
    scores[over] = -np.inf
    rows, best = _best(found.rows, scores, k)
    everything = (~taken).any(1) | (tiles.wanted == tiles.documents.shape[0])
    # float32 rounding of the final score adds half a unit in the last place of 1.
    reach = tiles.reach(found.scores.min(1, initial=np.inf)) + 2.0**-24
    certain = everything | (best[:, -1] > reach)
    return TopK(rows=rows, scores=best, above=found.above + over.sum(1)), certain
