"""Remove from queries and documents what evaluation tasks test with.

A query that matches goes with all its pairs; a document that matches goes from every list of
positives and negatives; where only the pair matches, that pair goes. A query left without positives
goes, too. Documents that no query names any more stay, as something to mine negatives from. How
texts match: `contamination`. Each shard is read twice, in parallel; shards keep their place, so the
shards of public rows are the same bytes whatever is added after them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.contamination import (
    NO_KEY,
    PAIRS,
    SHOWN_CHARACTERS,
    evaluation_pairs,
    evaluation_texts,
    text_keys,
)
from datagen.row_decontaminate import decontaminate_files as decontaminate_files
from datagen.schema import DOCUMENT, QUERY, UserError
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.store import Folder, open_shard
from datagen.task_folders import find_tasks, read_task, task_digest
from datagen.texts import joined

MODES = ("drop", "report")
REMOVED = pa.schema(
    [
        pa.field("query_id", pa.string()),  # null where the document matches
        pa.field("doc_id", pa.string()),  # null where the query matches
        pa.field("source", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),  # name of the evaluation task
        pa.field(
            "kind", pa.string(), nullable=False
        ),  # what it matches there: query, document, pair
        pa.field("text", pa.string(), nullable=False),
        pa.field("matched_text", pa.string(), nullable=False),
    ]
)
EVALUATION = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("generic", pa.bool_(), nullable=False),
        pa.field("matched_text", pa.string(), nullable=False),
    ]
)
HIT = pa.schema(
    [
        pa.field("side", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string())),
        *EVALUATION,
    ]
)
ROWS_PER_SHARD = 65_536


def decontaminate(
    deduped: Step,
    *,
    against: Sequence[str | Step],
    mode: str = "drop",
    name: str = "decontaminate",
) -> Step:
    """Write `queries` and `documents` without what matches the tasks, and `removed`.

    `against` names task folders, folders of them, or steps that write some under `tasks/`. With
    mode "report" nothing is removed, and the table of matches is called `matches`.
    """
    if mode not in MODES:
        raise UserError(
            found=f"mode {mode!r}",
            expected="one of " + ", ".join(MODES),
            do="choose one",
            exit_status=2,
        )
    places = [item for item in against if isinstance(item, str)]
    steps = {f"tasks_{item.name}": item for item in against if isinstance(item, Step)}
    folders = [folder for place in places for folder in find_tasks(place)]
    digests: dict[str, str] = {}
    for folder in folders:
        task, digest = task_digest(folder)
        if digests.setdefault(task, digest) != digest:
            raise UserError(
                found=f"two tasks named {task!r}, one of them {folder.uri}",
                expected="a name of its own for each task",
                do="rename one in its task.json, or leave one out",
                exit_status=2,
            )
    return Step(
        name=name,
        version=1,
        config={"tasks": digests, "mode": mode},
        inputs={"deduped": deduped, **steps},
        work=partial(_work, [folder.uri for folder in folders]),
        summary="remove what evaluation tasks test with",
    )


def _work(uris: Sequence[str], context: Context) -> None:
    steps = [folder.uri for name, folder in context.inputs.items() if name != "deduped"]
    folders = [Folder(uri) for uri in uris] + [f for uri in steps for f in find_tasks(uri)]
    tasks = [read_task(folder) for folder in folders]
    texts = _arrow(evaluation_texts(tasks), EVALUATION)
    context.write("evaluation", texts, EVALUATION, rows_per_shard=ROWS_PER_SHARD)
    index = [shard.name for shard in context.shards]
    units = _units(context, {"index": index})
    context.map_units(units, match_unit, schemas={"hits": HIT}, phase="match")
    removed = _removed(_written(context, "hits", HIT), evaluation_pairs(tasks))
    table = "removed" if context.config["mode"] == "drop" else "matches"
    context.write(table, _arrow(removed, REMOVED), REMOVED, rows_per_shard=ROWS_PER_SHARD)
    gone = [shard.name for shard in context.shards if shard.table == "removed"]
    schemas = {"queries": QUERY, "documents": DOCUMENT}
    context.map_units(_units(context, {"gone": gone}), remove_unit, schemas=schemas, phase="remove")
    counts = removed.group_by("task", "source").len().sort("task", "source")
    matches: dict[str, dict[str, int]] = {}
    for task, source, count in counts.iter_rows():
        matches.setdefault(task, {})[source] = count
    names = sorted({task.name for task in tasks})
    context.facts["decontamination"] = {"tasks": names, "matches": matches}


def _units(context: Context, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    folder, own = context.inputs["deduped"].uri, context.folder.uri
    return [
        {"folder": folder, "own": own, "table": table, "shard": shard, **shared}
        for table in ("queries", "documents")
        for shard in context.input_shards("deduped", table)
    ]


def match_unit(unit: Mapping[str, Any]) -> UnitResult:
    """The texts of one shard that equal a text of an evaluation task."""
    index = _frame(Folder(unit["own"]), unit["index"], EVALUATION)
    rows = open_shard(Folder(unit["folder"]), unit["shard"])
    side = "query" if unit["table"] == "queries" else "document"
    frame = pl.DataFrame({
        "id": pl.Series(rows["query_id" if side == "query" else "doc_id"]),
        "source": pl.Series(rows["source"]),
        "row": range(rows.num_rows),
    })  # fmt: skip
    ways = (
        [pl.Series(rows["query"])] if side == "query" else [pl.Series(rows["text"]), joined(rows)]
    )
    found = [
        frame.with_columns(text_keys(way), way.str.head(SHOWN_CHARACTERS).alias("text"))
        .filter(pl.col("key") != NO_KEY)
        .join(index, on="key")
        for way in ways
    ]
    hits = pl.concat(found).unique(["id", "task", "kind"], keep="first", maintain_order=True)
    positives = (
        pl.Series(rows["positives"].take(pa.array(hits["row"].to_numpy())))
        if side == "query"
        else pl.Series([None] * len(hits), dtype=pl.List(pl.String))
    )
    hits = hits.with_columns(pl.lit(side).alias("side"), positives.alias("positives"))
    return UnitResult(tables={"hits": _arrow(hits, HIT)})


def _removed(hits: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Rows of REMOVED: texts that match alone, and pairs of which only both together do."""
    alone = hits.filter(~pl.col("generic")).with_columns(
        query_id=pl.when(side="query").then("id"), doc_id=pl.when(side="document").then("id")
    )
    weak = hits.join(alone.select("side", "id"), on=["side", "id"], how="anti")
    asked = weak.filter(side="query").explode("positives").rename({"positives": "doc_id"})
    answers = weak.filter(side="document").select(doc_id="id", document_key="key", task="task")
    both = (
        asked.join(answers.unique(), on=["doc_id", "task"])
        .join(pairs, left_on=["key", "document_key", "task"], right_on=list(PAIRS))
        .with_columns(query_id=pl.col("id"), kind=pl.lit("pair"))
    )
    columns = REMOVED.names
    return pl.concat([alone.select(columns), both.select(columns)]).unique().sort(columns)


