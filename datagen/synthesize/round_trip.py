"""The round trip: the document that a query was written for must be among the first found for it.

The encoder ranks a sample of the run's public documents, the query's own document and those that
were written beside it; the rank is exact, counted without holding the scores (`datagen.topk`). Only
retrieval rows are judged, and only those with both sides in languages that the encoder knows;
programming languages count as such. Promptagator (arXiv 2209.11755, section 3.2) filters so, with
k = 1. The encoder has actors of its own, so it is never in the process of an LLM's engine on a
cluster; ranks are committed block by block, and a rank depends on its block and the sample alone.
Vectors are looked up and kept where those of mining are (datagen.embedding_cache): with the same
encoder, prompts and precision a build encodes each of its texts once.

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

from datagen.cached_encoder import CachedEncoder
from datagen.embed import default_cache
from datagen.encoder_model import EncoderModel, encoder_model, inspect_unit_encoder
from datagen.schema import PAIR, UserError, format_document
from datagen.steps import Context, UnitResult, Workers
from datagen.store import Folder, open_shard
from datagen.synthesize.knobs import PROGRAMMING_LANGUAGES
from datagen.synthesize.languages import check_languages
from datagen.synthesize.ranker import Ranker, Stored
from datagen.vectors import Embeddings, embedding_schema, embedding_table

ROUND_TRIP = "round_trip"
DEFAULT_K = 20
DOCUMENTS = 20_000
PER_TURN = 10**6  # room for the shards of one turn
RANKS = pa.schema(
    [pa.field("request", pa.string(), nullable=False), pa.field("rank", pa.int64(), nullable=False)]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """What the step `synthesize` does with it: rows whose document is not among the first `k` of
    up to `documents` public ones are rejected, and asked for again like any other row."""

    encoder: str | EncoderModel
    languages: tuple[str, ...] = ("eng",)  # that it knows, such as `eng` and `python`
    k: int = DEFAULT_K
    documents: int = DOCUMENTS  # of the run's, those with the lowest ids; 0: all
    dtype: str = "float32"
    stored: Stored = "float16"  # as mining keeps them in a build; its command keeps float32
    query_prompt: str | None = None  # None: what the encoder declares
    document_prompt: str | None = None
    cache: str | None = None  # of vectors; None: `embeddings` beside the folder of steps
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
        names = ("k", "documents", "dtype", "stored")
        decides = {name: getattr(self, name) for name in names}
        info = inspect_unit_encoder(self.encoder)
        prompts = {
            "query_prompt": info.query_prompt(self.query_prompt),
            "document_prompt": info.document_prompt(self.document_prompt),
        }
        languages = sorted(self.languages)
        return {"encoder": info.digest, "languages": languages, **decides, **prompts}

    def workers(self) -> Workers:
        """The actors that encode; the tokenizer would take every core of the machine."""
        env = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        return Workers(actors=self.actors, num_cpus=self.num_cpus, num_gpus=self.num_gpus, env=env)


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
    known = _Known.of(context, test)
    context.map_units(
        units,
        _EncodeSample,
        schemas={"sampled_documents": embedding_schema("doc_id", test.stored)},
        phase="sample",
        workers=test.workers(),
        constructor={"encoder": known, "languages": test.languages},
    )
    known.make().merge(known.prompts, known.stored)
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
    before, known = len(context.shards), _Known.of(context, test)
    context.map_units(
        [{"shards": list(names)} for names in blocks],
        _Rank,
        schemas={"ranks": RANKS},
        phase=f"round_trip_{turn}",
        first_index=turn * PER_TURN,
        workers=test.workers(),
        constructor={
            "encoder": known,
            "languages": test.languages,
            "folder": context.folder.uri,
            "sample": list(sample),
        },
    )
    known.make().merge(known.prompts, known.stored)
    tables = [open_shard(context.folder, shard.name) for shard in context.shards[before:]]
    rows = pa.concat_tables([RANKS.empty_table(), *tables])
    return dict(zip(rows["request"].to_pylist(), rows["rank"].to_pylist(), strict=True))


def _public(documents: pa.Table, languages: Sequence[str]) -> pa.Table:
    fits = pc.and_(
        pc.equal(documents["origin"], "public"), pc.equal(documents["task"], "retrieval")
    )
    known = pc.is_in(documents["language"], pa.array(languages, pa.string()))
    return documents.filter(pc.and_(fits, known))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """The encoder and where its vectors are kept, on its way to the actors."""

    model: EncoderModel
    cache: str
    dtype: str
    stored: Stored
    query_prompt: str
    document_prompt: str

    @classmethod
    def of(cls, context: Context, test: RoundTrip) -> "_Known":
        config = context.config[ROUND_TRIP]
        return cls(
            model=encoder_model(test.encoder),
            cache=test.cache or default_cache(context),
            stored=test.stored,
            **{name: config[name] for name in ("dtype", "query_prompt", "document_prompt")},
        )

    @property
    def prompts(self) -> tuple[str, str]:
        return self.query_prompt, self.document_prompt

    def make(self) -> CachedEncoder:
        return CachedEncoder(self.model, root=self.cache, dtype=self.dtype)


class _EncodeSample:
    """Encodes the documents of a shard that are in the sample."""

    def __init__(self, *, encoder: _Known, languages: Sequence[str]):
        self.encoder, self.languages = encoder.make(), languages
        self.prompt, self.stored = encoder.document_prompt, encoder.stored

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        rows = _public(open_shard(Folder(unit["folder"]), unit["shard"]), self.languages)
        rows = rows.filter(pc.less_equal(rows["doc_id"], unit["last"]))
        if not rows.num_rows:
            return UnitResult(tables={})
        sides = zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True)
        texts = [format_document(*side) for side in sides]
        vectors = self.encoder.encode(texts, prompt=self.prompt, stored=self.stored)
        schema = embedding_schema("doc_id", self.stored)
        table = embedding_table(rows["doc_id"], vectors, schema)
        return UnitResult(tables={"sampled_documents": table})


class _Rank:
    """Ranks the rows of one block of written rows."""

    def __init__(
        self, *, encoder: _Known, languages: Sequence[str], folder: str, sample: Sequence[str]
    ):
        self.folder = Folder(folder)
        tables = [open_shard(self.folder, name) for name in sample]
        ids = [doc_id for table in tables for doc_id in table["doc_id"].to_pylist()]
        vectors = Embeddings(self.folder, sample)[:] if ids else np.empty((0, 0), encoder.stored)
        self.ranker = Ranker(
            encoder.make(),
            ids,
            vectors,
            languages,
            query_prompt=encoder.query_prompt,
            document_prompt=encoder.document_prompt,
            stored=encoder.stored,
        )

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        tables = [open_shard(self.folder, name) for name in unit["shards"]]
        pairs = pa.concat_tables([PAIR.empty_table(), *tables])
        requests = [facts["row"] for facts in pairs["provenance"].to_pylist()]
        ranks = pa.table([requests, self.ranker.ranks(pairs)], schema=RANKS)
        return UnitResult(tables={"ranks": ranks})
