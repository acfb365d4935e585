"""The tables of a mix's report and card, made from its counts, the ledger and what steps recorded.

Functions give plain lists and dicts, largest first and sorted by name where equal, so that the
same mix gives the same page. A step leaves what only it knows in its manifest as a *fact*:

    llms             [{llm, kind, requested, valid, kept, reasons: {reason: n}, ...}]
    llms_by_language the same for each language
    round_trip       {rows, judged, found_first, found, round_trip}
    judge            {llm, rows, judged, judged_low, relevance: {grade: n}, naturalness, calls}
    judged_negatives {llm, asked, judged, negatives, false_negatives, rate, low, high, ...}
    decontamination  {tasks: [name], matches: {task: {source: rows}}}
    mining           {sources: {source: {...}}}
    agreement        {source: {side: {declared: n, checked: n, language_agrees: share, ...}}}
    confusions       {source: [{side, declared, detected, texts}]}
    samples          {source: {rule: [{row, query, text}]}}, of what cleaning dropped
    overlap          {side: {clusters: {source: n}, shared: [[source, source, n]]}}
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from datagen.overview import Overview, language_table, quantile
from datagen.store import Manifest
from datagen.synthesize.llm_table import summed

FACTS = (
    "llms", "llms_by_language", "round_trip", "judge", "judged_negatives", "decontamination",
    "mining", "agreement", "confusions", "samples", "overlap",
)  # fmt: skip
LARGEST_GROUPS = 300  # of LLM, kind and language, that the page shows

# Manifests sort their keys; a table reads better in the order in which things happened.
_ORDER = (
    "llm", "source", "kind", "language", "queries", "requested", "valid", "kept", "reasons",
    "prompt_tokens", "output_tokens", "tokens_per_second", "seconds", "gpu_seconds",
)  # fmt: skip


def words(name: str) -> str:
    """`pair_classification` -> `pair classification`."""
    return name.replace("_", " ")


def totals(overview: Overview) -> dict[str, Any]:
    """The headline numbers of a mix."""
    rows = overview.rows
    return {
        "stages": {stage: _sizes(rows.filter(stage=stage)) for stage in overview.stages},
        "documents": int(overview.documents["rows"].sum()),
        "languages": len(overview.languages),
        "programming_languages": len(overview.programming_languages),
        "sources": rows["source"].n_unique(),
        "llms": rows["llm"].drop_nulls().n_unique(),
    }


def _sizes(rows: pl.DataFrame) -> dict[str, int]:
    synthetic = rows.filter(pl.col("origin") == "synthetic")
    return {
        "queries": int(rows["rows"].sum()),
        "pairs": int(rows["pairs"].sum()),
        "negatives": int(rows["negatives"].sum()),
        "synthetic": int(synthetic["rows"].sum()),
    }


def stage_table(overview: Overview, stage: str) -> dict[str, Any]:
    """One stage: its sizes, by task and by task and source."""
    rows = overview.rows.filter(stage=stage)
    tasks = []
    for (task,), part in sorted(
        rows.group_by("task"), key=lambda item: (-item[1]["rows"].sum(), item[0])
    ):
        languages = part["language"].drop_nulls().n_unique()
        sources = (
            part.group_by("source")
            .agg(pl.col("rows").sum())
            .sort(["rows", "source"], descending=[True, False])
        )
        tasks.append(
            {
                "task": task,
                "languages": languages,
                "sources": list(sources.iter_rows(named=True)),
                **_sizes(part),
            }
        )
    return {"stage": stage, "tasks": tasks, **_sizes(rows)}


def funnel_table(
    ledger: Iterable[Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One entry a step and unit, in order: totals, reasons and the rows of each source."""
    steps: dict[tuple[str, str], dict[str, Any]] = {}
    for row in ledger:
        empty = {"rows_in": 0, "kept": 0, "reasons": {}, "errors": {}, "sources": []}
        entry = steps.setdefault((row["step"], row["unit"]), empty)
        entry["rows_in"] += row["rows_in"]
        entry["kept"] += row["kept"]
        for key, counts in (("reasons", row["dropped"]), ("errors", row["quarantined"])):
            for reason, count in counts.items():
                entry[key][reason] = entry[key].get(reason, 0) + count
        entry["sources"].append(row)
    for (step, unit), entry in steps.items():
        entry |= {"step": step, "unit": unit, "label": f"{words(step)} ({unit})"}
        entry["dropped"] = sum(entry["reasons"].values())
        entry["quarantined"] = sum(entry["errors"].values())
        entry["seconds"] = runs.get(step, {}).get("seconds")
        entry["sources"].sort(key=lambda row: (-row["rows_in"], row["source"]))
    return list(steps.values())


