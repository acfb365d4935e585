"""What the scores of several seeds allow to say: means, intervals, differences, Markdown tables.

A score is a mean over tasks, times 100, of one run. Beside each mean stands half the width of its
95 % confidence interval over the seeds (Student's t); a difference is taken seed by seed against
the first line of its table, so what a seed does to both runs drops out. With three seeds t is 4.3:
small differences stay inside, and then the table claims nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

CONFIDENCE = 0.95


class Line(NamedTuple):
    """One line of a table: its label, its runs, and the figure of a paper (a mean over tasks).

    `against` names the runs that it is compared with, if not those of the first line.
    """

    label: str
    variant: str
    paper: float | None = None
    against: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first line is what the others are compared with."""

    title: str
    lines: Sequence[Line]
    paper: str  # where the figures are from, and of what model
    notes: Sequence[str] = field(default_factory=tuple)


class Interval(NamedTuple):
    """A mean and half the width of its confidence interval; None for less than two values."""

    mean: float
    half: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half

    def text(self, *, signed: bool = False) -> str:
        mean = f"{self.mean:+.1f}" if signed else f"{self.mean:.1f}"
        return mean if self.half is None else f"{mean} ± {self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval of independent values."""
    if len(values) < 2:
        return Interval(fmean(values), None)
    from scipy.stats import t

    quantile = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return Interval(fmean(values), float(quantile) * stdev(values) / math.sqrt(len(values)))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Interval:
    """The mean difference `values - others`, seed by seed."""
    seeds = sorted({*values} & {*others})
    return interval([values[seed] - others[seed] for seed in seeds])


def means(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean scores x 100 of one run: of all `tasks`, of their `types`, and of each type."""
    by_type: dict[str, list[float]] = {}
    for task in tasks:
        by_type.setdefault(task["type"], []).append(100 * task["main_score"])
    types = {kind: fmean(by_type[kind]) for kind in sorted(by_type)}
    every = [score for scores in by_type.values() for score in scores]
    return {"tasks": fmean(every), "types": fmean(types.values()), **types}


def render(table: Table, runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """A table as Markdown; `runs`: variant -> seed -> `means`. Lines without runs are left out."""
    lines = [line for line in table.lines if runs.get(line.variant)]
    first = lines[0]
    names = list(next(iter(runs[first.variant].values())))
    head = [" ", "runs", "mean of tasks", "difference", "mean of types", *names[2:]]
    told = any(line.paper is not None for line in lines)
    head += ["paper", "difference there"] if told else []
    body, found = [], []
    for line in lines:
        own = runs[line.variant]
        scores = {name: interval([run[name] for run in own.values()]) for name in names}
        others = runs[line.against or first.variant]
        gap = None if line is first else difference(own, others)
        found += [] if gap is None else [(line.label, gap)]
        cells = [line.label, str(len(own)), scores["tasks"].text(), _gap(gap)]
        cells += [scores[name].text() for name in names[1:]]
        body.append(cells + (_paper(line, first) if told else []))
    parts = [
        f"## {table.title}",
        _markdown(head, body),
        _reading(found, first.label),
        *table.notes,
        table.paper,
    ]
    return "\n\n".join(part for part in parts if part)


def difference(
    own: Mapping[int, Mapping[str, float]], others: Mapping[int, Mapping[str, float]]
) -> Interval:
    """Of means over tasks, by seed; against the mean of runs that share no seed with it."""
    values, against = ({s: run["tasks"] for s, run in runs.items()} for runs in (own, others))
    if {*values} & {*against}:
        return paired(values, against)
    return Interval(fmean(values.values()) - fmean(against.values()), None)


def _gap(gap: Interval | None) -> str:
    if gap is None:
        return ""
    return gap.text(signed=True) + (" *" if gap.excludes_zero else "")


def _paper(line: Line, first: Line) -> list[str]:
    if line.paper is None:
        return ["", ""]
    gap = "" if line is first or first.paper is None else f"{line.paper - first.paper:+.2f}"
    return [f"{line.paper:.2f}", gap]


def _reading(found: Sequence[tuple[str, Interval]], first: str) -> str:
    """What the intervals allow to say, in one sentence."""
    beyond = [f"{label} ({gap.text(signed=True)})" for label, gap in found if gap.excludes_zero]
    within = [label for label, gap in found if gap.half is not None and not gap.excludes_zero]
    parts = []
    if beyond:
        parts.append(f"Beyond the interval, against {first!r}: {', '.join(beyond)}.")
    if within:
        parts.append(f"No difference can be claimed for: {', '.join(within)}.")
    return " ".join(parts)


def lifted(
    base: Mapping[str, float], trained: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> str:
    """A section of Markdown: the base beside variants by label, and how far each is above it."""
    names = list(base)
    head = ["", "mean of tasks", "above the base", "mean of types", *names[2:]]
    own = [f"{base[name]:.1f}" for name in names]
    rows = [["untrained base", own[0], "", *own[1:]]]
    for label, runs in trained.items():
        cells = [interval([run[name] for run in runs.values()]).text() for name in names]
        lift = interval([run["tasks"] - base["tasks"] for run in runs.values()])
        rows.append([label, cells[0], _gap(lift), *cells[1:]])
    return "## Training\n\n" + _markdown(head, rows)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
