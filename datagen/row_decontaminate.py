"""Match rows of plain files with what evaluation tasks test with (`datagen decontaminate`).

The same kernel as the build step: `contamination.find_hits` on every column of text.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.contamination import (
    HITS,
    NO_KEY,
    Evaluation,
    build_evaluation,
    check_mode,
    count_matches,
    find_hits,
    text_keys,
)
from datagen.evaluation_sets import distinct_sets, find_sets
from datagen.row_dedup import text_values, write_parquet, write_quarantine
from datagen.schema import UserError
from datagen.sources.files import read_rows
from datagen.store import Folder

QUERY_COLUMNS = ("query", "text_a")
TEXT_COLUMNS = ("positive", "document", "text", "text_b")
ADDED = ("task", "kind", "matched_column", "matched_text", "similarity")
NO_SOURCE = "input"  # the source of rows that have no column of that name


def decontaminate_files(
    inputs: Sequence[str],
    against: Sequence[str],
    output: str,
    *,
    mode: str = "drop",
    near: bool = True,
    query_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write what `mode` asks for; each match has task, kind, matched_column, _text, similarity.

    drop: kept.parquet and removed.parquet; tag: rows.parquet, all rows, these columns null where
    nothing matches; report: matches.parquet alone. Unless named, the query is column query or
    text_a, the texts are positive, document, text and text_b, as far as they are there. A row
    matches when one of them does, or the pair; of several matches the surest is named. Returns
    the counts, `matches` by task and source among them.
    """
    check_mode(mode)
    sets = [found for place in against for found in find_sets(place)]
    distinct_sets(sets)
    rows, rejected = read_rows(inputs)
    query, others = _columns(rows, query_column, text_columns)
    texts = {name: text_values(rows, name) for name in ([query] if query else []) + others}
    evaluation = build_evaluation([found.read() for found in sets], near=near)
    found = _matches(texts, query, others, evaluation)
    _write(Folder(output), rows, found, mode)
    write_quarantine(Folder(output), rejected)
    has_source = "source" in rows.schema.names
    sources = text_values(rows, "source") if has_source else None
    named = found.with_columns(
        source=pl.lit(NO_SOURCE) if sources is None else sources.gather(found["row"]).fill_null("")
    )
    return {
        "rows": rows.num_rows + len(rejected),
        "kept": rows.num_rows - (len(found) if mode == "drop" else 0),
        "removed" if mode == "drop" else "matched": len(found),
        "by_task": dict(found["task"].value_counts().sort("task").iter_rows()),
        "by_kind": dict(found["kind"].value_counts().sort("kind").iter_rows()),
        "matches": count_matches(named),
        "quarantined": len(rejected),
        "columns": {"query": query, "texts": others},
    }


def _write(folder: Folder, rows: pa.Table, found: pl.DataFrame, mode: str) -> None:
    if mode == "tag":
        every = pl.DataFrame({"row": range(rows.num_rows)}, schema={"row": pl.Int64})
        tagged = every.join(found, on="row", how="left", maintain_order="left")
        write_parquet(folder, "rows.parquet", _with_match(rows, tagged))
        return
    matched = _with_match(rows.take(found["row"].to_arrow()), found)
    if mode == "report":
        write_parquet(folder, "matches.parquet", matched)
        return
    gone = pl.Series(range(rows.num_rows), dtype=pl.Int64).is_in(found["row"].implode())
    write_parquet(folder, "kept.parquet", rows.filter((~gone).to_arrow()))
    write_parquet(folder, "removed.parquet", matched)


def _with_match(rows: pa.Table, found: pl.DataFrame) -> pa.Table:
    """The rows with the columns ADDED; one of the input with such a name becomes input_NAME."""
    names = [f"input_{name}" if name in ADDED else name for name in rows.schema.names]
    rows = rows.rename_columns(names)
    for name in ADDED:
        kind = pa.float32() if name == "similarity" else pa.string()
        rows = rows.append_column(name, pa.array(found[name].to_list(), kind))
    return rows


def _columns(
    rows: pa.Table, query: str | None, texts: Sequence[str] | None
) -> tuple[str | None, list[str]]:
    names = rows.schema.names
    if query is None and texts is None:
        query = next((name for name in QUERY_COLUMNS if name in names), None)
    chosen = [name for name in TEXT_COLUMNS if name in names] if texts is None else list(texts)
    chosen = [name for name in chosen if name != query]
    if query is None and not chosen:
        raise UserError(
            found="columns " + ", ".join(names),
            expected="one of " + ", ".join((*QUERY_COLUMNS, *TEXT_COLUMNS)),
            do="name the columns with --query-column and --text-columns",
            exit_status=2,
        )
    return query, chosen


_LINE = ["row", *ADDED]


def _matches(
    texts: dict[str, pl.Series], query: str | None, others: Sequence[str], evaluation: Evaluation
) -> pl.DataFrame:
    """One line for each row that matches, the surest match of it: columns _LINE."""
    hits = [pl.DataFrame(schema={**HITS, "matched_column": pl.String})]
    for name, column in texts.items():
        found = find_hits(column, evaluation.texts, evaluation.near)
        hits.append(found.with_columns(matched_column=pl.lit(name)))
    every = pl.concat(hits).filter(~pl.col("generic")).select(_LINE)
    keys = {name: text_keys(column) for name, column in texts.items()}
    if query is not None:
        paired = [_paired(keys[query], keys[other], query, evaluation) for other in others]
        every = pl.concat([every, *paired])
    # Equal texts before near ones, a text before a pair; then by task, whatever the columns' order.
    pair = pl.col("kind") == "pair"
    every = every.sort("row", -pl.col("similarity"), pair, "task", "kind", "matched_text")
    return every.unique("row", keep="first", maintain_order=True)


def _paired(
    queries: pl.Series, others: pl.Series, column: str, evaluation: Evaluation
) -> pl.DataFrame:
    both = _numbered(query_key=queries, document_key=others)
    both = both.join(evaluation.pairs, on=["query_key", "document_key"])
    named = evaluation.texts.unique(["key", "task"], keep="first", maintain_order=True)
    named = named.select("task", "matched_text", query_key="key")
    both = both.join(named, on=["query_key", "task"]).with_columns(
        kind=pl.lit("pair"), matched_column=pl.lit(column), similarity=pl.lit(1.0, pl.Float32)
    )
    return both.select(_LINE)


def _numbered(**columns: pl.Series) -> pl.DataFrame:
    frame = pl.DataFrame(columns).with_row_index("row").cast({"row": pl.Int64})
    return frame.filter(pl.all_horizontal(pl.col(name) != NO_KEY for name in columns))