def language_tables(overview: Overview) -> list[dict[str, Any]]:
    """Source by language, for the queries of each stage and for the documents."""
    counts = {f"{stage} queries": overview.rows.filter(stage=stage) for stage in overview.stages}
    counts["documents"] = overview.documents
    code = pl.col("language").is_in(list(overview.programming_languages))
    tables = []
    kinds = (("Languages", ~code.fill_null(False)), ("Programming languages", code))
    for kind, condition in kinds:
        for name, frame in counts.items():
            table = language_table(frame.filter(condition))
            entry = {"title": f"{kind} of the {name}", "name": name, "kind": kind}
            tables += [entry | table] if table else []
    return tables


def overlap_tables(facts: Mapping[str, Any], *, most: int) -> list[dict[str, Any]]:
    """What share of a source's texts another source has, too: `most` sources that share most."""
    tables = []
    for sides in facts["overlap"].values():
        for side, value in sorted(sides.items()):
            shared = {(one, other): n for one, other, n in value["shared"]}
            weight: dict[str, int] = {}
            for (one, other), n in shared.items():
                weight[one] = weight.get(one, 0) + n
                weight[other] = weight.get(other, 0) + n
            names = sorted(weight, key=lambda name: (-weight[name], name))[:most]
            shares = [
                [
                    round((shared.get((a, b), 0) + shared.get((b, a), 0)) / value["clusters"][a], 4)
                    for b in names
                ]
                for a in names
            ]
            if names:
                tables.append({"side": side, "sources": names, "shares": shares})
    return tables


def gather_facts(steps: Iterable[Manifest]) -> dict[str, dict[str, Any]]:
    """What the steps left for the report: fact -> step -> value."""
    found: dict[str, dict[str, Any]] = {fact: {} for fact in FACTS}
    for step in steps:
        for fact in FACTS:
            if fact in step.stats:
                found[fact][step.name] = step.stats[fact]
    return found


def record_table(title: str, value: Any, *, key: str) -> dict[str, Any]:
    """A fact as a table: one row a record; what is not a number, a name or counts is left out.

    `value` is a list of records, or maps what `key` calls to a record each.
    """
    records = value if isinstance(value, list) else [{key: k, **v} for k, v in value.items()]
    columns = list(dict.fromkeys(name for record in records for name in record))
    columns.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    listed = {name for record in records for name, v in record.items() if isinstance(v, list)}
    rows = [{c: record.get(c) for c in columns if c not in listed} for record in records]
    return {"title": title, "rows": rows}


