"""The report of a mix: one self-contained HTML page and the ledger of the whole build.

The page answers what a reader asks of a training mix: how many rows of what, what became of every
source's rows in every step, which languages, which LLMs wrote what under which licence, what was
removed for which benchmark, how hard the negatives are, and what ten rows of each task look like.
It loads nothing and runs nothing: no script, no network, and a content policy that forbids both, so
a text of the data cannot do either. Everything it shows is read from manifests and counted from
shards, so it can be rendered again at any time.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from datagen.overview import LEDGER, Overview, count_mix, ledger_of, steps_beside, unbalanced
from datagen.plots import funnel_plot, score_plot
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

# Control characters and those that turn the direction of the text around them: shown, not obeyed.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def write_report(
    mix: Step, *, steps: Sequence[Step], samples_per_task: int = 10, name: str = "report"
) -> Step:
    """Write `report.html` and `ledger.json` into the mix, from the mix and the steps before it."""
    return Step(
        name=name,
        version=1,
        config={"samples_per_task": samples_per_task, "steps": [step.name for step in steps]},
        inputs={"mix": mix, **{step.name: step for step in steps}},
        work=_work,
        summary="write the report and the ledger of the whole build",
    )


def _work(context: Context) -> None:
    folder = context.inputs["mix"]
    steps = [read_manifest(context.inputs[name]) for name in context.config["steps"]]
    overview = count_mix(folder)
    ledger = ledger_of([*steps, overview.manifest])
    problems = unbalanced(ledger)
    if problems:
        raise RuntimeError("; ".join(problems))
    folder.write_json(LEDGER, ledger)
    samples = sample_rows(folder, overview.manifest, per_task=context.config["samples_per_task"])
    page = render_page(overview, ledger=ledger, steps=steps, samples=samples)
    folder.write_bytes(PAGE, page.encode())
    tasks = evaluation_tasks(gather_facts(steps))
    context.facts["report"] = {"totals": totals(overview), "evaluation_tasks": tasks}


def render_mix(mix: str, *, samples_per_task: int = 10) -> str:
    """Write the page of a finished mix again, from its folder and the steps beside it; its path."""
    folder = Folder(mix)
    overview = count_mix(folder)
    steps = steps_beside(folder)
    if steps or not folder.exists(LEDGER):
        ledger = ledger_of([*steps, overview.manifest])
    else:
        ledger = folder.read_json(LEDGER)
    samples = sample_rows(folder, overview.manifest, per_task=samples_per_task)
    page = render_page(overview, ledger=ledger, steps=steps, samples=samples)
    folder.write_bytes(PAGE, page.encode())
    return f"{mix.rstrip('/')}/{PAGE}"


def render_page(
    overview: Overview,
    *,
    ledger: Sequence[Mapping[str, Any]],
    steps: Sequence[Manifest],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The HTML of the report."""
    funnel = funnel_table(ledger, {step.name: step.run for step in [*steps, overview.manifest]})
    facts = gather_facts(steps)
    per_task = scores_by(overview, 0)
    return (
        environment(_show)
        .get_template("report.html.jinja")
        .render(
            manifest=overview.manifest,
            config=json.dumps(overview.manifest.config, indent=1, ensure_ascii=False),
            totals=totals(overview),
            stages=[stage_table(overview, stage) for stage in overview.stages],
            funnel=funnel,
            funnel_plot=funnel_plot(funnel),
            languages=language_tables(overview),
            agreement=agreement_tables(facts),
            dropped=dropped_tables(facts),
            llms=[*llm_tables(facts), *check_tables(facts)],
            written=written_by(overview),
            matches=match_tables(facts),
            mining=mining_tables(facts),
            score_plot=score_plot(per_task) if per_task else Markup(""),
            scores=[score_line(name, pair) for name, pair in scores_by(overview, 1).items()],
            licences=licence_table(overview),
            samples=samples,
        )
    )


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


def visible(text: str) -> str:
    """The text with control and direction characters spelled out as <U+202E>."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


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
