"""The command `datagen synthesize`: queries for the documents of plain files.

Work is kept in DIR/work, step by step, so a run that was stopped resumes; the three files of the
command are written at the end.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from datagen.schema import (
    DOCUMENT,
    QUARANTINE,
    UserError,
    document_id,
    pair_problem,
    rejected_row,
    split_language,
)
from datagen.sources.files import read_rows
from datagen.steps import Context, LedgerRow, Step, run_steps
from datagen.store import Folder, encode_shard, read_table, write_parquet
from datagen.synthesize.llm import from_model
from datagen.synthesize.step import synthesize

PER_MODEL = 100


def synthesize_files(
    documents: Sequence[str],
    output: str,
    *,
    models: Sequence[str],
    cache: str,
    per_model: int = PER_MODEL,
    executor: Literal["ray", "local"] = "local",
) -> dict[str, Any]:
    """Write rows.parquet, rejected.parquet and models.json; returns the table per LLM.

    Every model asks about its own documents: with M models, document i of a seeded order goes to
    model i modulo M, up to `per_model` each.
    """
    llms = [from_model(model) for model in models]
    table, quarantine = read_rows(documents)
    rows, bad = _documents(table)
    languages = tuple(sorted({row["language"] for row in rows}))
    llms = [replace(llm, languages=languages) for llm in llms]
    listed = _documents_step(pa.Table.from_pylist(rows, schema=DOCUMENT))
    asked = synthesize(
        listed, tasks=None, llms=llms, cache=cache, retrieval_per_llm=per_model, seed=0
    )
    manifest = run_steps([listed, asked], f"{output.rstrip('/')}/work", executor=executor)[
        asked.name
    ]
    folder = Folder(output)
    done = folder.folder(f"work/{asked.place}")
    pairs = read_table(done, "pairs") if manifest.table("pairs") else None
    rejected = read_table(done, "rejected") if manifest.table("rejected") else None
    extra = pa.Table.from_pylist(quarantine + bad, schema=QUARANTINE)
    gone = pa.concat_tables([rejected, extra]) if rejected is not None else extra
    write_parquet(folder, "rows.parquet", _flat(pairs))
    write_parquet(folder, "rejected.parquet", gone)
    folder.write_json("models.json", manifest.stats["llms"])
    return {"documents": len(rows), "models": manifest.stats["llms"], "output": output}


def _documents(table: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """DOCUMENT rows out of the table's columns text, title and language; bad rows apart."""
    if "text" not in table.column_names:
        raise UserError(
            found="columns " + ", ".join(table.column_names),
            expected="a column 'text' (and title, language where known)",
            do="rename the column that holds the documents",
        )
    found: dict[str, dict[str, Any]] = {}
    bad = []
    for row in table.to_pylist():
        problem = pair_problem({"query": "-", "text": row["text"], "task": "retrieval"})
        if problem:
            bad.append(rejected_row(row, reason=problem[0], error=problem[1]))
            continue
        language, script = split_language(row.get("language"))
        key = document_id(row.get("title"), row["text"])
        found[key] = {
            "doc_id": key,
            "source": "documents",
            "origin": "public",
            "task": "retrieval",
            "title": row.get("title"),
            "text": row["text"],
            "language": language or "eng",
            "script": script,
            "cluster": key,
        }
    return [found[key] for key in sorted(found)], bad


def _documents_step(rows: pa.Table) -> Step:
    digest = hashlib.sha256(encode_shard(rows)).hexdigest()

    def work(context: Context) -> None:
        context.write("documents", rows, DOCUMENT, rows_per_shard=65_536)
        count = rows.num_rows
        context.ledger.append(
            LedgerRow(source="documents", rows_in=count, kept=count, unit="documents")
        )

    return Step(name="documents", version=1, config={"sha256": digest}, inputs={}, work=work)


def _flat(pairs: pa.Table | None) -> pa.Table:
    """The pairs with their provenance as columns."""
    columns = ["query", "title", "text", "instruction", "task", "source", "licence"]
    columns += ["document_language", "document_script"]
    rows: list[Mapping[str, Any]] = pairs.to_pylist() if pairs is not None else []
    flat = [{name: row[name] for name in columns} | row["provenance"] for row in rows]
    kinds = {"seed": pa.int64()}
    names = [*columns, "row", "llm", "llm_licence", "prompt", "seed_document", "sampling", "seed"]
    return pa.Table.from_pylist(
        flat, schema=pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in names])
    )
