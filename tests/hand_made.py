"""Queries and documents with vectors given by hand, and mining over them."""

import json
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from datagen.embed import TABLES
from datagen.mine import mine_negatives
from datagen.schema import DOCUMENT, QUERY
from datagen.steps import Step, run_steps
from datagen.store import Folder, read_table
from datagen.vectors import embedding_schema, embedding_table


@pytest.fixture
def model(tmp_path) -> str:
    """A folder that is enough of a model to be fingerprinted; its vectors are given by hand."""
    folder = tmp_path / "model"
    folder.mkdir()
    module = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return str(folder)


def document(doc_id, angle, **fields):
    """A document whose vector points at `angle` degrees."""
    row = {"doc_id": doc_id, "source": "s", "origin": "public", "task": "retrieval"}
    return {**row, "text": doc_id, "cluster": doc_id, "angle": angle, **fields}


def query(query_id, angle, positives, **fields):
    row = {"query_id": query_id, "source": "s", "origin": "public", "task": "retrieval"}
    row |= {"query": query_id, "cluster": query_id, "given_negatives": [], "angle": angle}
    return {**row, "positives": positives, **fields}


def write_tables(context, *, queries, documents, rows_per_shard):
    tables = (("queries", queries, QUERY), ("documents", documents, DOCUMENT))
    for name, rows, schema in tables:
        table = pa.Table.from_pylist(rows, schema=schema)
        context.write(name, table, schema, rows_per_shard=rows_per_shard)


def _write_vectors(context, *, queries, documents):
    for kind, rows, key in (("documents", documents, "doc_id"), ("queries", queries, "query_id")):
        radians = np.deg2rad([row["angle"] for row in rows])
        vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float16)
        schema = embedding_schema(key, "float16")
        ids = pa.chunked_array([[row[key] for row in rows]], pa.string())
        table = embedding_table(ids, vectors, schema)
        context.write(TABLES[kind], table, schema, rows_per_shard=5)


def vectors_by_hand(deduped, model, rows, *, name="vectors"):
    """The step that would have encoded the rows."""
    config = {"embedding": mine_negatives(deduped, encoder=model).config["embedding"]}
    work = partial(_write_vectors, **rows)
    return Step(name=name, version=1, config=config, inputs={"deduped": deduped}, work=work)


def steps_by_hand(model, queries, documents, **options):
    """What is mined, its vectors, and mining."""
    rows = {"queries": queries, "documents": documents}
    write = partial(write_tables, **rows, rows_per_shard=7)
    deduped = Step(name="deduped", version=1, config={}, inputs={}, work=write)
    vectors = vectors_by_hand(deduped, model, rows)
    return deduped, vectors, mine_negatives(deduped, encoder=model, embedded=vectors, **options)


def mine_by_hand(output, model, queries, documents, **options):
    """Mined rows by query id, and the manifest."""
    steps = steps_by_hand(model, queries, documents, **options)
    manifest = run_steps(steps, str(output), executor="local")["mine"]
    mined = read_table(Folder(str(output)).folder("steps/mine"), "mined").to_pylist()
    return {row["query_id"]: row for row in mined}, manifest
