"""The round trip: the document that a query was written for must be among the first found for it.

The encoder ranks a sample of the run's public documents, the query's own document and those that
were written beside it; the rank is exact, counted without holding the scores (`datagen.topk`). Only
retrieval rows are judged, and only those with both sides in languages that the encoder knows;
programming languages count as such. Promptagator (arXiv 2209.11755, section 3.2) filters so, with
k = 1. The encoder has actors of its own, so it is never in the process of an LLM's engine on a
cluster; ranks are committed block by block, and a rank depends on its block and the sample alone.

A rank depends on how many documents there are. Among 3,000 of mixed sources all-MiniLM-L6-v2 finds
94 in 100 true documents in the first 20, and 5 in 1,000 random ones (53 and 0 in the first). Cost:
one forward pass a text.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.encode import Encoder, Encodes
from datagen.encoder_model import inspect_unit_encoder
from datagen.schema import PAIR, UserError, document_id, format_document
from datagen.steps import Context, UnitResult, Workers
from datagen.store import Folder, open_shard
from datagen.synthesize.knobs import PROGRAMMING_LANGUAGES
from datagen.synthesize.languages import check_languages
from datagen.threads import Run
from datagen.vectors import Embeddings, embedding_schema, embedding_table

ROUND_TRIP = "round_trip"
DEFAULT_K = 20
DOCUMENTS = 20_000
NOT_JUDGED = 0
PER_TURN = 10**6  # room for the shards of one turn
RANKS = pa.schema(
    [pa.field("request", pa.string(), nullable=False), pa.field("rank", pa.int64(), nullable=False)]
)
SAMPLED = embedding_schema("doc_id", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """What the step `synthesize` does with it: rows whose document is not among the first `k` of
    up to `documents` public ones are rejected, and asked for again like any other row."""

    encoder: str  # a Sentence Transformers folder
    languages: tuple[str, ...] = ("eng",)  # that it knows, such as `eng` and `python`
    k: int = DEFAULT_K
    documents: int = DOCUMENTS  # of the run's, those with the lowest ids; 0: all
    dtype: str = "float32"
    actors: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        natural = [one for one in self.languages if one not in PROGRAMMING_LANGUAGES]
        check_languages(natural or ["eng"])
        if not self.languages or min(self.k, self.actors) < 1 or self.documents < 0:
            raise UserError(
                found=f"{self}",
                expected="a language or more, k and actors of 1 or more, no negative documents",
                do="mend the round trip in the recipe",
                exit_status=2,
            )

    def config(self) -> dict[str, Any]:
        """What decides the ranks, as JSON; UserError for an encoder that cannot be used."""
        names = ("k", "documents", "dtype")
        decides = {name: getattr(self, name) for name in names}
        digest = inspect_unit_encoder(self.encoder).digest
        return {"encoder": digest, "languages": sorted(self.languages), **decides}

    def workers(self) -> Workers:
        """The actors that encode; the tokenizer would take every core of the machine."""
        env = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        return Workers(actors=self.actors, num_cpus=self.num_cpus, num_gpus=self.num_gpus, env=env)


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
        encoder: Encoder,
        ids: Sequence[str],
        vectors: np.ndarray,
        languages: Sequence[str],
    ):
        self._encoder, self._languages = encoder, list(languages)
        self._ids, self._vectors = ids, vectors

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
        documents = self._encoder.encode(list(own.values()), stored="float16")
        others = np.array([key not in own for key in self._ids], bool)
        if others.any():
            documents = np.concatenate([documents, self._vectors[others]])
        vectors = self._encoder.encode(rows["query"].to_pylist(), stored="float16")
        positives = np.array([numbers[key] for key, _ in found])
        ranks[judged.to_numpy()] = positive_ranks(vectors, documents, positives)
        return ranks


def sampled(context: Context, test: RoundTrip) -> list[str]:
    """Encode the sample of public documents; the names of the shards of their vectors."""
    folder = context.inputs["documents"]
    shards = context.input_shards("documents", "documents")
    lowest = pl.Series(dtype=pl.String)
    for shard in shards:
        ids = pl.Series(_public(open_shard(folder, shard), test.languages)["doc_id"])
        lowest = pl.concat([lowest, ids.cast(pl.String)]).sort()
        lowest = lowest.head(test.documents) if test.documents else lowest
    last = str(lowest[-1]) if len(lowest) else ""
    units = [{"folder": folder.uri, "shard": shard, "last": last} for shard in shards]
    context.map_units(
        units,
        _EncodeSample,
        schemas={"sampled_documents": SAMPLED},
        phase="sample",
        workers=test.workers(),
        constructor={"path": test.encoder, "dtype": test.dtype, "languages": test.languages},
    )
    return [shard.name for shard in context.shards if shard.table == "sampled_documents"]


def ranked(
    context: Context,
    test: RoundTrip,
    blocks: Sequence[Sequence[str]],
    *,
    sample: Sequence[str],
    turn: int,
) -> dict[str, int]:
    """Rank by request of the rows of blocks, each the names of its shards of written rows."""
    before = len(context.shards)
    context.map_units(
        [{"shards": list(names)} for names in blocks],
        _Rank,
        schemas={"ranks": RANKS},
        phase=f"round_trip_{turn}",
        first_index=turn * PER_TURN,
        workers=test.workers(),
        constructor={
            "path": test.encoder,
            "dtype": test.dtype,
            "languages": test.languages,
            "folder": context.folder.uri,
            "sample": list(sample),
        },
    )
    tables = [open_shard(context.folder, shard.name) for shard in context.shards[before:]]
    rows = pa.concat_tables([RANKS.empty_table(), *tables])
    return dict(zip(rows["request"].to_pylist(), rows["rank"].to_pylist(), strict=True))


def _public(documents: pa.Table, languages: Sequence[str]) -> pa.Table:
    fits = pc.and_(
        pc.equal(documents["origin"], "public"), pc.equal(documents["task"], "retrieval")
    )
    known = pc.is_in(documents["language"], pa.array(languages, pa.string()))
    return documents.filter(pc.and_(fits, known))


class _EncodeSample:
    """Encodes the documents of a shard that are in the sample."""

    def __init__(self, *, path: str, dtype: str, languages: Sequence[str]):
        self.encoder, self.languages = Encoder(path, dtype=dtype), languages

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        rows = _public(open_shard(Folder(unit["folder"]), unit["shard"]), self.languages)
        rows = rows.filter(pc.less_equal(rows["doc_id"], unit["last"]))
        if not rows.num_rows:
            return UnitResult(tables={"sampled_documents": SAMPLED.empty_table()})
        sides = zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True)
        vectors = self.encoder.encode([format_document(*side) for side in sides], stored="float16")
        table = embedding_table(rows["doc_id"], vectors, SAMPLED)
        return UnitResult(tables={"sampled_documents": table})


class _Rank:
    """Ranks the rows of one block of written rows."""

    def __init__(
        self, *, path: str, dtype: str, languages: Sequence[str], folder: str, sample: Sequence[str]
    ):
        self.folder = Folder(folder)
        tables = [open_shard(self.folder, name) for name in sample]
        ids = pa.concat_tables([SAMPLED.empty_table(), *tables])["doc_id"].to_pylist()
        vectors = Embeddings(self.folder, sample)[:] if ids else np.empty((0, 0), np.float16)
        self.ranker = Ranker(Encoder(path, dtype=dtype), ids, vectors, languages)

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        tables = [open_shard(self.folder, name) for name in unit["shards"]]
        pairs = pa.concat_tables([PAIR.empty_table(), *tables])
        requests = [facts["row"] for facts in pairs["provenance"].to_pylist()]
        ranks = pa.table([requests, self.ranker.ranks(pairs)], schema=RANKS)
        return UnitResult(tables={"ranks": ranks})
