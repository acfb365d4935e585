"""The documents of a mix: which ones its rows refer to, their order, and their shards.

Documents of public rows come first, by id, then those of synthetic rows only. Cost: one pass over
the ids of what was mined, 20 bytes of memory a document, then one pass over the documents.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from datagen.mix_ids import DocumentLookup, id_numbers
from datagen.mix_rows import read_keys, referred
from datagen.mix_shards import Run, Sharded, gather, take_ordered
from datagen.schema import MIX_DOCUMENT
from datagen.stages import QueryKeys
from datagen.steps import Context
from datagen.store import Folder, Shard, read_manifest

BLOCK_ROWS = 1 << 17  # gathered at once; some thousand bytes each at most


@dataclass(frozen=True)
class Inputs:
    """The tables of the steps before, and the keys of the queries."""

    queries: Sharded
    mined: Sharded
    documents: Sharded
    keys: QueryKeys

    @classmethod
    def of(cls, context: Context, run: Run) -> "Inputs":
        queries = Sharded.of(context.inputs["deduped"], "queries")
        documents = Sharded.of(context.inputs["deduped"], "documents")
        mined = Sharded.of(context.inputs["mined"], "mined")
        return cls(queries, mined, documents, read_keys(queries, mined, run=run))


def _document_ids(documents: Sharded, *, run: Run) -> Iterator[np.ndarray]:
    def numbers(shard: int) -> np.ndarray:
        column = documents.open(shard)["doc_id"]
        return np.concatenate([id_numbers(chunk) for chunk in column.chunks])

    yield from run(numbers, range(len(documents.names)))


def write_documents(
    context: Context, inputs: Inputs, chosen: Sequence[np.ndarray], *, run: Run
) -> tuple[DocumentLookup, np.ndarray]:
    """Write the documents that the rows refer to: those of public rows first, by id.

    Gives the lookup of all documents and the new row of each (-1: left out).
    """
    config = context.config
    lookup = DocumentLookup(_document_ids(inputs.documents, run=run))
    used = _used(inputs, chosen, lookup, limit=config["max_negatives"], run=run)
    by_id = used[lookup.order]
    parts = [lookup.order[by_id == rank] for rank in (0, 1)]
    new = np.full(len(lookup), -1, dtype=np.int64)
    new[np.concatenate(parts)] = np.arange(sum(len(part) for part in parts))
    step = config["rows_per_shard"]
    make = partial(_documents_of, inputs.documents)
    for part in parts:
        for block in cut(part, max(BLOCK_ROWS // step, 1) * step):
            tables = gather(inputs.documents, block, make, rows_per_shard=step, run=run)
            write_all(context, "documents", tables, MIX_DOCUMENT)
    return lookup, new


def _documents_of(documents: Sharded, shard: int, rows: np.ndarray) -> pa.Table:
    return take_ordered(documents.open(shard).select(MIX_DOCUMENT.names), rows)


def _used(
    inputs: Inputs,
    chosen: Sequence[np.ndarray],
    lookup: DocumentLookup,
    *,
    limit: int,
    run: Run,
) -> np.ndarray:
    """For each document 0: of a public row, 1: of synthetic rows only, 2: of none."""
    wanted = np.zeros(len(inputs.keys), dtype=bool)
    for rows in chosen:
        wanted[rows] = True
    by_public, by_any = (np.zeros(len(lookup), dtype=bool) for _ in range(2))

    def mark(shard: int) -> None:
        begin, end = inputs.mined.starts[shard : shard + 2]
        rows = np.flatnonzero(wanted[begin:end])
        public = inputs.keys.public[begin:end][rows]
        table = take_ordered(inputs.mined.open(shard).select(["positives", "negatives"]), rows)
        for ids, named_by in referred(table, limit=limit):
            found = lookup.rows(ids)
            by_any[found] = True
            by_public[found[public[named_by]]] = True

    for _ in run(mark, range(len(inputs.mined.names))):
        pass
    return np.where(by_public, 0, np.where(by_any, 1, 2)).astype(np.int8)


def cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def write_all(context: Context, name: str, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    for table in tables:
        context.write(name, table, schema, rows_per_shard=len(table))


def link_documents(context: Context, *, run: Run) -> tuple[DocumentLookup, np.ndarray]:
    """Take the shards of a step of `mix_documents` into the mix."""
    folder = context.inputs["documents"]
    for shard in read_manifest(folder).table("documents"):
        link(folder, context.folder, shard)
        context.shards.append(shard)
    lookup = DocumentLookup(_document_ids(Sharded.of(folder, "documents"), run=run))
    return lookup, np.arange(len(lookup))


def link(source: Folder, target: Folder, shard: Shard) -> None:
    """Give a folder a shard of another one: the same file where the disk can, else a copy."""
    if source.is_local and target.is_local:
        place = Path(target.path(shard.name))
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        try:
            os.link(source.path(shard.name), temporary)
        except OSError:  # another disk, or one without links
            pass
        else:
            os.replace(temporary, place)
            temporary.unlink(missing_ok=True)  # replace leaves it where both are one file
            return
    target.write_bytes(shard.name, source.read_bytes(shard.name))
