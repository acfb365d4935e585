"""The command `datagen synthesize`: pairs of all kinds, about the documents of plain files or not.

Work is kept in DIR/work, step by step, so a run that was stopped resumes; the three files of the
command are written at the end. Asked for something else, it makes the rows again, of the responses
that are there as far as they serve.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, Literal

import pyarrow as pa

from datagen.codes import UNKNOWN_SCRIPT
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
from datagen.synthesize.languages import check_languages
from datagen.synthesize.llm import LLM
from datagen.synthesize.step import TASK_KINDS, plan_of, synthesize
from datagen.synthesize.tasks import write_tasks
from datagen.synthesize.wanted import ABOUT_DOCUMENTS, Wanted

TEXTS_PER_TASK = 8
LEAST_TASKS = 4  # of each sort, by every LLM
MINIMUM_CHARACTERS = 20
_COLUMNS = (
    "query", "title", "text", "instruction", "task", "source", "origin", "licence",
    "query_language", "query_script", "document_language", "document_script",
)  # fmt: skip
_PROVENANCE = (
    "llm", "llm_licence", "prompt", "seed_document", "sampling", "seed",
)  # fmt: skip


def synthesize_files(
    documents: Sequence[str],
    output: str,
    *,
    llms: Sequence[LLM],
    cache: str,
    wanted: Wanted | None = None,
    only_plan: bool = False,
    executor: Literal["ray", "local"] = "local",
) -> dict[str, Any]:
    """Write rows.parquet, rejected.parquet and models.json; returns the table per LLM.

    Unless `wanted` says otherwise every LLM writes 100 queries that pass all rules, or one a
    document where there are fewer, each about a document that is drawn for the LLM on its own: in
    the document's language, or with the probability `cross_lingual` in another of `languages`.
    Kinds that write for tasks have them written first. With `only_plan` no row is written, and the
    plan (plan.COLUMNS) returned: what the run will take, measured on some requests. In rows.parquet
    `request` names the request, `document_row` is the document's position in the input, null for a
    pair that is about none, and further columns of the input follow (as `input_<name>` where the
    name is taken).
    """
    wanted = wanted or Wanted()
    table, bad_lines, rows, extra, rejected = _given(documents, wanted)
    found = {row["language"] for row in rows if row["script"] != UNKNOWN_SCRIPT}
    languages = check_languages(sorted({*wanted.languages, *(found or {"eng"})}))
    listed = _documents_step(pa.Table.from_pylist(rows, schema=DOCUMENT))
    steps = [listed, *_steps(listed, len(rows), llms, languages, cache=cache, wanted=wanted)]
    asked, work = steps[-1], f"{output.rstrip('/')}/work"
    if only_plan:
        planned = plan_of(asked)
        before = [*steps[:-1], planned]
        stats = run_steps(before, work, executor=executor, renew=True)[planned.name].stats
        return {"documents": len(rows), "plan": stats["plan"]}
    manifest = run_steps(steps, work, executor=executor, renew=True)[asked.name]
    done = Folder(work).folder(asked.place)
    pairs = read_table(done, "pairs").to_pylist() if manifest.table("pairs") else []
    gone = pa.Table.from_pylist([*bad_lines, *rejected], schema=QUARANTINE)
    for table_name in ("unselected", "rejected"):
        if manifest.table(table_name):
            gone = pa.concat_tables([read_table(done, table_name), gone])
    folder = Folder(output)
    write_parquet(folder, "rows.parquet", _flat(pairs, table, extra))
    write_parquet(folder, "rejected.parquet", gone)
    folder.write_json("models.json", manifest.stats["llms"])
    told = ("missing", "round_trip", "judge")
    stats = {name: manifest.stats[name] for name in told if name in manifest.stats}
    return {"documents": len(rows), "models": manifest.stats["llms"], **stats, "output": output}


def _given(
    documents: Sequence[str], wanted: Wanted
) -> tuple[pa.Table, Sequence[Any], list[dict[str, Any]], dict[str, int], list[dict[str, Any]]]:
    """The input as it is, its bad lines, its usable documents, their positions, and the others."""
    if not documents and not wanted.needs_documents:
        return pa.table({"text": pa.array([], pa.string())}), [], [], {}, []
    if not documents:
        raise UserError(
            found="no --documents",
            expected="documents for " + " and ".join(ABOUT_DOCUMENTS),
            do="give documents, or only --kinds that start from nothing",
            exit_status=2,
        )
    table, bad_lines = read_rows(documents)
    rows, extra, rejected = _documents(table)
    if not rows:
        raise UserError(
            found="no usable document in " + ", ".join(documents),
            expected=f"rows with a text of {MINIMUM_CHARACTERS} characters or more",
            do="see --help for what the command reads",
        )
    return table, bad_lines, rows, extra, rejected


def _steps(
    listed: Step,
    documents: int,
    llms: Sequence[LLM],
    languages: tuple[str, ...],
    *,
    cache: str,
    wanted: Wanted,
) -> list[Step]:
    """The step that writes, and before it one for tasks where a kind needs them."""
    # Of an LLM that was given without languages nothing is known: it is asked in all of them.
    pool = [llm if len(llm.languages) > 1 else replace(llm, languages=languages) for llm in llms]
    rows, knobs = wanted.rows(len(llms), documents), wanted.knobs(languages)
    if "bitext" in rows and len(languages) < 2:
        raise UserError(
            found=f"bitext in {', '.join(languages)}",
            expected="two languages or more",
            do="name others with --languages",
            exit_status=2,
        )
    texts = sum(count for kind, count in rows.items() if kind in TASK_KINDS)
    tasks = None
    if texts:
        least = LEAST_TASKS * len(knobs.task_kinds)
        lists = max(least, ceil(texts / TEXTS_PER_TASK / len(llms)))
        tasks = write_tasks(*pool, cache=cache, lists_per_llm=lists, knobs=knobs)
    asked = synthesize(
        listed,
        tasks=tasks,
        llms=pool,
        cache=cache,
        rows=rows,
        knobs=knobs,
        minimum_document_characters=MINIMUM_CHARACTERS,
        round_trip=wanted.round_trip,
        judge=wanted.judge,
    )
    return [*([tasks] if tasks else []), asked]


def _documents(
    table: pa.Table,
) -> tuple[list[dict[str, Any]], dict[str, int], list[dict[str, Any]]]:
    """DOCUMENT rows of text, title and language; their positions; what cannot be asked about."""
    if "text" not in table.column_names:
        raise UserError(
            found="columns " + ", ".join(table.column_names),
            expected="a column 'text' (and title, language where known)",
            do="rename the column that holds the documents",
            exit_status=2,
        )
    columns = [name for name in ("text", "title", "language") if name in table.column_names]
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, int] = {}
    rejected = []
    for position, row in enumerate(table.select(columns).to_pylist()):
        reason, error = _document_problem(row)
        if not reason:
            document = _document(row)
            reason = "duplicate_document" if document["doc_id"] in found else ""
        if reason:
            record = {**row, "source": "documents", "provenance": {"row": str(position)}}
            rejected.append(rejected_row(record, reason=reason, error=error))
            continue
        found[document["doc_id"]] = document
        places[document["doc_id"]] = position
    return [found[key] for key in sorted(found)], places, rejected


def _document_problem(row: Mapping[str, Any]) -> tuple[str, str]:
    problem = pair_problem({"query": "-", "text": row["text"], "task": "retrieval"})
    if problem:
        return problem
    for name in ("title", "language"):
        if not isinstance(row.get(name), str | None):
            return f"{name}_not_text", f"{name} is {type(row[name]).__name__}"
    return ("document_too_short", "") if len(row["text"]) < MINIMUM_CHARACTERS else ("", "")


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    language, script = split_language(row.get("language"))
    key = document_id(row.get("title"), row["text"])
    return {
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


def _documents_step(rows: pa.Table) -> Step:
    digest = hashlib.sha256(encode_shard(rows)).hexdigest()

    def work(context: Context) -> None:
        context.write("documents", rows, DOCUMENT, rows_per_shard=65_536)
        count = rows.num_rows
        context.ledger.append(
            LedgerRow(source="documents", rows_in=count, kept=count, unit="documents")
        )

    return Step(name="documents", version=1, config={"sha256": digest}, inputs={}, work=work)


def _flat(
    pairs: Sequence[Mapping[str, Any]], table: pa.Table, places: Mapping[str, int]
) -> pa.Table:
    """The pairs with their provenance as columns, and the input's own columns beside them."""
    rows = pa.array([places.get(pair["provenance"]["seed_document"]) for pair in pairs], pa.int64())
    made: dict[str, pa.Array] = {
        name: pa.array([pair[name] for pair in pairs], pa.string()) for name in _COLUMNS
    }
    made["request"] = pa.array([pair["provenance"]["row"] for pair in pairs], pa.string())
    for name in _PROVENANCE:
        values = [pair["provenance"][name] for pair in pairs]
        made[name] = pa.array(values, pa.int64() if name == "seed" else pa.string())
    made["document_row"] = rows
    given = table.drop_columns([n for n in ("text", "title") if n in table.column_names])
    for name, column in zip(given.column_names, given.take(rows).columns, strict=True):
        made[f"input_{name}" if name in made else name] = column
    return pa.table(made)
