"""What a finished mix holds, counted shard by shard: the numbers behind its report and its card.

Rows are counted in groups of everything the tables of the page show (stage, source, task, origin,
language, script, licence, LLM), scores in histograms of fixed bins, so memory depends on the number
of groups, never on the number of rows. Cost: one pass over the columns named, texts never read.
"""

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.codes import UNKNOWN_LANGUAGE, UNKNOWN_SCRIPT
from datagen.schema import STAGES, UserError, join_language
from datagen.steps import LedgerRow
from datagen.store import MANIFEST, Folder, Manifest, open_shard, read_manifest

LEDGER = "ledger.json"
NO_LANGUAGE = frozenset({None, UNKNOWN_LANGUAGE, "zxx", "mul"})
BINS = 200  # of cosine similarity, -1 to 1
RATIO_BINS, RATIO_WIDTH = 60, 0.02  # from 0; the last bin holds all above
SEPARATOR = "\x1f"  # cannot occur in the name of a task
GROUP = ("source", "task", "origin", "language", "script", "licence", "llm", "llm_licence")


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The counts of one mix.

    `rows`: stage, the columns of GROUP, rows, pairs, negatives. `documents`: source, language,
    script, rows. `scores`: (task, source) -> histograms [2, BINS] of positives and negatives;
    `ratios`: (task, source) -> histogram [RATIO_BINS] of negatives' scores over that of the lowest
    positive of their query, where that is above 0.
    """

    manifest: Manifest
    rows: pl.DataFrame
    documents: pl.DataFrame
    scores: Mapping[tuple[str, str], np.ndarray]
    ratios: Mapping[tuple[str, str], np.ndarray]

    @property
    def stages(self) -> list[str]:
        """The stages that the mix has, in training order."""
        found = set(self.rows["stage"].to_list())
        return [stage for stage in STAGES if stage in found]

    @cached_property
    def programming_languages(self) -> frozenset[str]:
        """Languages that occur in no script at all; one text of digits alone does not make one."""
        written: dict[str, set[str | None]] = {}
        for frame in (self.rows, self.documents):
            for language, script in frame.select("language", "script").unique().iter_rows():
                written.setdefault(language, set()).add(script)
        return frozenset(
            language
            for language, scripts in written.items()
            if scripts == {UNKNOWN_SCRIPT} and language not in NO_LANGUAGE
        )

    @cached_property
    def languages(self) -> frozenset[str]:
        """Natural languages of queries and documents."""
        found = {
            language for f in (self.rows, self.documents) for language in f["language"].unique()
        }
        return frozenset(found) - self.programming_languages - NO_LANGUAGE


def count_mix(folder: Folder) -> Overview:
    """Count a finished mix; UserError when the folder is not one."""
    manifest = read_manifest(folder)
    stages = [stage for stage in STAGES if manifest.table(stage)]
    if not stages or not manifest.table("documents"):
        tables = sorted({shard.table for shard in manifest.shards})
        raise UserError(
            found=f"{folder.uri} has the tables {', '.join(tables) or 'none'}",
            expected="a finished mix: documents, and pretrain or finetune",
            do="name the folder `mix` of a build's output",
            exit_status=2,
        )
    scores: dict[tuple[str, str], np.ndarray] = {}
    ratios: dict[tuple[str, str], np.ndarray] = {}
    counts = []
    for stage in stages:
        for table in _tables(folder, manifest, stage):
            counts.append(_count_rows(table, stage))
            add_scores(scores, ratios, table)
    documents = [_count_documents(t) for t in _tables(folder, manifest, "documents")]
    return Overview(
        manifest=manifest,
        rows=_sum(counts),
        documents=_sum(documents),
        scores=dict(sorted(scores.items())),
        ratios=dict(sorted(ratios.items())),
    )


def _tables(folder: Folder, manifest: Manifest, name: str) -> Iterator[pa.Table]:
    for shard in manifest.table(name):
        yield open_shard(folder, shard.name)


def _count_rows(table: pa.Table, stage: str) -> pl.DataFrame:
    columns = {name: table[name] for name in GROUP[:6]}
    for name in ("llm", "llm_licence"):
        columns[name] = pc.struct_field(table["provenance"], name)
    for name in ("positives", "negatives"):
        columns[name] = pc.list_value_length(table[name])
    frame = pl.DataFrame(pa.table(columns))
    sums = [pl.len().cast(pl.Int64).alias("rows")]
    sums += [pl.col("positives").cast(pl.Int64).sum().alias("pairs")]
    sums += [pl.col("negatives").cast(pl.Int64).sum()]
    return frame.group_by(GROUP).agg(sums).select(pl.lit(stage).alias("stage"), pl.all())


def _count_documents(table: pa.Table) -> pl.DataFrame:
    keys = ["source", "language", "script"]
    return (
        pl.DataFrame(table.select(keys)).group_by(keys).agg(pl.len().cast(pl.Int64).alias("rows"))
    )


def _sum(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add up the counts of the same group; sorted, so that no order of arrival shows."""
    frame = pl.concat(parts)
    keys = [name for name, kind in frame.schema.items() if kind == pl.String]
    return frame.group_by(keys).agg(pl.all().sum()).sort(keys)


