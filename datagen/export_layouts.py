"""The layouts of other trainers, as writers of one task and source of a mix.

Layouts whose trainer has no place for an instruction get the texts as the encoder sees them
(`Instruct: ...`, on both sides of symmetric rows); the others get it where their trainer looks.
Rows of several positives become one row for each positive where a layout has one column for it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datagen.export import BLOCK_ROWS, Group, Writer, enough, texts
from datagen.schema import UserError, format_query
from datagen.sources.layout_table import TYPES

_TYPES = {task: word for word, task in TYPES.items()}  # FlagEmbedding's words


def _instructed(values: pa.Array, instructions: pa.Array) -> pa.Array:
    """`format_query` of whole columns."""
    filled = pc.fill_null(instructions, "")
    whole = pc.binary_join_element_wise("Instruct: ", filled, "\nQuery: ", values, "")
    return pc.if_else(pc.greater(pc.utf8_length(filled), 0), whole, values)


def _columns(group: Group, count: int) -> Iterator[tuple[dict[str, pa.Array], int]]:
    """(query, positive and negative_1..n, all as the encoder sees them; rows left out)."""
    for block in group.blocks():
        rows = enough(block, count)
        each = np.repeat(np.arange(len(rows)), pc.list_value_length(rows["positives"]).to_numpy())
        positives = pc.list_flatten(rows["positives"]).to_numpy()
        negatives = pc.list_flatten(pc.list_slice(rows["negatives"], 0, count)).to_numpy()
        negatives = negatives.reshape(len(rows), count)[each]
        found = texts(group.mix, [positives, *negatives.T])
        own = rows.take(pa.array(each)).combine_chunks()
        instruction = own["instruction"].combine_chunks()
        both = pc.if_else(
            own["symmetric"].combine_chunks(), instruction, pa.scalar(None, pa.string())
        )
        documents = [_instructed(text, both) for text in found]
        query = _instructed(own["query"].combine_chunks(), instruction)
        names = ["query", "positive", *(f"negative_{i + 1}" for i in range(count))]
        yield dict(zip(names, [query, *documents], strict=True)), len(block) - len(rows)


def _parquet(group: Group, place: Path, count: int, *, names: dict[str, str]) -> dict[str, Any]:
    path = place / f"{group.name}.parquet"
    rows = left_out = 0
    columns = [names["query"], names["positive"], *(f"negative_{i + 1}" for i in range(count))]
    schema = pa.schema([(column, pa.string()) for column in columns])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for found, dropped in _columns(group, count):
            writer.write_table(pa.Table.from_arrays(list(found.values()), schema=schema))
            rows, left_out = rows + len(found["query"]), left_out + dropped
    return {"files": [path.name], "rows": rows, "left_out": left_out}


def sentence_transformers(group: Group, place: Path, count: int) -> dict[str, Any]:
    """Parquet with the columns anchor, positive, negative_1..n."""
    return _parquet(group, place, count, names={"query": "anchor", "positive": "positive"})


def f2llm(group: Group, place: Path, count: int) -> dict[str, Any]:
    """Parquet with the columns query, passage, negative_1..n."""
    return _parquet(group, place, count, names={"query": "query", "positive": "passage"})


def flagembedding(group: Group, place: Path, count: int) -> dict[str, Any]:
    """JSON lines: query, pos, neg, their scores, prompt and type.

    FlagEmbedding takes no in-batch negatives for a folder whose name ends with no_in_batch_neg.
    """
    rows = left_out = 0
    in_batch = bool(next(group.blocks())["in_batch"][0].as_py())
    path = place / ("in_batch" if in_batch else "no_in_batch_neg") / f"{group.name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        for block in group.blocks():
            kept = enough(block, count)
            sides = ("positives", "negatives")
            flat = texts(group.mix, [pc.list_flatten(kept[s]).to_numpy() for s in sides])
            lists = [_relisted(kept[s], t) for s, t in zip(sides, flat, strict=True)]
            frame = pl.DataFrame(
                {
                    "query": kept["query"],
                    "pos": lists[0],
                    "neg": lists[1],
                    "pos_scores": kept["positive_scores"],
                    "neg_scores": kept["negative_scores"],
                    "prompt": pc.fill_null(kept["instruction"], ""),
                    "type": [_TYPES.get(group.task, "normal")] * len(kept),
                }
            )
            stream.write(frame.write_ndjson().encode())
            rows, left_out = rows + len(kept), left_out + len(block) - len(kept)
    name = path.relative_to(place).as_posix()
    return {"files": [name], "rows": rows, "left_out": left_out}


def _relisted(lists: pa.ChunkedArray, values: pa.Array) -> pa.Array:
    lengths = pc.list_value_length(lists).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def automodel(group: Group, place: Path, count: int) -> dict[str, Any]:
    """NAME/NAME.json with ids, and NAME/corpus with the documents and the instruction."""
    folder = place / group.name
    (folder / "corpus").mkdir(parents=True)
    stated = group.instructions()
    # The trainer knows one instruction for all rows; where there are more, they go into the text.
    common = next(iter(stated)) if len(stated) == 1 else None
    rows = left_out = 0
    path = folder / f"{group.name}.json"
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"corpus": [{"path": "corpus"}], "data": [')
        for block in group.blocks():
            kept = enough(block, count)
            for row in kept.to_pylist():
                question = row["query"]
                if common is None:
                    question = format_query(row["instruction"], question)
                record = {
                    "question_id": row["query_id"],
                    "question": question,
                    "corpus_id": group.name,
                    "pos_doc": [{"id": str(n)} for n in row["positives"]],
                    "neg_doc": [{"id": str(n)} for n in row["negatives"]],
                }
                stream.write((",\n" if rows else "\n") + json.dumps(record, ensure_ascii=False))
                rows += 1
            left_out += len(block) - len(kept)
        stream.write("\n]}\n")
    _automodel_documents(group, folder / "corpus", common)
    return {"files": [path.relative_to(place).as_posix()], "rows": rows, "left_out": left_out}


def _automodel_documents(group: Group, folder: Path, instruction: str | None) -> None:
    template = f"Instruct: {instruction}\nQuery:" if instruction else ""
    symmetric = all(pc.all(block["symmetric"]).as_py() for block in group.blocks())
    metadata = {
        "class": "TextQADataset",
        "corpus_id": group.name,
        "query_instruction": template,
        "passage_instruction": template if symmetric else "",
        "task_type": group.task,
        "ids_only": False,
    }
    (folder / "merlin_metadata.json").write_text(json.dumps(metadata, indent=1, ensure_ascii=False))
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(folder / "train.parquet", schema, compression="zstd") as writer:
        for numbers, _ in _documents(group):
            (whole,) = texts(group.mix, [numbers])
            ids = pa.array(numbers).cast(pa.string())
            writer.write_table(pa.Table.from_arrays([ids, whole], schema=schema))


def beir(group: Group, place: Path, count: int) -> dict[str, Any]:
    """NAME/corpus.jsonl, NAME/queries.jsonl and NAME/qrels/train.tsv: negatives are documents."""
    folder = place / group.name
    (folder / "qrels").mkdir(parents=True)
    rows = left_out = 0
    with (
        (folder / "queries.jsonl").open("wb") as queries,
        (folder / "qrels" / "train.tsv").open("w", encoding="utf-8") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for block in group.blocks():
            kept = enough(block, count)
            frame = pl.DataFrame({"_id": kept["query_id"], "text": kept["query"]})
            queries.write(frame.write_ndjson().encode())
            for key, numbers in zip(
                kept["query_id"].to_pylist(), kept["positives"].to_pylist(), strict=True
            ):
                qrels.writelines(f"{key}\t{number}\t1\n" for number in numbers)
            rows, left_out = rows + len(kept), left_out + len(block) - len(kept)
    with (folder / "corpus.jsonl").open("wb") as stream:
        for numbers, table in _documents(group):
            title = pc.fill_null(table["title"], "")
            ids = [str(n) for n in numbers.tolist()]
            frame = pl.DataFrame({"_id": ids, "title": title, "text": table["text"]})
            stream.write(frame.write_ndjson().encode())
    return {"files": [group.name], "rows": rows, "left_out": left_out}


def _documents(group: Group) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """(row numbers, documents) of all that the rows refer to, some thousand at a time."""
    numbers = group.numbers()
    for start in range(0, len(numbers), BLOCK_ROWS):
        part = numbers[start : start + BLOCK_ROWS]
        yield part, group.mix.read_documents(part)


WRITERS: dict[str, Writer] = {
    "sentence-transformers": sentence_transformers,
    "flagembedding": flagembedding,
    "f2llm": f2llm,
    "automodel": automodel,
    "beir": beir,
}


def writer_of(layout: str) -> Writer:
    """The writer of that name; UserError (exit status 2) for an unknown one."""
    if layout not in WRITERS:
        raise UserError(
            found=f"layout {layout!r}",
            expected="one of " + ", ".join(WRITERS),
            do="name one of these",
            exit_status=2,
        )
    return WRITERS[layout]
