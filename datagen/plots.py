"""The report's plots: matplotlib SVG that takes its colours from the page's style sheet.

No script is needed to show them, they weigh a few kilobytes, and they follow the reader's light or
dark theme: each colour is drawn as a placeholder that becomes `var(--name)`. Text stays text.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

WIDTH = 8.0  # inches
MERGED_BINS = 2  # histogram bins drawn as one

# Placeholder -> style sheet variable. Any colour would do that no plot uses otherwise.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#030303": "var(--kept)",
    "#040404": "var(--dropped)",
    "#050505": "var(--quarantined)",
    "#060606": "var(--surface)",
}
_INK, _FAINT, _KEPT, _DROPPED, _QUARANTINED, _SURFACE = _COLOURS
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "embedmix",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.parse_math": False,
}


def _styled(draw: Callable[..., Markup]) -> Callable[..., Markup]:
    """Draw in the style of the page, whatever style the process has set."""

    @functools.wraps(draw)
    def drawn(*arguments: Any) -> Markup:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*arguments)

    return drawn


@_styled
def funnel_plot(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """Bars of rows kept, dropped and quarantined for each step (`label`, and the three counts)."""
    figure, axes = _figure(rows=1, columns=1, height=0.8 + 0.34 * len(steps))
    left = np.zeros(len(steps))
    places = np.arange(len(steps))[::-1]
    for name, colour in (("kept", _KEPT), ("dropped", _DROPPED), ("quarantined", _QUARANTINED)):
        values = np.array([step[name] for step in steps], dtype=float)
        axes[0].barh(places, values, left=left, color=colour, label=name, height=0.66)
        left += values
    axes[0].set_yticks(places, [step["label"] for step in steps])
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[0].xaxis.set_major_locator(_few_ticks())
    axes[0].legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(
        figure, "Rows kept, dropped and quarantined by each step; the same numbers are below"
    )


@_styled
def score_plot(histograms: Mapping[str, np.ndarray]) -> Markup:
    """For each task, the shares of positives and of negatives at each score; [2, bins] a task."""
    columns = min(3, len(histograms))
    rows = -(-len(histograms) // columns)
    figure, axes = _figure(rows=rows, columns=columns, height=0.5 + 2.1 * rows)
    low, high = _range(histograms.values())
    for axis, (task, pair) in zip(axes, histograms.items(), strict=False):
        coarse = pair.reshape(2, -1, MERGED_BINS).sum(axis=2)
        edges = np.linspace(-1, 1, coarse.shape[1] + 1)
        sides = ((coarse[0], _KEPT, "positives"), (coarse[1], _DROPPED, "negatives"))
        for counts, colour, name in sides:
            shares = counts / max(1, counts.sum())
            axis.stairs(shares, edges, color=colour, label=name, linewidth=1.4)
            axis.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
        axis.set_title(task.replace("_", " "))
        axis.set_xlim(low, high)
        axis.set_yticks([])
    for axis in axes[len(histograms) :]:
        axis.set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    figure.supxlabel("score of the mining encoder (cosine)", fontsize=10)
    return _svg(figure, "Scores of positives and negatives for each task; quantiles are below")


def _figure(*, rows: int, columns: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)


def _range(histograms: Any) -> tuple[float, float]:
    """The part of -1..1 that holds any score, with a margin."""
    total = sum(pair.sum(axis=0) for pair in histograms)
    used = np.flatnonzero(total)
    if not len(used):
        return -1.0, 1.0
    width = 2 / len(total)
    return max(-1.0, used[0] * width - 1.05), min(1.0, (used[-1] + 1) * width - 0.95)


def _svg(figure: Any, description: str) -> Markup:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r' width="[\d.]+pt"', "", re.sub(r' height="[\d.]+pt"', "", text, count=1), count=1
    )
    for placeholder, variable in _COLOURS.items():
        text = text.replace(placeholder, variable)
    label = Markup('<svg role="img" aria-label="{}" ').format(description)
    return Markup(text.replace("<svg ", label, 1))