def llm_tables(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each LLM was asked and what of it was kept, for each step that asked any."""
    tables = []
    for step, value in facts["llms"].items():
        records = facts["llms_by_language"].get(step, [])
        languages = summed(records, by=("llm", "language"))
        largest = sorted(records, key=lambda record: -record["requested"])[:LARGEST_GROUPS]
        some = f", the {LARGEST_GROUPS} largest" if len(records) > LARGEST_GROUPS else ""
        for title, rows in (
            (step, value),
            (f"{step}, by language", languages),
            (f"{step}, by kind and language{some}", largest),
        ):
            if rows:
                tables.append(record_table(title, [*map(_with_rate, rows)], key="llm"))
    return tables


def _with_rate(record: Mapping[str, Any]) -> dict[str, Any]:
    """With output tokens a second, where the time is known."""
    seconds = record.get("seconds")
    rate = record.get("output_tokens", 0) / seconds if seconds else None
    return {**record, "tokens_per_second": rate and round(rate, 1)}


def check_tables(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the round trip and the judge said of written rows, and a judge of negatives."""
    return [
        record_table(f"{step}, {name}", {step: record}, key="step")
        for name in ("round_trip", "judge", "judged_negatives")
        for step, record in facts[name].items()
    ]


def mining_tables(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the rules of mining did to each source."""
    return [
        record_table(f"Rules of step {step}", value["sources"], key="source")
        for step, value in facts["mining"].items()
    ]


def evaluation_tasks(facts: Mapping[str, Any]) -> list[str]:
    """Names of the evaluation tasks that the steps matched the rows with."""
    return sorted({task for value in facts["decontamination"].values() for task in value["tasks"]})


def match_tables(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows removed for each evaluation task, by source, for each step that looked for any."""
    tables = []
    for step, value in facts["decontamination"].items():
        counts = value["matches"]
        sources = sorted({source for row in counts.values() for source in row})
        lines = [
            (task, sum(row.values()), [row.get(source, 0) for source in sources])
            for task, row in sorted({**dict.fromkeys(value["tasks"], {}), **counts}.items())
        ]
        tables.append({"title": f"Matches of step {step}", "columns": sources, "lines": lines})
    return tables


def agreement_tables(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often detection agrees with what a source declares, and what it says otherwise."""
    tables = []
    for step, sources in facts["agreement"].items():
        confusions = facts["confusions"].get(step, {})
        rows = [
            {
                "source": source,
                "side": side,
                "declared": counts["declared"],
                "checked": counts["checked"],
                "agrees, %": round(100 * counts["language_agrees"], 1),
                "otherwise": _otherwise(confusions.get(source, []), side),
            }
            for source, sides in sources.items()
            for side, counts in sides.items()
            if counts["checked"]
        ]
        if rows:
            tables.append({"title": f"Declared and detected in step {step}", "rows": rows})
    return tables


def _otherwise(confusions: Iterable[Mapping[str, Any]], side: str) -> dict[str, int]:
    """`{"ary_Arab as arb_Arab": 1793}`, the most frequent three."""
    found = [c for c in confusions if c["side"] == side][:3]
    return {f"{c['declared']} as {c['detected']}": c["texts"] for c in found}


def dropped_tables(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A few rows that each rule of cleaning dropped, for each step that cleans."""
    tables = []
    for step, sources in facts["samples"].items():
        rows = [
            {"rule": rule, "source": source, "query": row["query"], "document": row["text"]}
            for source, rules in sources.items()
            for rule, samples in rules.items()
            for row in samples[:2]
        ]
        rows.sort(key=lambda row: (row["rule"], row["source"]))
        if rows:
            tables.append({"title": f"Dropped by step {step}", "rows": rows})
    return tables


def written_by(overview: Overview) -> list[dict[str, Any]]:
    """Synthetic rows of each stage by LLM and its licence."""
    synthetic = overview.rows.filter(pl.col("origin") == "synthetic")
    keys = ["llm", "llm_licence", "stage", "task"]
    summed = synthetic.group_by(keys).agg(pl.col("rows").sum()).sort(keys)
    return list(summed.iter_rows(named=True))


def licence_table(overview: Overview) -> list[dict[str, Any]]:
    """Licences with their sources and the rows of each stage, largest first."""
    lines = []
    for (licence,), part in overview.rows.group_by("licence"):
        stages = {stage: int(part.filter(stage=stage)["rows"].sum()) for stage in overview.stages}
        sources = sorted(part["source"].unique())
        lines.append({"licence": licence, "sources": sources, "stages": stages})
    return sorted(lines, key=lambda line: (-sum(line["stages"].values()), line["licence"] or ""))


def scores_by(overview: Overview, part: int) -> dict[str, np.ndarray]:
    """Histograms added up by task (part 0) or source (part 1), where there are any scores."""
    found: dict[str, np.ndarray] = {}
    for key, pair in overview.scores.items():
        found[key[part]] = found.get(key[part], 0) + pair
    return {name: pair for name, pair in sorted(found.items()) if pair.any()}


def ratios_by_source(overview: Overview) -> dict[str, np.ndarray]:
    """Histograms of score ratios: of all sources, then of each that has any."""
    found: dict[str, np.ndarray] = {}
    for (_, source), counts in overview.ratios.items():
        found[source] = found.get(source, 0) + counts
    some = {name: counts for name, counts in sorted(found.items()) if counts.any()}
    total = sum(some.values())
    return {"all sources": np.asarray(total), **some} if some else {}


def score_line(name: str, pair: np.ndarray) -> dict[str, Any]:
    """Number and quantiles of a source's positive and negative scores."""
    quantiles = {
        side: [quantile(counts, at) for at in (0.1, 0.5, 0.9)]
        for side, counts in zip(("positives", "negatives"), pair, strict=True)
    }
    counts = {"positive_count": int(pair[0].sum()), "negative_count": int(pair[1].sum())}
    return {"source": name, **quantiles, **counts}