def add_scores(
    scores: dict[tuple[str, str], np.ndarray],
    ratios: dict[tuple[str, str], np.ndarray],
    table: pa.Table,
) -> None:
    """Add a shard's scores, and their ratios, to the histograms of their task and source."""
    joined = pc.binary_join_element_wise(table["task"], table["source"], SEPARATOR)
    encoded = joined.combine_chunks().dictionary_encode()
    names = [tuple(name.split(SEPARATOR, 1)) for name in encoded.dictionary.to_pylist()]
    codes = encoded.indices.to_numpy().astype(np.int64)
    lowest = np.full(len(codes), np.inf)
    for side, column in enumerate(("positive_scores", "negative_scores")):
        lengths = pc.list_value_length(table[column]).to_numpy()
        values = pc.list_flatten(table[column]).to_numpy()
        row = np.repeat(np.arange(len(codes)), lengths)
        finite = np.isfinite(values)
        values, row = values[finite], row[finite]
        bins = np.clip(((values + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
        for key, counts in zip(names, _histograms(codes[row], bins, len(names), BINS), strict=True):
            scores.setdefault(key, np.zeros((2, BINS), dtype=np.int64))[side] += counts
        if side == 0:
            np.minimum.at(lowest, row, values)
    some = np.flatnonzero(np.isfinite(lowest[row]) & (lowest[row] > 0))
    shares = np.maximum(values[some] / lowest[row[some]], 0)
    bins = np.minimum((shares / RATIO_WIDTH).astype(np.int64), RATIO_BINS - 1)
    found = _histograms(codes[row[some]], bins, len(names), RATIO_BINS)
    for key, counts in zip(names, found, strict=True):
        ratios[key] = ratios.get(key, np.zeros(RATIO_BINS, dtype=np.int64)) + counts


def _histograms(groups: np.ndarray, bins: np.ndarray, count: int, width: int) -> np.ndarray:
    """How often each bin occurs in each group: [count, width]."""
    return np.bincount(groups * width + bins, minlength=count * width).reshape(count, width)


def quantile(histogram: np.ndarray, share: float) -> float | None:
    """The score below which `share` of a histogram lies, to the width of a bin; None when empty."""
    total = int(histogram.sum())
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(histogram), share * total))
    return (min(place, BINS - 1) + 0.5) / (BINS / 2) - 1


def language_table(counts: pl.DataFrame, *, max_sources: int = 40) -> dict[str, Any] | None:
    """Languages by sources, both largest first; sources beyond `max_sources` share a column."""
    if counts.is_empty():
        return None
    cells: dict[str, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for source, language, script, rows in counts.select(
        "source", "language", "script", "rows"
    ).iter_rows():
        label = (language if script == UNKNOWN_SCRIPT else join_language(language, script)) or "und"
        row = cells.setdefault(label, {})
        row[source] = row.get(source, 0) + rows
        totals[source] = totals.get(source, 0) + rows
    sources = sorted(totals, key=lambda s: (-totals[s], s))
    shown, others = sources[:max_sources], sources[max_sources:]
    lines = []
    for label, row in cells.items():
        values = [row.get(s, 0) for s in shown]
        values += [sum(row.get(s, 0) for s in others)] if others else []
        lines.append((label, sum(row.values()), values))
    lines.sort(key=lambda line: (-line[1], line[0]))
    columns = shown + ([f"{len(others)} other sources"] if others else [])
    return {"sources": columns, "lines": lines, "source_count": len(sources)}


def steps_folder(mix: str) -> Folder:
    """The folder `steps` beside a mix."""
    if "://" in mix:
        return Folder(posixpath.join(posixpath.dirname(mix.rstrip("/")), "steps"))
    return Folder(os.path.join(os.path.dirname(os.path.abspath(os.path.expanduser(mix))), "steps"))


def steps_beside(mix: Folder) -> list[Manifest]:
    """The manifests of the finished steps beside a mix, in the order of its ledger, then of age."""
    place = steps_folder(mix.uri)
    if not place.exists():
        return []
    order = [row["step"] for row in mix.read_json(LEDGER)] if mix.exists(LEDGER) else []
    found = []
    for name in place.names():
        info = place.filesystem.get_file_info(place.path(f"{name}/{MANIFEST}"))
        if info.is_file:
            manifest = read_manifest(place.folder(name))
            rank = order.index(manifest.name) if manifest.name in order else len(order)
            found.append((rank, info.mtime_ns or 0, manifest.name, manifest))
    return [manifest for *_, manifest in sorted(found, key=lambda item: item[:3])]


def ledger_of(manifests: Iterable[Manifest]) -> list[dict[str, Any]]:
    """One list over all steps, as in ledger.json: `step`, then the fields of a ledger row."""
    return [{"step": manifest.name, **row} for manifest in manifests for row in manifest.ledger]


def unbalanced(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for every ledger row that does not reconcile."""
    problems = []
    for fields in ledger:
        row = LedgerRow(**{k: v for k, v in fields.items() if k != "step"})
        if row.balance:
            problems.append(
                f"the ledger of step {fields['step']!r}, source {row.source!r} does not reconcile: "
                f"{row.rows_in} {row.unit} in, {row.balance} unaccounted for"
            )
    return problems
