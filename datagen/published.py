"""A mix as the Hub shows it: Parquet by task and source, queries and the documents they refer to.

    NAME/queries-STAGE-00000.parquet  question_id, question, corpus_id, pos_doc and neg_doc (id and
                                      score), and what the mix says of the row
    NAME/corpus-00000.parquet         id, text
    NAME/dataset_metadata.json        instruction, task, licences

This is the layout of nvidia/embed-nemotron-dataset-v1, a configuration of queries and one of
documents for each source, with splits for the stages. Conversion is one pass in blocks of some
thousand rows; a source that is converted is not converted again.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datagen.export import BLOCK_ROWS, Group, Mix, file_names, groups, texts

ROWS_PER_FILE = 1_000_000
METADATA = "dataset_metadata.json"
_LINK = pa.list_(pa.struct([("id", pa.string()), ("score", pa.float32())]))
QUERIES = pa.schema(
    [
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("corpus_id", pa.string()),
        ("pos_doc", _LINK),
        ("neg_doc", _LINK),
        ("instruction", pa.string()),
        ("language", pa.string()),
        ("script", pa.string()),
        ("origin", pa.string()),
        ("licence", pa.string()),
        ("llm", pa.string()),
        ("llm_licence", pa.string()),
        ("in_batch", pa.bool_()),
        ("symmetric", pa.bool_()),
    ]
)
CORPUS = pa.schema([("id", pa.string()), ("text", pa.string())])


def convert(mix: Mix, place: Path) -> list[dict[str, Any]]:
    """Write all sources of a mix below `place`; what is there from an earlier call stays.

    Returns a configuration of the card for each: `config_name` and `data_files`.
    """
    found: dict[tuple[str, str], list[Group]] = {}
    for stage in mix.stages:
        for group in groups(mix, stage):
            found.setdefault((group.task, group.source), []).append(group)
    names, configs = file_names(found), []
    for key, stages in sorted(found.items()):
        name, target = names[key], place / names[key]
        if not target.is_dir():
            partial = place / f".{name}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _convert(stages, name, partial)
            os.rename(partial, target)
        splits = [
            {"split": group.stage, "path": f"{name}/queries-{group.stage}-*.parquet"}
            for group in stages
        ]
        documents = [{"split": "train", "path": f"{name}/corpus-*.parquet"}]
        configs.append({"config_name": name, "data_files": splits})
        configs.append({"config_name": f"{name}-corpus", "data_files": documents})
    return configs


def _convert(stages: list[Group], name: str, place: Path) -> None:
    mix = stages[0].mix
    licences: set[str | None] = set()
    instructions: set[str | None] = set()
    seen = np.zeros(len(mix.documents), dtype=bool)

    def noted(group: Group) -> Iterator[pa.Table]:
        for block in group.blocks():
            licences.update(block["licence"].unique().to_pylist())
            instructions.update(block["instruction"].unique().to_pylist())
            for side in ("positives", "negatives"):
                seen[pc.list_flatten(block[side]).to_numpy()] = True
            yield _queries(block, name)

    for group in stages:
        _write(noted(group), place, f"queries-{group.stage}", QUERIES)
    _write(_corpus(mix, np.flatnonzero(seen)), place, "corpus", CORPUS)
    about = {
        "corpus_id": name,
        "class": "TextQADataset",
        "task": stages[0].task,
        "source": stages[0].source,
        "licences": sorted(licence or "unknown" for licence in licences),
        "instructions": sorted(text for text in instructions if text),
        "ids_only": False,
    }
    (place / METADATA).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _queries(block: pa.Table, name: str) -> pa.Table:
    provenance = block["provenance"]
    columns = {
        "question_id": block["query_id"],
        "question": block["query"],
        "corpus_id": pa.array([name] * len(block)),
        "pos_doc": _links(block["positives"], block["positive_scores"]),
        "neg_doc": _links(block["negatives"], block["negative_scores"]),
        "llm": pc.struct_field(provenance, "llm"),
        "llm_licence": pc.struct_field(provenance, "llm_licence"),
    }
    return pa.table([columns.get(n, block[n] if n in block.column_names else None)
                     for n in QUERIES.names], schema=QUERIES)  # fmt: skip


def _links(numbers: pa.ChunkedArray, scores: pa.ChunkedArray) -> pa.Array:
    """Lists of {id, score} out of a list of row numbers and one of scores."""
    lengths = pc.list_value_length(numbers).to_numpy()
    ids = pc.list_flatten(numbers).combine_chunks().cast(pa.string())
    values = pa.StructArray.from_arrays(
        [ids, pc.list_flatten(scores).combine_chunks()], fields=list(_LINK.value_type)
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=_LINK)


def _corpus(mix: Mix, numbers: np.ndarray) -> Iterator[pa.Table]:
    for start in range(0, len(numbers), BLOCK_ROWS):
        some = numbers[start : start + BLOCK_ROWS]
        (whole,) = texts(mix, [some])
        yield pa.table([pa.array(some).cast(pa.string()), whole], schema=CORPUS)


def _write(tables: Iterable[pa.Table], place: Path, name: str, schema: pa.Schema) -> None:
    """Files of at most ROWS_PER_FILE rows, or little more."""
    writer, rows, number = None, 0, 0
    for table in tables:
        if writer is not None and rows >= ROWS_PER_FILE:
            writer.close()
            writer, rows, number = None, 0, number + 1
        if writer is None:
            path = place / f"{name}-{number:05}.parquet"
            writer = pq.ParquetWriter(path, schema, compression="zstd")
        writer.write_table(table)
        rows += len(table)
    if writer is not None:
        writer.close()
