"""The report's plots as Plotly figures: plain data, drawn by the page's own copy of plotly.js.

A colour is the name of a variable of the page's style sheet (`var(--kept)`); the page's script puts
the colour of the reader's theme there, and again when the theme changes. Plotly reads a few HTML
tags in labels, so every name of the data is escaped here.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datagen.escape import visible

INK, FAINT, LINE, SURFACE = "var(--ink)", "var(--faint)", "var(--line)", "var(--surface)"
KEPT, DROPPED, QUARANTINED = "var(--kept)", "var(--dropped)", "var(--quarantined)"
ORDER = (KEPT, DROPPED, QUARANTINED, FAINT, INK)
SYMBOLS = ("circle", "diamond", "square-open", "cross")
MERGED_BINS = 2  # histogram bins drawn as one
NATURAL, PROGRAMMING = 100, 10  # languages shown, as F2LLM-v2 (arXiv 2603.19223) shows its data
MOST_SOURCES = 60  # in a heat map
LABEL = 40  # characters of a name
_BAR, _CELL, _EDGE = 22, 18, 110  # pixels


@dataclass(frozen=True, kw_only=True)
class Plot:
    """`figure` has Plotly's `data` and `layout`; `about` says what it shows; `width` in pixels is
    what it needs at least (a wide plot scrolls inside its box)."""

    name: str
    about: str
    figure: Mapping[str, Any]
    width: int = 300


def named(text: str | None) -> str:
    """A name of the data as a label: cut, and with nothing in it that Plotly would obey."""
    text = visible(" ".join((text or "not stated").split()))
    return html.escape(text if len(text) <= LABEL else text[: LABEL - 1] + "…")


def _layout(height: int, **more: Any) -> dict[str, Any]:
    axis = {"gridcolor": LINE, "zerolinecolor": LINE, "automargin": True}
    return {
        "height": height,
        "margin": {"l": 10, "r": 12, "t": 44, "b": 44},
        "font": {"color": INK, "size": 12},
        "paper_bgcolor": SURFACE,
        "plot_bgcolor": SURFACE,
        "hoverlabel": {"bgcolor": SURFACE, "font": {"color": INK}, "bordercolor": FAINT},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        **more,
        "xaxis": axis | more.get("xaxis", {}),
        "yaxis": axis | more.get("yaxis", {}),
    }


def _menu(labels: Sequence[str], arguments: Callable[[int], list[Any]]) -> dict[str, Any]:
    """Layout for a list of choices above the plot; the legend moves out of its way."""
    buttons = [
        {"label": label, "method": "update", "args": arguments(i)} for i, label in enumerate(labels)
    ]
    menu = {
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 8},
        "showactive": True,
        "bgcolor": SURFACE,
        "bordercolor": FAINT,
        "font": {"color": INK},
    }
    return {"updatemenus": [menu]} if len(labels) > 1 else {}


def funnel_plot(steps: Sequence[Mapping[str, Any]]) -> Plot:
    """Bars of rows kept, dropped and quarantined for each step, of all sources or of one.

    A step has `label`, the three counts, and `sources`: ledger rows.
    """
    sources = sorted({row["source"] for step in steps for row in step["sources"]})
    kinds = {"kept": KEPT, "dropped": DROPPED, "quarantined": QUARANTINED}
    counts = [[[step[kind] for step in steps] for kind in kinds]]
    for source in sources:
        rows = [[row for row in step["sources"] if row["source"] == source] for step in steps]
        counts.append([[sum(_count(row, kind) for row in own) for own in rows] for kind in kinds])
    labels = [named(step["label"]) for step in steps]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind,
            "y": labels,
            "x": counts[0][i],
            "marker": {"color": colour},
            "hovertemplate": "%{y}<br>%{x:,} " + kind + "<extra></extra>",
        }
        for i, (kind, colour) in enumerate(kinds.items())
    ]
    names = ["all sources", *map(named, sources)]
    menu = _menu(names if len(sources) > 1 else names[:1], lambda i: [{"x": counts[i]}, {}])
    layout = _layout(
        150 + _BAR * len(steps),
        barmode="stack",
        xaxis={"tickformat": ",~s"},
        yaxis={"autorange": "reversed"},
        **menu,
    )
    layout["legend"] |= {"y": 0, "yref": "container", "yanchor": "bottom"}
    return Plot(
        name="funnel",
        about="Rows kept, dropped and quarantined by each step; the same numbers are below",
        figure={"data": data, "layout": layout},
    )


def _count(row: Mapping[str, Any], kind: str) -> int:
    value = row[kind]
    return value if isinstance(value, int) else sum(value.values())


def task_plot(stages: Sequence[Mapping[str, Any]]) -> Plot:
    """Shares of tasks, and of sources in them, for each stage: `tasks` of `stage_table`."""
    data: list[dict[str, Any]] = []
    for stage in stages:
        ids, labels, parents, values = [], [], [], []
        for task in stage["tasks"]:
            ids.append(task["task"])
            labels.append(named(task["task"].replace("_", " ")))
            parents.append("")
            values.append(task["queries"])
            for number, source in enumerate(task["sources"]):
                ids.append(f"{task['task']}/{number}")
                labels.append(named(source["source"]))
                parents.append(task["task"])
                values.append(source["rows"])
        data.append(
            {
                "type": "treemap",
                "ids": ids,
                "labels": labels,
                "parents": parents,
                "values": values,
                "branchvalues": "total",
                "visible": not data,
                "marker": {"line": {"color": SURFACE, "width": 1}, "pad": {"t": 22}},
                "hovertemplate": "%{label}<br>%{value:,} queries, %{percentRoot} of the stage"
                "<extra></extra>",
                "textinfo": "label+percent root",
            }
        )
    names = [named(stage["stage"]) for stage in stages]
    menu = _menu(names, lambda i: [{"visible": [k == i for k in range(len(names))]}, {}])
    return Plot(
        name="tasks",
        about="Shares of the tasks and of their sources in queries; a click opens a task",
        figure={"data": data, "layout": _layout(420, treemapcolorway=list(ORDER[:3]), **menu)},
    )


def language_plot(tables: Sequence[Mapping[str, Any]], *, natural: bool) -> Plot:
    """The largest languages: a dot for each table of `language_table`, on a logarithmic axis."""
    limit = NATURAL if natural else PROGRAMMING
    totals: dict[str, int] = {}
    for table in tables:
        for label, count, _ in table["lines"]:
            totals[label] = totals.get(label, 0) + count
    shown = sorted(totals, key=lambda label: (-totals[label], label))[:limit]
    data = []
    for number, table in enumerate(tables):
        counts = {label: count for label, count, _ in table["lines"]}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": named(table["name"]),
                "y": [named(label) for label in shown],
                "x": [counts.get(label) for label in shown],
                "marker": {
                    "color": ORDER[number % len(ORDER)],
                    "symbol": SYMBOLS[number % len(SYMBOLS)],
                    "size": 8,
                },
                "hovertemplate": "%{y}: %{x:,} %{fullData.name}<extra></extra>",
            }
        )
    kind = "natural" if natural else "programming"
    return Plot(
        name=f"{kind}-languages",
        about=f"The {len(shown)} largest {kind} languages of {len(totals)}; a click on a name of "
        "the legend leaves it out",
        figure={
            "data": data,
            "layout": _layout(
                110 + 15 * max(3, len(shown)),
                xaxis={"type": "log", "dtick": 1, "side": "top", "tickformat": ",~s"},
                yaxis={"range": [len(shown) - 0.5, -0.5], "dtick": 1, "tickfont": {"size": 11}},
                legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
            ),
        },
    )


def heat_plot(tables: Sequence[Mapping[str, Any]]) -> Plot:
    """Sources by languages for each table of `language_table`, darker for more rows (logarithm)."""
    data: list[dict[str, Any]] = []
    heights, widths = [], []
    for table in tables:
        lines = table["lines"][:NATURAL]
        columns = table["sources"][:MOST_SOURCES]
        counts = [values[: len(columns)] for _, _, values in lines]
        heights.append(_EDGE + 150 + _CELL * len(lines))
        widths.append(_EDGE + _CELL * len(columns))
        data.append(
            {
                "type": "heatmap",
                "x": [named(name) for name in columns],
                "y": [named(label) for label, _, _ in lines],
                "z": [[round(math.log10(n), 3) if n else None for n in row] for row in counts],
                "customdata": counts,
                "xgap": 1,
                "ygap": 1,
                "zmin": 0,
                "colorscale": [[0, "var(--cold)"], [1, KEPT]],
                "showscale": False,
                "visible": not data,
                "hovertemplate": "%{y} in %{x}: %{customdata:,}<extra></extra>",
            }
        )
    names = [named(table["name"]) for table in tables]

    def arguments(chosen: int) -> list[Any]:
        visible = [k == chosen for k in range(len(names))]
        return [{"visible": visible}, {"height": heights[chosen]}]

    layout = _layout(
        heights[0],
        xaxis={"tickangle": -60, "side": "bottom", "dtick": 1, "showgrid": False},
        yaxis={"autorange": "reversed", "dtick": 1, "showgrid": False},
        **_menu(names, arguments),
    )
    return Plot(
        name="heat",
        about="Languages by sources, darker for more rows; the same numbers are below",
        figure={"data": data, "layout": layout},
        width=max(300, *widths),
    )


def score_plot(histograms: Mapping[str, np.ndarray], *, of: str) -> Plot:
    """The shares of positives and of negatives at each score; [2, bins] of each task or source."""
    bins = next(iter(histograms.values())).shape[1] // MERGED_BINS
    middles = ((np.arange(bins) + 0.5) * 2 / bins - 1).round(4).tolist()
    shares = []
    for pair in histograms.values():
        coarse = pair.reshape(2, bins, MERGED_BINS).sum(axis=2)
        shares.append((coarse / np.maximum(1, coarse.sum(axis=1, keepdims=True))).round(5).tolist())
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hvh", "color": colour},
            "fill": "tozeroy",
            "name": name,
            "x": middles,
            "y": shares[0][side],
            "hovertemplate": "%{x:.2f}: %{y:.1%} of the " + name + "<extra></extra>",
        }
        for side, (name, colour) in enumerate((("positives", KEPT), ("negatives", DROPPED)))
    ]
    names = [named(name.replace("_", " ") if of == "task" else name) for name in histograms]
    low, high = _range(histograms.values())
    layout = _layout(
        340,
        xaxis={"title": {"text": "score of the mining encoder (cosine)"}, "range": [low, high]},
        yaxis={"tickformat": ".0%", "rangemode": "tozero"},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        **_menu(names, lambda i: [{"y": shares[i]}, {}]),
    )
    return Plot(
        name=f"scores-{of}",
        about=f"Scores of positives and negatives by {of}; quantiles are below",
        figure={"data": data, "layout": layout},
    )


def ratio_plot(histograms: Mapping[str, np.ndarray], *, width: float) -> Plot:
    """How near negatives come to their query's lowest positive: shares of score ratios by source.

    Each histogram [bins] starts at 0; a bin is `width` wide, the last holds all above.
    """
    names = list(histograms)
    shares = [(h / max(1, h.sum())).round(5).tolist() for h in histograms.values()]
    middles = ((np.arange(len(shares[0])) + 0.5) * width).round(4).tolist()
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hvh", "color": DROPPED},
            "fill": "tozeroy",
            "x": middles,
            "y": shares[0],
            "hovertemplate": "%{x:.2f} of the positive: %{y:.1%}<extra></extra>",
        }
    ]
    layout = _layout(
        320,
        xaxis={
            "title": {"text": "score of the negative / lowest score of a positive"},
            "range": [0, round(len(shares[0]) * width, 4)],
        },
        yaxis={"tickformat": ".0%", "rangemode": "tozero"},
        **_menu([named(name) for name in names], lambda i: [{"y": [shares[i]]}, {}]),
    )
    return Plot(
        name="ratios",
        about="How near negatives come to the lowest positive of their query, by source",
        figure={"data": data, "layout": layout},
    )


def rules_plot(step: str, sources: Mapping[str, Mapping[str, Any]], *, top: int) -> Plot:
    """What share of a source's best candidates, `top` a query, each rule of mining took away.

    A source has `queries`, `ceiling_share_of_top` and `caught`: rule -> candidates.
    """
    names = sorted(sources)
    shares = {"ceiling": [sources[name]["ceiling_share_of_top"] for name in names]}
    for rule in sorted({rule for source in sources.values() for rule in source["caught"]}):
        shares[rule] = [
            round(sources[n]["caught"].get(rule, 0) / max(1, sources[n]["queries"] * top), 5)
            for n in names
        ]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": named(rule.replace("_", " ")),
            "y": [named(name) for name in names],
            "x": values,
            "marker": {"color": ORDER[number % len(ORDER)]},
            "hovertemplate": "%{y}: %{x:.2%} by %{fullData.name}<extra></extra>",
        }
        for number, (rule, values) in enumerate(shares.items())
    ]
    layout = _layout(
        130 + _BAR * len(names),
        barmode="stack",
        xaxis={"tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"autorange": "reversed"},
    )
    return Plot(
        name=f"rules-{step}",
        about=f"Share of the {top} best candidates of a query that each rule took away",
        figure={"data": data, "layout": layout},
    )


def length_plot(histograms: Mapping[str, np.ndarray], *, edges: np.ndarray, unit: str) -> Plot:
    """Shares of texts by length; [bins] each, between `edges`."""
    middles = np.sqrt(edges[:-1] * edges[1:]).round(2).tolist()
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "spline", "color": ORDER[number % len(ORDER)]},
            "name": named(name),
            "x": middles,
            "y": (counts / max(1, counts.sum())).round(5).tolist(),
            "hovertemplate": "about %{x:,.0f} " + unit + ": %{y:.1%} of the %{fullData.name}"
            "<extra></extra>",
        }
        for number, (name, counts) in enumerate(histograms.items())
    ]
    layout = _layout(
        320,
        xaxis={"type": "log", "title": {"text": unit}, "dtick": 1},
        yaxis={"tickformat": ".0%", "rangemode": "tozero"},
    )
    return Plot(
        name="lengths",
        about=f"Lengths of queries and documents in {unit}",
        figure={"data": data, "layout": layout},
    )


def overlap_plot(title: str, sources: Sequence[str], shares: Sequence[Sequence[float]]) -> Plot:
    """How much of each source (row) other sources (columns) have, too."""
    z = [[None if i == k else v for k, v in enumerate(row)] for i, row in enumerate(shares)]
    data = [
        {
            "type": "heatmap",
            "x": [named(name) for name in sources],
            "y": [named(name) for name in sources],
            "z": z,
            "xgap": 1,
            "ygap": 1,
            "zmin": 0,
            "colorscale": [[0, "var(--cold)"], [1, DROPPED]],
            "showscale": False,
            "hovertemplate": "%{z:.1%} of %{y} are in %{x}, too<extra></extra>",
        }
    ]
    size = _EDGE + 2 * _CELL * len(sources)
    layout = _layout(
        100 + size,
        xaxis={"tickangle": -60, "dtick": 1, "showgrid": False},
        yaxis={"autorange": "reversed", "dtick": 1, "showgrid": False},
    )
    return Plot(
        name=f"overlap-{title}", about="", figure={"data": data, "layout": layout}, width=size
    )


def _range(histograms: Any) -> tuple[float, float]:
    """The part of -1..1 that holds any score, with a margin."""
    total = sum(pair.sum(axis=0) for pair in histograms)
    used = np.flatnonzero(total)
    if not len(used):
        return -1.0, 1.0
    width = 2 / len(total)
    return max(-1.0, used[0] * width - 1.05), min(1.0, (used[-1] + 1) * width - 0.95)
