"""A mix of a few dozen rows, written straight through the store: what the trainer's tests read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from datagen.schema import MIX_DOCUMENT, MIX_ROW, document_id, query_id
from datagen.store import Folder, Manifest, write_manifest, write_table

INSTRUCTIONS = {
    "retrieval": "Given a question, retrieve passages that answer the question.",
    "sts": "Retrieve semantically similar text.",
    "bitext": "Retrieve parallel sentences.",
}


def document(text: str, title: str | None = None) -> dict[str, Any]:
    """A row of MIX_DOCUMENT."""
    key = document_id(title, text)
    return {
        "doc_id": key, "source": "moons", "title": title, "text": text,
        "language": "eng", "script": "Latn", "cluster": key,
    }  # fmt: skip


def row(
    query: str,
    positives: Sequence[int],
    negatives: Sequence[int],
    *,
    task: str = "retrieval",
    source: str = "moons",
    symmetric: bool = False,
) -> dict[str, Any]:
    """A row of MIX_ROW; positives and negatives are row numbers of the documents."""
    return {
        "query_id": query_id(task, query, source), "source": source, "task": task,
        "origin": "public", "language": "eng", "script": "Latn",
        "instruction": INSTRUCTIONS[task], "query": query,
        "positives": list(positives), "positive_scores": [0.9] * len(positives),
        "negatives": list(negatives), "negative_scores": [0.5] * len(negatives),
        "given_negatives": 0,
        "in_batch": task == "retrieval", "symmetric": symmetric, "licence": None,
        "provenance": None,
    }  # fmt: skip


def write_rows(
    folder: Path,
    documents: list[dict[str, Any]],
    *,
    rows_per_shard: int = 7,
    **stages: list[dict[str, Any]],
) -> str:
    """A mix folder of these documents and the named stages."""
    place = Folder(str(folder))
    tables = {"documents": (documents, MIX_DOCUMENT)}
    tables |= {name: (rows, MIX_ROW) for name, rows in stages.items()}
    shards = []
    for name, (rows, schema) in tables.items():
        table = pa.Table.from_pylist(rows, schema=schema)
        shards += write_table(place, name, table, schema, rows_per_shard=rows_per_shard)
    manifest = Manifest(
        name="mix", fingerprint="x", config={}, inputs={}, shards=tuple(shards), ledger=[],
        stats={}, run={},
    )  # fmt: skip
    write_manifest(place, manifest)
    return str(folder)


def write_tiny_mix(folder: Path, *, rows: int = 40) -> str:
    """`rows` retrieval rows in pretrain; in finetune a third of them, sts and bitext."""
    names = [f"moon {chr(97 + i % 26)}{i}" for i in range(rows)]
    documents = [
        document(f"{name} goes round planet {i % 7}", name) for i, name in enumerate(names)
    ]
    retrieval = [
        row(f"which planet has {name}?", [i], [(i + k) % rows for k in range(1, 6)])
        for i, name in enumerate(names)
    ]
    others = [
        row(
            f"{name} circles planet {i % 7}",
            [i],
            [(i + k) % rows for k in range(1, 6)],
            task=task,
            source=f"{task}-pairs",
            symmetric=True,
        )
        for i, name in enumerate(names[: rows // 3])
        for task in ("sts", "bitext")
    ]
    finetune = retrieval[: rows // 3] + others
    return write_rows(folder, documents, pretrain=retrieval, finetune=finetune)
