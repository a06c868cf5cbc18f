"""The plots of a report: SVG that takes its colours from the page around it, and one PNG.

Each plot is small, so that its letters have their full size on a telephone; a wide page puts it beside its table.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.report.contents import Report
from sirius_dspy.report.experience import ALL_AGENTS, FUNNEL, Experience
from sirius_dspy.report.spending import stage_seconds
from sirius_dspy.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, FIRST, SECOND, THIRD, FOURTH, FIFTH = (
    "#1f2933",
    "#d3d9e0",
    "#2563eb",
    "#0f8a6c",
    "#c2570c",
    "#8b5cf6",
    "#64748b",
)
_VARIABLES = {INK: "ink", GRID: "rule", FIRST: "c1", SECOND: "c2", THIRD: "c3", FOURTH: "c4", FIFTH: "c5"}
"""Colour of a plot to the custom property of the page's style sheet that replaces it in SVG."""

_SIZE = (4.8, 3.2)
"""Inches of one plot."""

_ROW = 0.24
"""Inches of one of many bars."""

Draw = Callable[["Axes"], None]


def svg_plots(report: Report) -> dict[str, str]:
    """Table name to its plot as an `<svg>` element; a plot without numbers is left out."""
    return {name: _to_svg(draw, name, title) for name, title, draw in _plots(report)}


def write_png(report: Report, path: Path) -> Path:
    """Draw all plots side by side.

    Args:
        report: With at least one iteration.
        path: Of the PNG file.
    """
    plots = _plots(report)
    figure = _figure(max(len(plots), 1))
    for (_, title, draw), axes in zip(plots, figure.axes, strict=False):
        draw(axes)
        axes.set_title(title, color=INK)
    figure.savefig(path, dpi=120)
    return path


def _plots(report: Report) -> list[tuple[str, str, Draw]]:
    """Table name, title and drawing of all plots that have something to show."""
    results, experience = report.results, report.experience
    plots: list[tuple[str, str, Draw]] = []
    if results.iterations:
        plots.append(("score", "Validation score", lambda axes: _draw_scores(axes, report)))
    if experience is not None and experience.growth:
        plots.append(("growth", "Runs added", lambda axes: _draw_growth(axes, experience)))
    if experience is not None and experience.funnels:
        plots.append(("repair", "Failed runs in repair", lambda axes: _draw_funnel(axes, experience)))
    if experience is None and any(entry.repair.tried for entry in results.iterations):
        plots.append(("repair", "Repaired share of failed runs", lambda axes: _draw_repairs(axes, results)))
    if stage_seconds(results):
        plots.append(("cost", "Seconds", lambda axes: _draw_seconds(axes, stage_seconds(results))))
    return plots


# Drawings


def _draw_scores(axes: Axes, report: Report) -> None:
    entries = report.results.iterations
    bounds = [entry.interval or Interval(entry.score, entry.score) for entry in entries]
    scores = [entry.score for entry in entries]
    below = [score - bound.low for score, bound in zip(scores, bounds, strict=True)]
    above = [bound.high - score for score, bound in zip(scores, bounds, strict=True)]
    numbers = [entry.iteration for entry in entries]
    axes.errorbar(numbers, scores, yerr=[below, above], marker="o", capsize=4, color=FIRST)
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), max(1.0, high))
    _whole_numbers(axes)
    if report.is_in_percent:
        _in_percent(axes)
    _name(axes, "iteration", "score, 95 % interval")


def _draw_growth(axes: Axes, experience: Experience) -> None:
    """A bar per iteration and origin: what succeeded below, what failed above."""
    labels, succeeded, failed = [], [], []
    for stats in sorted(experience.growth, key=lambda stats: stats.iteration):
        labels.append(f"{stats.iteration} {stats.origin}")
        succeeded.append(stats.num_successes)
        failed.append(stats.num_trajectories - stats.num_successes)
    places = list(range(len(labels)))
    axes.barh(places, succeeded, color=SECOND, label="succeeded")
    axes.barh(places, failed, left=succeeded, color=FIFTH, label="failed")
    _rows(axes, labels)
    _whole_numbers(axes)
    _name(axes, "runs", "")
    _legend(axes)


def _draw_funnel(axes: Axes, experience: Experience) -> None:
    """How many failed runs reached each stage, a bar per iteration."""
    funnels = [funnel for funnel in experience.funnels if funnel.agent == ALL_AGENTS]
    stages = (*FUNNEL[:3], "leaked", *FUNNEL[3:])
    height = 0.8 / len(funnels)
    for number, funnel in enumerate(funnels):
        places = [stage + (number - (len(funnels) - 1) / 2) * height for stage in range(len(stages))]
        counts = [funnel.counts[name] for name in stages]
        bars = axes.barh(places, counts, height, color=_cycle_color(number), label=f"iteration {funnel.iteration}")
        axes.bar_label(bars, padding=3, color=INK, fontsize="small")
    _rows(axes, stages)
    axes.margins(x=0.12)  # room for the counts
    _whole_numbers(axes)
    _name(axes, "failed runs", "")
    _legend(axes)


def _draw_repairs(axes: Axes, results: CompileResult) -> None:
    repairs = {entry.iteration: entry.repair for entry in results.iterations if entry.repair.tried}
    shares = [repair.repaired / repair.tried for repair in repairs.values()]
    bars = axes.bar(list(repairs), shares, width=0.4, color=THIRD)
    texts = [f"{repair.repaired} of {repair.tried}" for repair in repairs.values()]
    axes.bar_label(bars, texts, padding=3, color=INK)
    axes.set_ylim(0, 1)
    _whole_numbers(axes)
    _in_percent(axes)
    _name(axes, "iteration", "share")


def _draw_seconds(axes: Axes, seconds: Mapping[int, Mapping[str, float]]) -> None:
    """A bar per iteration, cut into stages."""
    ends = [0.0] * len(seconds)
    for number, stage in enumerate(dict.fromkeys(stage for parts in seconds.values() for stage in parts)):
        widths = [parts.get(stage, 0.0) for parts in seconds.values()]
        axes.barh(range(len(seconds)), widths, left=ends, height=0.6, color=_cycle_color(number), label=stage)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    _rows(axes, list(map(str, seconds)))
    _name(axes, "seconds", "iteration")
    _legend(axes)


# What they share


def _cycle_color(number: int) -> str:
    return (FIRST, SECOND, THIRD, FOURTH, FIFTH)[number % 5]


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the bars, from top to bottom; many of them make the figure higher."""
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.set_figheight(max(figure.get_figheight(), 1.0 + _ROW * len(labels)))


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _in_percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=INK, borderaxespad=0.2,
        handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip


def _figure(num_plots: int = 1) -> Figure:
    """A figure with its empty plots in a row, in the colours of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: no global state, no window, any thread.
    figure = Figure(figsize=(_SIZE[0] * num_plots, _SIZE[1]), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(1, num_plots, squeeze=False).flat:
        axes.tick_params(colors=INK, length=3)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
    return figure


# SVG


def _to_svg(draw: Draw, name: str, title: str) -> str:
    import matplotlib

    figure = _figure()
    draw(figure.axes[0])
    file = io.StringIO()
    # Letters stay letters, to be read aloud, searched and copied; the salt makes the same plot the same text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_a_page(file.getvalue(), name, title)


def _for_a_page(svg: str, name: str, title: str) -> str:
    """The `<svg>` element alone: sized by the page, coloured by it, with ids that no other plot has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r' height="[^"]*pt"', "", svg, count=1), count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
