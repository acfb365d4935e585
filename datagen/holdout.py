"""Hold back evaluation tasks from the pairs themselves, before anything is trained on them.

Where no benchmark is at hand, a build can make its own: a seeded share of a source's pairs becomes
a task folder (`tasks/<name>/task.json` and parquet tables) in the step's folder, and decontaminate
removes from the mix whatever matches it. Bitext is held back by its English side, the same
sentences in every language, so that no translation of a test sentence stays in the training rows.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.schema import UserError, document_id, join_language, normalise, query_id
from datagen.steps import Context, Step
from datagen.store import Folder, read_table

HELD_OUT = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("text_a", pa.string(), nullable=False),
        pa.field("text_b", pa.string(), nullable=False),
    ]
)
MINIMUM_ROWS = 20
_COLUMNS = ["source", "query", "title", "text", "query_language", "document_language"]
_COLUMNS += ["query_script", "document_script"]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One task to hold back: `rows` pairs of a source, for bitext per language of `languages`."""

    name: str
    type: str  # "retrieval" or "bitext"
    source: str
    rows: int
    instruction: str
    licence: str
    languages: tuple[str, ...] = ()  # bitext: `deu_Latn`, one task each, `<name>-<language>`
    minimum_words: int = 3  # of the query (retrieval) or the English side (bitext)

    def __post_init__(self) -> None:
        if self.type not in ("retrieval", "bitext") or self.rows < MINIMUM_ROWS:
            raise UserError(
                found=f"held-out task {self.name!r}: type {self.type!r}, {self.rows} rows",
                expected=f"type retrieval or bitext, at least {MINIMUM_ROWS} rows",
                do="mend the recipe",
                exit_status=2,
            )


def hold_out(
    pairs: Step, tasks: Sequence[HeldOut], *, seed: int = 0, name: str = "hold_out"
) -> Step:
    """Write the tasks' folders and, as table `held_out`, the texts that they use."""
    return Step(
        name=name,
        version=1,
        config={"tasks": [asdict(task) for task in tasks], "seed": seed},
        inputs={"pairs": pairs},
        work=_work,
        summary="hold evaluation tasks back from the pairs",
    )


def _work(context: Context) -> None:
    pairs = pl.from_arrow(read_table(context.inputs["pairs"], "pairs", _COLUMNS))
    assert isinstance(pairs, pl.DataFrame)
    rows: list[dict[str, str]] = []
    for fields in context.config["tasks"]:
        task = HeldOut(**{**fields, "languages": tuple(fields["languages"])})
        frame = pairs.filter(pl.col("source") == task.source)
        make = _bitext if task.type == "bitext" else _retrieval
        rows += make(context.folder, task, frame, seed=context.config["seed"])
    table = pa.Table.from_pylist(rows, schema=HELD_OUT)
    context.write("held_out", table, HELD_OUT, rows_per_shard=65_536)
    counts = pl.DataFrame(rows).group_by("task").len().sort("task")
    context.facts["tasks"] = dict(counts.iter_rows())


def _require(task: str, found: int) -> None:
    if found < MINIMUM_ROWS:
        raise UserError(
            found=f"{found} pairs for the held-out task {task!r}",
            expected=f"at least {MINIMUM_ROWS}",
            do="name a source and languages that the build has, or leave the task out",
        )


def _retrieval(folder: Folder, task: HeldOut, frame: pl.DataFrame, *, seed: int) -> list[dict]:
    long_enough = frame.filter(pl.col("query").str.split(" ").list.len() >= task.minimum_words)
    unique = long_enough.sort("query", "text").unique("query", keep="first", maintain_order=True)
    unique = unique.unique("text", keep="first", maintain_order=True)
    ids = [query_id("retrieval", text) for text in unique["query"]]
    chosen = unique[seeded_order(ids, seed)[: task.rows].tolist()]
    _require(task.name, len(chosen))
    queries, documents, qrels, rows = [], {}, [], []
    for pair in chosen.iter_rows(named=True):
        q, d = query_id("retrieval", pair["query"]), document_id(pair["title"], pair["text"])
        queries.append({"query_id": q, "text": pair["query"]})
        documents[d] = {"doc_id": d, "title": pair["title"] or "", "text": pair["text"]}
        qrels.append({"query_id": q, "doc_id": d, "score": 1})
        rows.append({"task": task.name, "text_a": pair["query"], "text_b": pair["text"]})
    languages = sorted({tag for tag in _tags(chosen, "query") + _tags(chosen, "document") if tag})
    tables = {"queries": queries, "documents": list(documents.values()), "qrels": qrels}
    _write_task(folder, task, task.name, languages, tables)
    return rows


def _tags(frame: pl.DataFrame, side: str) -> list[str | None]:
    columns = frame.select(f"{side}_language", f"{side}_script").unique().rows()
    return [join_language(*row) for row in columns]


def _bitext(folder: Folder, task: HeldOut, frame: pl.DataFrame, *, seed: int) -> list[dict]:
    rows = []
    english = _english_first(frame)
    for language in task.languages:
        part = english.filter(pl.col("language") == language).sort("text_a", "text_b")
        part = part.unique("text_a", keep="first", maintain_order=True)
        part = part.unique("text_b", keep="first", maintain_order=True)
        part = part.filter(pl.col("text_a").str.split(" ").list.len() >= task.minimum_words)
        # The order depends on the English sentence alone: every language tests the same ones.
        order = seeded_order([normalise(text) for text in part["text_a"]], seed)
        chosen = part[order[: task.rows].tolist()].select("text_a", "text_b")
        name = f"{task.name}-{language}"
        _require(name, len(chosen))
        tables = {"pairs": chosen.to_dicts()}
        _write_task(folder, task, name, ["eng_Latn", language], tables)
        rows += [{"task": name, **pair} for pair in tables["pairs"]]
    return rows


def _english_first(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns text_a (English), text_b and language (`deu_Latn`) from pairs of either direction."""
    forward = pl.col("query_language") == "eng"
    return frame.select(
        pl.when(forward).then("query").otherwise("text").alias("text_a"),
        pl.when(forward).then("text").otherwise("query").alias("text_b"),
        pl.when(forward)
        .then(pl.format("{}_{}", "document_language", "document_script"))
        .otherwise(pl.format("{}_{}", "query_language", "query_script"))
        .alias("language"),
    )


def _write_task(
    folder: Folder,
    task: HeldOut,
    name: str,
    languages: Sequence[str],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    place = f"tasks/{name}"
    for table, rows in tables.items():
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        folder.write_bytes(f"{place}/{table}.parquet", sink.getvalue())
    about = {
        "name": name,
        "type": task.type,
        "languages": list(languages),
        "instruction": task.instruction,
        "licence": task.licence,
    }
    folder.write_bytes(f"{place}/task.json", json.dumps(about, indent=1).encode())


def seeded_order(texts: Sequence[str], seed: int) -> np.ndarray:
    """Positions of the texts in a seeded pseudo-random order that depends on each text alone."""
    digests = [hashlib.blake2b(f"{seed}/{t}".encode(), digest_size=8).digest() for t in texts]
    keys = np.frombuffer(b"".join(digests), dtype=">u8")
    return np.lexsort((np.asarray(texts, dtype=np.str_), keys))
