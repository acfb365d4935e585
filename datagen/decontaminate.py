"""Remove from queries and documents what evaluation tasks test with.

A query that matches goes with all its pairs; a document that matches goes from every list of
positives and negatives; where only the pair matches, that pair goes. A query left without positives
goes, too. Documents that no query names any more stay, as something to mine negatives from. How
texts match: `contamination`. Each shard is read twice, in parallel; shards keep their place, so the
shards of public rows are the same bytes whatever is added after them.

Mode drop removes; tag keeps all rows and lists each query and document that matches, with its
tasks, in the table `tags`; report keeps all rows and counts. In both, what drop would remove is in
the table `matches`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.contamination import (
    NEAR,
    PAIRS,
    SHOWN_CHARACTERS,
    build_evaluation,
    check_mode,
    count_matches,
    find_hits,
)
from datagen.evaluation_sets import EvaluationSet, distinct_sets, find_sets
from datagen.match_schema import HIT, INDEX_TABLES, REMOVED, TAGS
from datagen.near_index import Counts, NearIndex
from datagen.row_decontaminate import decontaminate_files as decontaminate_files
from datagen.schema import DOCUMENT, QUERY
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.store import Folder, open_shard
from datagen.texts import joined

ROWS_PER_SHARD = 65_536
SHINGLES_PER_SHARD = 1 << 22


def decontaminate(
    deduped: Step,
    *,
    against: Sequence[str | Step],
    mode: str = "drop",
    near: bool = True,
    name: str = "decontaminate",
) -> Step:
    """Write `queries` and `documents` without what matches the tasks, and `removed`.

    `against` names evaluation sets (see `evaluation_sets`), or steps that write task folders under
    `tasks/`. Without `near`, only equal texts match.
    """
    check_mode(mode)
    places = [item for item in against if isinstance(item, str)]
    steps = {f"tasks_{item.name}": item for item in against if isinstance(item, Step)}
    sets = [found for place in places for found in find_sets(place)]
    return Step(
        name=name,
        version=2,
        config={"tasks": distinct_sets(sets), "mode": mode, "near": near},
        inputs={"deduped": deduped, **steps},
        work=partial(_work, sets),
        summary="remove what evaluation tasks test with",
    )


def _work(sets: Sequence[EvaluationSet], context: Context) -> None:
    steps = [folder.uri for name, folder in context.inputs.items() if name != "deduped"]
    tasks = [found.read() for found in [*sets, *(s for uri in steps for s in find_sets(uri))]]
    evaluation = build_evaluation(tasks, near=context.config["near"])
    _write_index(context, evaluation.texts, evaluation.near)
    index = {name: _names(context, name) for name in INDEX_TABLES}
    units = _units(context, {"index": index})
    context.map_units(units, match_unit, schemas={"hits": HIT}, phase="match")
    removed = _removed(_written(context, "hits", HIT), evaluation.pairs)
    mode = context.config["mode"]
    table = "removed" if mode == "drop" else "matches"
    context.write(table, _arrow(removed, REMOVED), REMOVED, rows_per_shard=ROWS_PER_SHARD)
    if mode == "tag":
        context.write("tags", _arrow(_tags(removed), TAGS), TAGS, rows_per_shard=ROWS_PER_SHARD)
    units = _units(context, {"gone": _names(context, "removed")})
    schemas = {"queries": QUERY, "documents": DOCUMENT}
    context.map_units(units, remove_unit, schemas=schemas, phase="remove")
    names = sorted({task.name for task in tasks})
    kinds = dict(removed["kind"].value_counts().sort("kind").iter_rows())
    context.facts["decontamination"] = {
        "tasks": names, "matches": count_matches(removed), "kinds": kinds,
    }  # fmt: skip


def _write_index(context: Context, texts: pl.DataFrame, near: NearIndex) -> None:
    frames = (texts, near.texts, near.index, near.common.table)
    for (name, schema), frame in zip(INDEX_TABLES.items(), frames, strict=True):
        rows = SHINGLES_PER_SHARD if "shingle" in schema.names else ROWS_PER_SHARD
        context.write(name, _arrow(frame, schema), schema, rows_per_shard=rows)


@lru_cache(maxsize=1)
def _read_index(uri: str, names: tuple[tuple[str, ...], ...]) -> tuple[pl.DataFrame, NearIndex]:
    parts = zip(names, INDEX_TABLES.values(), strict=True)
    texts, near, index, counts = (_frame(Folder(uri), shards, schema) for shards, schema in parts)
    return texts, NearIndex(texts=near, index=index, common=Counts(counts))


def _tags(removed: pl.DataFrame) -> pl.DataFrame:
    keys = ["query_id", "doc_id", "source"]
    return (
        removed.group_by(keys)
        .agg(
            pl.col("task").unique().sort().alias("tasks"),
            pl.col("kind").unique().sort().alias("kinds"),
            pl.col("similarity").max(),
        )
        .sort(keys)
    )


def _units(context: Context, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    folder, own = context.inputs["deduped"].uri, context.folder.uri
    return [
        {"folder": folder, "own": own, "table": table, "shard": shard, **shared}
        for table in ("queries", "documents")
        for shard in context.input_shards("deduped", table)
    ]


def match_unit(unit: Mapping[str, Any]) -> UnitResult:
    """The texts of one shard that match a text of an evaluation task."""
    names = tuple(tuple(unit["index"][name]) for name in INDEX_TABLES)
    evaluation, near = _read_index(unit["own"], names)
    rows = open_shard(Folder(unit["folder"]), unit["shard"])
    if unit["table"] == "queries":
        side, texts, others = "query", pl.Series(rows["query"]), []
    else:
        side, texts, others = "document", pl.Series(rows["text"]), [joined(rows)]
    found = [_shown(find_hits(texts, evaluation, near), texts)]
    found += [_shown(find_hits(way, evaluation, _NO_INDEX), way) for way in others]
    hits = pl.concat(found).unique(["row", "task", "kind"], keep="first", maintain_order=True)
    places = pa.array(hits["row"].to_numpy())
    positives = (
        pl.Series(rows["positives"].take(places))
        if side == "query"
        else pl.Series([None] * len(hits), dtype=pl.List(pl.String))
    )
    hits = hits.with_columns(
        id=pl.Series(rows["query_id" if side == "query" else "doc_id"].take(places)),
        source=pl.Series(rows["source"].take(places)),
        side=pl.lit(side),
        positives=positives,
    )
    return UnitResult(tables={"hits": _arrow(hits, HIT)})


_NO_INDEX = NearIndex.of_none()


def _shown(hits: pl.DataFrame, texts: pl.Series) -> pl.DataFrame:
    return hits.with_columns(text=texts.gather(hits["row"]).str.head(SHOWN_CHARACTERS))


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
    documents = set(gone.filter(pl.col("query_id").is_null())["doc_id"])
    if unit["table"] == "documents":
        keep = ~pl.Series(rows["doc_id"]).is_in(list(documents))
        return UnitResult(tables={"documents": rows.filter(keep.to_arrow())})
    pairs = _pairs(rows, gone)
    left = pairs.filter(pl.col("reason").is_null()).group_by("row").agg("doc_id").sort("row")
    kept = rows.take(pa.array(left["row"].to_numpy()))
    lists = {"positives": left["doc_id"], "given_negatives": _without(kept, documents)}
    for name, values in lists.items():
        column = values.to_arrow(compat_level=pl.CompatLevel.oldest())
        at = kept.schema.get_field_index(name)
        kept = kept.set_column(at, QUERY.field(name), column.cast(QUERY.field(name).type))
    return UnitResult(tables={"queries": kept}, ledger=_ledger(pairs))


def _pairs(rows: pa.Table, gone: pl.DataFrame) -> pl.DataFrame:
    """All (query, positive) pairs of the rows, with the reason why one is removed."""
    frame = pl.DataFrame({
        "row": pl.Series(range(rows.num_rows), dtype=pl.Int64),
        "query_id": pl.Series(rows["query_id"]),
        "source": pl.Series(rows["source"]),
        "doc_id": pl.Series(rows["positives"]),
    }).explode("doc_id")  # fmt: skip
    pairs = gone.drop_nulls(["query_id", "doc_id"]).select("query_id", "doc_id").unique()
    near = pl.col("kind").str.starts_with(NEAR)
    reasons: dict[str, pl.Expr] = {}
    for part, suffix in ((gone.filter(~near), "_match"), (gone.filter(near), "_near_match")):
        queries = part.filter(pl.col("doc_id").is_null())["query_id"].unique()
        documents = part.filter(pl.col("query_id").is_null())["doc_id"].unique()
        reasons["query" + suffix] = pl.col("query_id").is_in(queries.to_list())
        reasons["document" + suffix] = pl.col("doc_id").is_in(documents.to_list())
    reasons["pair_match"] = pl.col("both")
    named = [pl.when(found).then(pl.lit(reason)) for reason, found in reasons.items()]
    pairs = pairs.with_columns(both=True)
    frame = frame.join(pairs, on=["query_id", "doc_id"], how="left", maintain_order="left")
    return frame.with_columns(reason=pl.coalesce(named))


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


def _names(context: Context, table: str) -> list[str]:
    return [shard.name for shard in context.shards if shard.table == table]


def _written(context: Context, table: str, schema: pa.Schema) -> pl.DataFrame:
    return _frame(context.folder, _names(context, table), schema)


def _arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    rows = frame.select(schema.names).to_arrow(compat_level=pl.CompatLevel.oldest())
    return rows.cast(schema)
