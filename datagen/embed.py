"""The vectors of all queries and documents of a step, committed unit by unit as they finish.

A unit is a fixed range of rows of one shard, encoded in the same batches wherever it runs. The
shards hold the vectors in the order of the rows, for this step and those that name it; a killed run
resumes after its last unit, and inside it after what the cache has (datagen.embedding_cache).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.cached_encoder import CachedEncoder
from datagen.encoder_model import EncoderModel
from datagen.negatives import ledger_of
from datagen.schema import UserError, format_document, format_query
from datagen.steps import Context, UnitResult, Workers
from datagen.store import Folder, Shard, open_shard, read_manifest
from datagen.vectors import embedding_schema, embedding_table

TABLES = {"documents": "document_embeddings", "queries": "query_embeddings"}
_KEYS = {"documents": "doc_id", "queries": "query_id"}


def embed(
    context: Context, *, encoder: EncoderModel, cache: str | None, threads: int, workers: Workers
) -> None:
    """Encode both tables of the input `deduped`, in order of rows.

    `cache` is where the vectors of all runs are kept (datagen.embedding_cache).
    """
    cache = cache or default_cache(context)
    embedding = dict(context.config["embedding"])
    context.map_units(
        [
            {"input": context.inputs["deduped"].uri, "kind": kind, **unit}
            for kind in TABLES
            for unit in row_units(context, kind, size=embedding["rows_per_unit"])
        ],
        Embedder,
        schemas={
            table: embedding_schema(_KEYS[kind], embedding["stored"])
            for kind, table in TABLES.items()
        },
        phase="embed",
        workers=workers,
        constructor={
            "encoder": encoder,
            "embedding": embedding,
            "cache": cache,
            "threads": threads,
        },
    )
    _merge_segments(encoder, embedding, cache)


def default_cache(context: Context) -> str:
    """Where the vectors of a build are kept: beside the folder of its steps, which share them."""
    return context.folder.uri.rsplit("/steps/", 1)[0] + "/embeddings"


def _merge_segments(encoder: EncoderModel, embedding: Mapping[str, Any], cache: str) -> None:
    known = CachedEncoder(
        encoder, root=cache, max_length=embedding["max_length"], dtype=embedding["dtype"]
    )
    known.merge([embedding[f"{kind}_prompt"] for kind in TABLES], embedding["stored"])


def vector_shards(shards: Sequence[Shard]) -> dict[str, list[str]]:
    return {kind: [s.name for s in shards if s.table == table] for kind, table in TABLES.items()}


def teachers_of(context: Context) -> list[dict[str, Any]]:
    """Where the vectors are of the step's own encoder and of each teacher, as `Teachers.of` reads.

    UserError unless those of earlier steps are of the same texts, and `embedded` of this encoding.
    """
    own = {"place": context.folder.uri, **vector_shards(context.shards)}
    if "embedded" in context.inputs:
        own = _earlier(context, "embedded")
    others = sorted(name for name in context.inputs if name.startswith("teacher_"))
    return [own, *(_earlier(context, name) for name in others)]


def _earlier(context: Context, name: str) -> dict[str, Any]:
    manifest = read_manifest(context.inputs[name])
    deduped = read_manifest(context.inputs["deduped"]).digest
    same = name != "embedded" or manifest.config["embedding"] == context.config["embedding"]
    if not same or manifest.inputs.get("deduped") != deduped:
        raise UserError(
            found=f"the vectors of step {manifest.name!r} are of other texts or another encoding",
            expected="the same input, encoder, prompts, length and precision",
            do="mine without `embedded`, or with the arguments of that step",
        )
    return {"place": context.inputs[name].uri, **vector_shards(manifest.shards)}


def row_units(context: Context, kind: str, *, size: int) -> list[dict[str, Any]]:
    """Ranges of rows inside the shards of a table; none holds both public and synthetic rows.

    What LLMs wrote then never changes a unit of public rows.
    """
    units: list[dict[str, Any]] = []
    total = 0
    folder = context.inputs["deduped"]
    for shard in context.input_shards("deduped", kind):
        origin = open_shard(folder, shard)["origin"].to_numpy()
        cuts = (np.flatnonzero(origin[1:] != origin[:-1]) + 1).tolist()
        for low, high in zip([0, *cuts], [*cuts, len(origin)], strict=True):
            for start in range(low, high, size):
                rows = min(size, high - start)
                units.append({"shard": shard, "start": start, "rows": rows, "row": total + start})
        total += len(origin)
    return units


class Embedder:
    """A worker that holds the encoder."""

    def __init__(
        self, *, encoder: EncoderModel, embedding: Mapping[str, Any], cache: str, threads: int
    ):
        self.embedding = embedding
        self.encoder = CachedEncoder(
            encoder,
            root=cache,
            max_length=embedding["max_length"],
            dtype=embedding["dtype"],
            threads=threads,
            batch_tokens=embedding["batch_tokens"],
        )

    def __call__(self, unit: Mapping[str, Any]) -> UnitResult:
        kind = unit["kind"]
        rows = open_shard(Folder(unit["input"]), unit["shard"]).slice(unit["start"], unit["rows"])
        stored = self.embedding["stored"]
        vectors = self.encoder.encode(
            self._texts(rows, kind), prompt=self.embedding[f"{kind}_prompt"], stored=stored
        )
        key = _KEYS[kind]
        table = embedding_table(rows[key], vectors, embedding_schema(key, stored))
        return UnitResult(
            tables={TABLES[kind]: table},
            ledger=ledger_of(rows["source"], unit=f"embedded {kind}"),
        )

    def _texts(self, rows: pa.Table, kind: str) -> list[str]:
        if kind == "documents":
            return _zip(format_document, rows["title"], rows["text"])
        if self.embedding["with_instruction"]:
            return _zip(format_query, rows["instruction"], rows["query"])
        return rows["query"].to_pylist()


def _zip(template: Any, left: pa.ChunkedArray, right: pa.ChunkedArray) -> list[str]:
    return [template(a, b) for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True)]
