"""What the ablations compare: variants of the mix and of training, and the tables they stand in.

Every variant differs in one thing from the baseline (loss of llama-embed-nemotron-8b, bidirectional
attention, mined negatives, all synthetic rows), or from the first line of its table. Figures of
papers stand beside, each with the model that they are of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datagen.schema import UserError
from recipes.ablation_scores import Line, Table
from recipes.mix_variants import MixRules

TABLES = ("loss", "llms", "merging", "stages", "attention", "margin", "negatives", "synthetic")
BASELINE, TWO_STAGES = "baseline", "two-stages"
MARGINS = (0.95, 0.9, 0.85)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from the baseline: rows of the mix, stages and options of training."""

    rules: MixRules
    stages: tuple[str, ...] = ("finetune",)
    options: Mapping[str, Any] = field(default_factory=dict)


def variants(
    tables: Sequence[str],
    *,
    rows: int,
    llms: Mapping[str, Mapping[str, int]],
    languages: Sequence[str] = (),
) -> dict[str, Variant]:
    """The variants that the tables ask for, by name; `rows` public ones, `llms` as `llm_rows`.

    With `languages`, all of them have queries of these alone.
    """
    if not llms and {*tables} & {"llms", "synthetic"}:
        raise UserError(
            found="no synthetic rows in the mix",
            expected="rows that LLMs wrote",
            do="leave out the tables llms and synthetic, or name another mix",
            exit_status=2,
        )
    public = MixRules(public_rows=rows, languages=tuple(languages) or None)
    losses = [loss for loss, *_ in LOSSES[1:]]
    shares = equal_shares(llms) if "llms" in tables else {}
    least = min(MARGINS)
    none = {"no-synthetic": Variant(rules=replace(public, synthetic=()))}
    made: dict[str, dict[str, Variant]] = {
        "loss": {f"loss-{n}": Variant(rules=public, options={"loss": n}) for n in losses},
        "llms": none | {n: Variant(rules=replace(public, synthetic=s)) for n, s in shares.items()},
        "stages": {TWO_STAGES: Variant(rules=public, stages=("pretrain", "finetune"))},
        "attention": {"causal": Variant(rules=public, options={"causal": True})},
        "margin": {
            f"margin-{m}": Variant(rules=replace(public, margin=m, enough_at=least))
            for m in MARGINS
        },
        "negatives": {"random-negatives": Variant(rules=replace(public, random_negatives=True))},
        "synthetic": none,
    }
    found = {BASELINE: Variant(rules=public)}
    for table in tables:
        found |= made.get(table, {})
    return found


