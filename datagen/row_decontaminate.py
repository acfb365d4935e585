"""Remove rows of plain files that evaluation tasks test with (`datagen decontaminate`)."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from datagen.contamination import NO_KEY, evaluation_pairs, evaluation_texts, text_keys
from datagen.row_dedup import text_values, write_parquet, write_quarantine
from datagen.schema import UserError
from datagen.sources.files import read_rows
from datagen.store import Folder
from datagen.task_folders import find_tasks, read_task

QUERY_COLUMNS = ("query", "text_a")
TEXT_COLUMNS = ("positive", "document", "text", "text_b")


def decontaminate_files(
    inputs: Sequence[str],
    against: Sequence[str],
    output: str,
    *,
    query_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write kept.parquet and removed.parquet (the row with task, kind and matched_text).

    Unless named, the query is column query or text_a, the texts are positive, document, text and
    text_b, as far as they are there. A row goes when one of them matches, or the pair does; of
    several matches the first by task is named. Returns the counts.
    """
    tasks = [read_task(folder) for uri in against for folder in find_tasks(uri)]
    rows, rejected = read_rows(inputs)
    query, others = _columns(rows, query_column, text_columns)
    keys = {
        name: text_keys(text_values(rows, name)) for name in ([query] if query else []) + others
    }
    found = _matches(keys, query, others, evaluation_texts(tasks), evaluation_pairs(tasks))
    gone = pl.Series(range(rows.num_rows), dtype=pl.Int64).is_in(found["row"].implode())
    removed = rows.take(pa.array(found["row"].to_numpy()))
    for name in ("task", "kind", "matched_text"):
        # A column of the input that has this name keeps its values under another.
        if name in removed.schema.names:
            names = [f"input_{n}" if n == name else n for n in removed.schema.names]
            removed = removed.rename_columns(names)
        removed = removed.append_column(name, pa.array(found[name].to_list(), pa.string()))
    folder = Folder(output)
    write_parquet(folder, "kept.parquet", rows.filter((~gone).to_arrow()))
    write_parquet(folder, "removed.parquet", removed)
    write_quarantine(folder, rejected)
    return {
        "rows": rows.num_rows + len(rejected),
        "kept": rows.num_rows - removed.num_rows,
        "removed": removed.num_rows,
        "by_task": dict(sorted(found["task"].value_counts().iter_rows())),
        "quarantined": len(rejected),
        "columns": {"query": query, "texts": others},
    }


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


def _matches(
    keys: dict[str, pl.Series],
    query: str | None,
    others: Sequence[str],
    texts: pl.DataFrame,
    pairs: pl.DataFrame,
) -> pl.DataFrame:
    """One line for each row that matches: row, task, kind, matched_text."""
    found = [
        _numbered(key=column).join(texts.filter(~pl.col("generic")), on="key")
        for column in keys.values()
    ]
    matched = [hits.with_columns(rank=pl.lit(0)).select(_LINE) for hits in found]
    if query is not None:
        matched += [_paired(keys[query], keys[other], texts, pairs) for other in others]
    return pl.concat(matched).sort(_LINE).unique("row", keep="first", maintain_order=True)


_LINE = ["row", "rank", "task", "kind", "matched_text"]


def _paired(
    queries: pl.Series, others: pl.Series, texts: pl.DataFrame, pairs: pl.DataFrame
) -> pl.DataFrame:
    both = _numbered(query_key=queries, document_key=others)
    both = both.join(pairs, on=["query_key", "document_key"])
    named = texts.unique(["key", "task"], keep="first", maintain_order=True)
    named = named.select("task", "matched_text", query_key="key")
    both = both.join(named, on=["query_key", "task"])
    return both.with_columns(rank=pl.lit(1), kind=pl.lit("pair")).select(_LINE)


def _numbered(**columns: pl.Series) -> pl.DataFrame:
    frame = pl.DataFrame(columns).with_row_index("row").cast({"row": pl.Int64})
    return frame.filter(pl.all_horizontal(pl.col(name) != NO_KEY for name in columns))
