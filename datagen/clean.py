"""Clean pairs: normalise their texts, and drop by named rules what cannot teach anything.

Normalisers are in `clean_text`, rules in `clean_rules`; both work on whole columns, have a name, a
counter per source, and can be left out. Rules are tried in order; each dropped row is kept in the
table `dropped` under the rule's name, and a few of each rule and source are in the step's facts as
samples. Pairs that nothing is left of go to quarantine. Linear in the text, one unit a shard.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datagen.clean_pairs import clean_pairs, code_sides
from datagen.clean_rules import DEFAULT_LIMITS, DEFAULT_RULES, RULES, Limits, Pairs, first_reasons
from datagen.clean_text import NORMALISERS
from datagen.schema import DROPPED, PAIR, QUARANTINE, rejected_row
from datagen.sources import check_choice, content_order
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.store import Folder, open_shard
from datagen.validation import split_valid

SAMPLES = 5  # dropped rows kept for the report, per source and rule
SAMPLE_CHARACTERS = 300

# Dropped pairs as the report shows them; `order` draws them, by content alone.
SAMPLE = pa.schema(
    [(name, pa.string()) for name in ("source", "rule", "order", "row", "query", "text")]
)
SCHEMAS = {"pairs": PAIR, "dropped": DROPPED, "quarantine": QUARANTINE, "samples": SAMPLE}


def clean(
    pairs: Step,
    *,
    rules: tuple[str, ...] = DEFAULT_RULES,
    normalisers: tuple[str, ...] = tuple(NORMALISERS),
    limits: Limits = DEFAULT_LIMITS,
    name: str = "clean",
) -> Step:
    """Normalise every pair and drop those that a rule names."""
    for rule in rules:
        check_choice(rule, RULES, what="rule")
    for normaliser in normalisers:
        check_choice(normaliser, NORMALISERS, what="normaliser")
    return Step(
        name=name,
        version=2,
        config={
            "rules": list(rules),
            "normalisers": list(normalisers),
            "limits": dataclasses.asdict(limits),
        },
        inputs={"pairs": pairs},
        work=_work,
        summary="normalise texts and drop unusable pairs",
    )


def _work(context: Context) -> None:
    folder, shards = context.inputs["pairs"].uri, context.input_shards("pairs", "pairs")
    units = [{"folder": folder, "shard": shard, **context.config} for shard in shards]
    context.map_units(units, _clean_unit, schemas=SCHEMAS)
    tables = [open_shard(context.folder, s.name) for s in context.shards if s.table == "samples"]
    context.facts["samples"] = _drawn(pa.concat_tables([SAMPLE.empty_table(), *tables]))


def _drawn(samples: pa.Table) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Source -> rule -> a few dropped rows, no two of the same texts."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    keys = [(name, "ascending") for name in ("source", "rule", "order", "row")]
    for sample in samples.sort_by(keys).to_pylist():
        rows = found.setdefault(sample["source"], {}).setdefault(sample["rule"], {})
        if len(rows) < SAMPLES:
            rows.setdefault(sample["order"], {n: sample[n] for n in ("row", "query", "text")})
    return {
        source: {rule: [*rows.values()] for rule, rows in rules.items()}
        for source, rules in found.items()
    }


def _clean_unit(unit: dict[str, Any]) -> UnitResult:
    pairs = open_shard(Folder(unit["folder"]), unit["shard"])
    sources = pairs["source"]
    pairs, stats = clean_pairs(pairs, normalisers=unit["normalisers"])
    pairs, rejected = split_valid(pairs)
    reasons = drop_reasons(pairs, rules=unit["rules"], limits=Limits(**unit["limits"]))
    gone = np.flatnonzero(reasons)
    dropped = [
        rejected_row(pair, reason=reason)
        for pair, reason in zip(_rows(pairs, gone), reasons[gone], strict=True)
    ]
    tables = {
        "pairs": pairs.filter(pa.array(reasons == "")),
        "dropped": pa.Table.from_pylist(dropped, schema=DROPPED),
        "quarantine": pa.Table.from_pylist(rejected, schema=QUARANTINE),
        "samples": _samples(pairs, gone, reasons),
    }
    ledger = _ledger(sources, dropped=dropped, rejected=rejected)
    return UnitResult(tables=tables, ledger=ledger, stats=stats)


def _rows(pairs: pa.Table, places: np.ndarray) -> list[dict[str, Any]]:
    return pairs.take(pa.array(places)).to_pylist()


def drop_reasons(
    pairs: pa.Table, *, rules: Sequence[str] = DEFAULT_RULES, limits: Limits = DEFAULT_LIMITS
) -> np.ndarray:
    """For each cleaned pair the first rule that takes it, or an empty string."""
    columns = Pairs(
        query=pl.Series(pl.from_arrow(pairs["query"])),
        text=pl.Series(pl.from_arrow(pairs["text"])),
        task=pl.Series(pl.from_arrow(pairs["task"])),
        query_code=code_sides(pairs, "query"),
        document_code=code_sides(pairs, "document"),
        limits=limits,
    )
    return first_reasons(columns, rules)


def _samples(pairs: pa.Table, gone: np.ndarray, reasons: np.ndarray) -> pa.Table:
    """Of each source and rule the few dropped texts that come first in an order of the content."""
    drawn: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    texts = ("source", "query", "text")
    names = pc.struct_field(pairs["provenance"], "row").take(pa.array(gone)).to_pylist()
    found = zip(names, _rows(pairs.select(texts), gone), reasons[gone], strict=True)
    for row, pair, rule in sorted(found, key=lambda one: one[0] or ""):
        order = content_order("sample", pair["query"], pair["text"])
        cut = {name: pair[name][:SAMPLE_CHARACTERS] for name in texts}
        sample = {**cut, "rule": rule, "row": row, "order": order}
        drawn.setdefault((pair["source"], rule), {}).setdefault(order, sample)
    rows = [rows[order] for _, rows in sorted(drawn.items()) for order in sorted(rows)[:SAMPLES]]
    return pa.Table.from_pylist(rows, schema=SAMPLE)


def _ledger(
    sources: pa.ChunkedArray,
    *,
    dropped: Sequence[Mapping[str, Any]],
    rejected: Sequence[Mapping[str, Any]],
) -> list[LedgerRow]:
    counts = sources.value_counts().to_pylist()
    rows_in = {count["values"]: count["counts"] for count in counts}
    gone = Counter(row["source"] for row in [*dropped, *rejected])
    return [
        LedgerRow(
            source=source,
            rows_in=rows,
            kept=rows - gone[source],
            dropped=_reasons(dropped, source),
            quarantined=_reasons(rejected, source),
        )
        for source, rows in sorted(rows_in.items())
    ]


def _reasons(rows: Sequence[Mapping[str, Any]], source: str) -> dict[str, int]:
    return dict(sorted(Counter(row["reason"] for row in rows if row["source"] == source).items()))