def equal_shares(llms: Mapping[str, Mapping[str, int]]) -> dict[str, tuple]:
    """Synthetic rows of each LLM alone and of all together: as many of every task in each."""
    if len(llms) < 2:
        raise UserError(
            found=f"synthetic rows of {len(llms)} LLMs",
            expected="at least two LLMs to compare",
            do="leave out the table llms, or name a mix that several LLMs wrote for",
            exit_status=2,
        )
    tasks = sorted(set.intersection(*(set(rows) for rows in llms.values())))
    most = {task: min(rows[task] for rows in llms.values()) for task in tasks}
    found = {f"llm-{llm}": tuple((llm, t, most[t]) for t in tasks) for llm in sorted(llms)}
    shares = [(n, t, i) for t in tasks for i, n in enumerate(sorted(llms))]
    mixed = ((n, t, most[t] // len(llms) + (i < most[t] % len(llms))) for n, t, i in shares)
    return {"llm-mix": tuple(row for row in mixed if row[2]), **found}


# Loss, label, mean over tasks in Table 4.
LOSSES = (
    ("nemotron", "hard negatives only", 64.03),
    ("gecko", "Gecko: + positives and queries of the batch", 63.45),
    ("gemini", "Gemini: + positives of the batch", 63.83),
    ("qwen3", "Qwen3: + positive-positive, margin mask", 62.14),
    ("f2llm", "F2LLM: hard loss + in-batch loss", None),
)
NEMOTRON = "Paper: llama-embed-nemotron-8b (arXiv 2511.07025), {}, mean over the tasks of MTEB"
NEMOTRON += "(Multilingual, v2): another model, size, mix and set of tasks."
RETRIEVER = "Paper: NV-Retriever (arXiv 2407.15831), mean nDCG@10 x 100 of three BEIR tasks, {}: "
RETRIEVER += "another model, size, mix and set of tasks."


def table_of(name: str, variants: Mapping[str, Variant]) -> Table:
    """What a table compares. Its lines name variants."""
    return _TABLES[name](variants)


def _loss(variants: Mapping[str, Variant]) -> Table:
    lines = [Line(LOSSES[0][1], BASELINE, LOSSES[0][2])]
    lines += [Line(label, f"loss-{loss}", paper) for loss, label, paper in LOSSES[1:]]
    return Table(
        title="Loss",
        lines=lines,
        paper=NEMOTRON.format("Table 4, a 1B model with the learning rate tuned for each loss")
        + " Here all losses have one learning rate.",
    )


def _llms(variants: Mapping[str, Variant]) -> Table:
    alone = [v for v in variants if v.startswith("llm-") and v != "llm-mix"]
    lines = [Line("rows of all LLMs", "llm-mix", 62.89), Line("no rows", "no-synthetic", 61.95)]
    lines += [Line(name.removeprefix("llm-"), name) for name in alone]
    count = sum(n for *_, n in variants["llm-mix"].rules.synthetic or ())
    return Table(
        title="Synthetic rows of one LLM and of all",
        lines=lines,
        paper=NEMOTRON.format("Table 5, a 1B model, 100,000 rows each")
        + " Its six LLMs alone gave 62.21 to 62.64.",
        notes=[f"{count} synthetic rows, as many of each task, are added to the public ones."],
    )


def _merging(variants: Mapping[str, Variant]) -> Table:
    return Table(
        title="Merging",
        lines=[
            Line("single runs", BASELINE, 68.10),
            Line("best single run (chosen on these tasks)", "best", 68.62),
            Line("pairs of runs, merged", "merged-pairs", against="pair-means"),
            Line("all runs, merged", "merged-all", 69.46),
        ],
        paper=NEMOTRON.format("Table 7, six runs that differ in data and hyperparameters"),
        notes=[
            "Runs differ in their seed alone. Pairs are compared with the mean of their two runs; "
            "they share runs, and the merge of all is one model: no interval, no claim."
        ],
    )


def _stages(variants: Mapping[str, Variant]) -> Table:
    return Table(
        title="Stages",
        lines=[Line("second stage alone", BASELINE), Line("both stages", TWO_STAGES)],
        paper="The papers train in two stages and do not say what the second alone gives.",
        notes=[
            "The first stage adds as many public rows, of retrieval, with one negative each; "
            "both stages have one learning rate."
        ],
    )


def _attention(variants: Mapping[str, Variant]) -> Table:
    return Table(
        title="Attention",
        lines=[Line("bidirectional", BASELINE), Line("causal", "causal")],
        paper="Both with mean pooling. The papers have no such table; NVIDIA's models are "
        "bidirectional, F2LLM-v2's are causal.",
    )


def _margin(variants: Mapping[str, Variant]) -> Table:
    papers = {0.95: 58.56}
    return Table(
        title="Margin of the hard negatives",
        lines=[
            Line(f"at most {m:g} of the positive's score", f"margin-{m}", papers.get(m))
            for m in MARGINS
        ],
        paper=RETRIEVER.format("a 0.3B model; without any limit it gives 54.07"),
        notes=[
            "All lines train on the same rows: those with enough negatives under the strictest "
            "margin. Labels of classification are wrong at any score."
        ],
    )


def _negatives(variants: Mapping[str, Variant]) -> Table:
    return Table(
        title="Mined and random negatives",
        lines=[
            Line("mined, 0.95 of the positive's score", BASELINE, 58.10),
            Line("random, of the same source and language", "random-negatives", 52.48),
        ],
        paper=RETRIEVER.format("mined by e5-mistral-7b, or drawn at random"),
    )


def _synthetic(variants: Mapping[str, Variant]) -> Table:
    return Table(
        title="Synthetic rows",
        lines=[
            Line("with all synthetic rows", BASELINE, 62.89),
            Line("public rows only", "no-synthetic", 61.95),
        ],
        paper=NEMOTRON.format("Table 5, a 1B model, 100,000 rows of six LLMs"),
        notes=["The same public rows in both; the rows of LLMs are added, and so are their steps."],
    )


_TABLES = {
    "loss": _loss,
    "llms": _llms,
    "merging": _merging,
    "stages": _stages,
    "attention": _attention,
    "margin": _margin,
    "negatives": _negatives,
    "synthetic": _synthetic,
}
