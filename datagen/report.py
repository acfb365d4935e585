"""The report of a mix: one self-contained HTML page and the ledger of the whole build.

The page answers what a reader asks of a training mix: how many rows of what, what became of every
source's rows in every step, which languages, which LLMs wrote what under which licence, what was
removed for which benchmark, how hard the negatives are, and what ten rows of each task look like.
It loads nothing, and runs nothing but its own two scripts (plotly.js, and the one that draws with
it): a content policy names them by their digests and forbids everything else, so a text of the data
can do neither. Everything it shows is read from manifests and counted from shards, so it can be
rendered again at any time.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from datagen.escape import visible
from datagen.lengths import EDGES, text_lengths
from datagen.overview import (
    LEDGER,
    RATIO_WIDTH,
    Overview,
    count_mix,
    ledger_of,
    steps_beside,
    unbalanced,
)
from datagen.plots import (
    MOST_SOURCES,
    Plot,
    funnel_plot,
    heat_plot,
    language_plot,
    length_plot,
    overlap_plot,
    ratio_plot,
    rules_plot,
    score_plot,
    task_plot,
)
from datagen.report_tables import (
    agreement_tables,
    check_tables,
    dropped_tables,
    evaluation_tasks,
    funnel_table,
    gather_facts,
    language_tables,
    licence_table,
    llm_tables,
    match_tables,
    mining_tables,
    overlap_tables,
    ratios_by_source,
    score_line,
    scores_by,
    stage_table,
    totals,
    words,
    written_by,
)
from datagen.samples import sample_rows
from datagen.steps import Context, Step
from datagen.store import Folder, Manifest, read_manifest

PAGE = "report.html"
SHOWN_CHARACTERS = 320


def write_report(
    mix: Step,
    *,
    steps: Sequence[Step],
    samples_per_task: int = 10,
    tokenizer: str | None = None,
    name: str = "report",
) -> Step:
    """Write `report.html` and `ledger.json` into the mix, from the mix and the steps before it.

    `tokenizer` is a model folder whose tokens the lengths of texts are counted in; without it they
    are counted in characters.
    """
    config: dict[str, Any] = {
        "samples_per_task": samples_per_task,
        "steps": [step.name for step in steps],
    }
    if tokenizer:
        content = (Path(tokenizer) / "tokenizer.json").read_bytes()
        config["tokenizer"] = hashlib.sha256(content).hexdigest()
    return Step(
        name=name,
        version=2,
        config=config,
        inputs={"mix": mix, **{step.name: step for step in steps}},
        work=partial(_work, tokenizer=tokenizer),
        summary="write the report and the ledger of the whole build",
    )


def _work(context: Context, *, tokenizer: str | None) -> None:
    folder = context.inputs["mix"]
    steps = [read_manifest(context.inputs[name]) for name in context.config["steps"]]
    overview = count_mix(folder)
    ledger = ledger_of([*steps, overview.manifest])
    problems = unbalanced(ledger)
    if problems:
        raise RuntimeError("; ".join(problems))
    folder.write_json(LEDGER, ledger)
    samples = sample_rows(folder, overview.manifest, per_task=context.config["samples_per_task"])
    lengths = length_plot_of(folder, overview, tokenizer=tokenizer)
    page = render_page(overview, ledger=ledger, steps=steps, samples=samples, lengths=lengths)
    folder.write_bytes(PAGE, page.encode())
    tasks = evaluation_tasks(gather_facts(steps))
    context.facts["report"] = {"totals": totals(overview), "evaluation_tasks": tasks}


def render_mix(mix: str, *, samples_per_task: int = 10, tokenizer: str | None = None) -> str:
    """Write the page of a finished mix again, from its folder and the steps beside it; its path."""
    folder = Folder(mix)
    overview = count_mix(folder)
    steps = steps_beside(folder)
    if steps or not folder.exists(LEDGER):
        ledger = ledger_of([*steps, overview.manifest])
    else:
        ledger = folder.read_json(LEDGER)
    samples = sample_rows(folder, overview.manifest, per_task=samples_per_task)
    lengths = length_plot_of(folder, overview, tokenizer=tokenizer)
    page = render_page(overview, ledger=ledger, steps=steps, samples=samples, lengths=lengths)
    folder.write_bytes(PAGE, page.encode())
    return f"{mix.rstrip('/')}/{PAGE}"


def render_page(
    overview: Overview,
    *,
    ledger: Sequence[Mapping[str, Any]],
    steps: Sequence[Manifest],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    lengths: Plot,
) -> str:
    """The HTML of the report."""
    funnel = funnel_table(ledger, {step.name: step.run for step in [*steps, overview.manifest]})
    facts = gather_facts(steps)
    stages = [stage_table(overview, stage) for stage in overview.stages]
    languages = language_tables(overview)
    plots = {"tasks": task_plot(stages), "funnel": funnel_plot(funnel), "lengths": lengths}
    plots |= _language_plots(languages) | _score_plots(overview)
    return (
        environment(_show)
        .get_template("report.html.jinja")
        .render(
            manifest=overview.manifest,
            config=json.dumps(overview.manifest.config, indent=1, ensure_ascii=False),
            totals=totals(overview),
            stages=stages,
            funnel=funnel,
            plots=plots,
            scripts=_scripts(),
            languages=languages,
            overlaps=[
                {"side": t["side"], **vars(overlap_plot(t["side"], t["sources"], t["shares"]))}
                for t in overlap_tables(facts, most=MOST_SOURCES // 2)
            ],
            agreement=agreement_tables(facts),
            dropped=dropped_tables(facts),
            llms=[*llm_tables(facts), *check_tables(facts)],
            written=written_by(overview),
            matches=match_tables(facts),
            mining=mining_tables(facts),
            rules=[
                rules_plot(step, told["sources"], top=told["top"])
                for step, told in facts["mining"].items()
                if "top" in told
            ],
            scores=[score_line(name, pair) for name, pair in scores_by(overview, 1).items()],
            licences=licence_table(overview),
            samples=samples,
        )
    )


def length_plot_of(folder: Folder, overview: Overview, *, tokenizer: str | None) -> Plot:
    """Lengths of a sample of the texts."""
    found = text_lengths(folder, overview.stages, tokenizer=tokenizer)
    return length_plot(found, edges=EDGES, unit="tokens" if tokenizer else "characters")


def _language_plots(tables: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    natural = [table for table in tables if table["kind"] == "Languages"]
    programming = [table for table in tables if table["kind"] != "Languages"]
    plots = {}
    if natural:
        plots["natural"] = language_plot(natural, natural=True)
        plots["heat"] = heat_plot(natural)
    if programming:
        plots["programming"] = language_plot(programming, natural=False)
    return plots


def _score_plots(overview: Overview) -> dict[str, Plot]:
    per_task, ratios = scores_by(overview, 0), ratios_by_source(overview)
    plots = {"scores": score_plot(per_task, of="task")} if per_task else {}
    return plots | ({"ratios": ratio_plot(ratios, width=RATIO_WIDTH)} if ratios else {})


@cache
def _scripts() -> list[dict[str, Any]]:
    """plotly.js and the page's own script, each with the digest by which the policy allows it."""
    from plotly.offline import get_plotlyjs

    own = files("datagen").joinpath("templates/report.js").read_text(encoding="utf-8")
    return [{"text": Markup(text), "digest": _digest(text)} for text in (get_plotlyjs(), own)]


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def environment(show: Callable[[Any], Any]) -> jinja2.Environment:
    """Templates that escape everything; `show` sees each value before it is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("datagen"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=show,
    )
    made.filters |= {"number": number, "share": share, "cut": cut, "words": words}
    return made


def _show(value: Any) -> Any:
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def number(value: float | None) -> str:
    """12345 -> 12,345; 0.5 -> 0.50; nothing for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def share(part: float, whole: float) -> str:
    """`12.5 %`; a dash when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def cut(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """The first `limit` characters, with an ellipsis when there were more."""
    return text if len(text) <= limit else text[:limit].rstrip() + "…"