def remove_unit(unit: Mapping[str, Any]) -> UnitResult:
    """One shard of queries or documents without what was found, and what became of its pairs."""
    gone = _frame(Folder(unit["own"]), unit["gone"], REMOVED)
    rows = open_shard(Folder(unit["folder"]), unit["shard"])
    documents = gone.filter(pl.col("query_id").is_null())["doc_id"].unique()
    if unit["table"] == "documents":
        keep = ~pl.Series(rows["doc_id"]).is_in(documents.implode())
        return UnitResult(tables={"documents": rows.filter(keep.to_arrow())})
    queries = gone.filter(pl.col("doc_id").is_null())["query_id"].unique()
    pairs = _pairs(rows, set(queries), set(documents), gone.drop_nulls(["query_id", "doc_id"]))
    left = pairs.filter(pl.col("reason").is_null()).group_by("row").agg("doc_id").sort("row")
    kept = rows.take(pa.array(left["row"].to_numpy()))
    lists = {"positives": left["doc_id"], "given_negatives": _without(kept, set(documents))}
    for name, values in lists.items():
        column = values.to_arrow(compat_level=pl.CompatLevel.oldest())
        at = kept.schema.get_field_index(name)
        kept = kept.set_column(at, QUERY.field(name), column.cast(QUERY.field(name).type))
    return UnitResult(tables={"queries": kept}, ledger=_ledger(pairs))


def _pairs(
    rows: pa.Table, queries: set[str], documents: set[str], both: pl.DataFrame
) -> pl.DataFrame:
    """All (query, positive) pairs of the rows, with the reason why one is removed."""
    frame = pl.DataFrame({
        "row": pl.Series(range(rows.num_rows), dtype=pl.Int64),
        "query_id": pl.Series(rows["query_id"]),
        "source": pl.Series(rows["source"]),
        "doc_id": pl.Series(rows["positives"]),
    }).explode("doc_id")  # fmt: skip
    pairs = both.select("query_id", "doc_id").unique().with_columns(both=True)
    reason = (
        pl.when(pl.col("query_id").is_in(list(queries))).then(pl.lit("query_match"))
        .when(pl.col("doc_id").is_in(list(documents))).then(pl.lit("document_match"))
        .when("both").then(pl.lit("pair_match"))
    )  # fmt: skip
    frame = frame.join(pairs, on=["query_id", "doc_id"], how="left", maintain_order="left")
    return frame.with_columns(reason=reason)


def _without(rows: pa.Table, documents: set[str]) -> pl.Series:
    lists = [[d for d in ids if d not in documents] for ids in rows["given_negatives"].to_pylist()]
    return pl.Series(lists, dtype=pl.List(pl.String))


def _ledger(pairs: pl.DataFrame) -> list[LedgerRow]:
    rows = []
    for (source,), part in pairs.group_by("source", maintain_order=True):
        dropped = dict(part["reason"].drop_nulls().value_counts().iter_rows())
        kept = len(part) - sum(dropped.values())
        rows.append(LedgerRow(source=str(source), rows_in=len(part), kept=kept, dropped=dropped))
    return rows


def _frame(folder: Folder, shards: Sequence[str], schema: pa.Schema) -> pl.DataFrame:
    parts = [open_shard(folder, name) for name in shards] or [schema.empty_table()]
    frame = pl.from_arrow(pa.concat_tables(parts))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _written(context: Context, table: str, schema: pa.Schema) -> pl.DataFrame:
    names = [shard.name for shard in context.shards if shard.table == table]
    return _frame(context.folder, names, schema)


def _arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    rows = frame.select(schema.names).to_arrow(compat_level=pl.CompatLevel.oldest())
    return rows.cast(schema)
