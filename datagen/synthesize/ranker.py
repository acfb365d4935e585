"""The rank of each query's own document by an encoder, exact, without holding the scores."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.encode import Encodes
from datagen.schema import document_id, format_document
from datagen.threads import Run

NOT_JUDGED = 0
Stored = Literal["float16", "float32"]


def positive_ranks(
    queries: np.ndarray, documents: np.ndarray, positives: np.ndarray, *, run: Run = map
) -> np.ndarray:
    """Rank [Q] of document `positives[i]` for query i, by vectors of unit length; 1 is best.

    Equal scores do not count against it.
    """
    from datagen.topk import dot, top_k

    if not len(queries):
        return np.empty(0, np.int64)
    scores = dot(queries, documents, (np.arange(len(queries)), positives))
    ceilings = scores.astype(np.float64)
    return top_k(queries, documents, k=1, ceilings=ceilings, run=run).above + 1


class Ranker:
    """Ranks against documents with ids and vectors [n, width]."""

    def __init__(
        self,
        encoder: Encodes,
        ids: Sequence[str],
        vectors: np.ndarray,
        languages: Sequence[str],
        *,
        query_prompt: str = "",
        document_prompt: str = "",
        stored: Stored = "float16",
    ):
        self._encoder, self._languages = encoder, list(languages)
        self._ids, self._vectors = ids, vectors
        self._query_prompt, self._document_prompt = query_prompt, document_prompt
        self._stored: Stored = stored

    def ranks(self, pairs: pa.Table) -> np.ndarray:
        """Rank [n] of each pair's document for its query among the given documents and those of
        the pairs that are judged; NOT_JUDGED for other tasks and languages."""
        ranks = np.full(pairs.num_rows, NOT_JUDGED, np.int64)
        known = pa.array(self._languages, pa.string())
        judged = pc.equal(pairs["task"], "retrieval")
        for side in ("query_language", "document_language"):
            judged = pc.and_(judged, pc.is_in(pairs[side], known))
        rows = pairs.filter(judged)
        if not rows.num_rows:
            return ranks
        sides = zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True)
        found = [(document_id(*side), format_document(*side)) for side in sides]
        own = dict(found)
        numbers = {key: number for number, key in enumerate(own)}
        documents = self._encoder.encode(
            list(own.values()), prompt=self._document_prompt, stored=self._stored
        )
        others = np.array([key not in own for key in self._ids], bool)
        if others.any():
            documents = np.concatenate([documents, self._vectors[others]])
        queries = rows["query"].to_pylist()
        vectors = self._encoder.encode(queries, prompt=self._query_prompt, stored=self._stored)
        positives = np.array([numbers[key] for key, _ in found])
        ranks[judged.to_numpy()] = positive_ranks(vectors, documents, positives)
        return ranks
