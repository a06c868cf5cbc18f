"""Plots results: accuracies with intervals, each seed as a tick, and the score of a constant answer as a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sirius_dspy.experiment.results import TRIVIAL, Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(results: Results, path: Path) -> Path:
    """Plot all measured methods.

    Args:
        results: Results with at least one measured method.
        path: Path of the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in results.rows if row.measured]
    figure = Figure(
        figsize=(9, 1.6 + 0.45 * len(rows)), layout="constrained"
    )  # pyplot would have global state and open windows
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        _draw(axes, row, place)
    _frame(axes, results, rows)
    figure.savefig(path, dpi=120)
    return path


def _draw(axes: Axes, row: Row, place: int) -> None:
    if (accuracy := row.accuracy) is None:
        return
    ends = [[accuracy.value - accuracy.low], [accuracy.high - accuracy.value]]
    axes.errorbar([accuracy.value], [place], xerr=ends, marker="o", capsize=4, color="tab:blue")
    seeds = [cell.accuracy for cell in row.measured]
    if len(seeds) > 1:
        axes.plot(seeds, [place + 0.2] * len(seeds), "|", color="tab:gray")


def _frame(axes: Axes, results: Results, rows: list[Row]) -> None:
    if results.majority is not None:
        axes.axvline(results.majority, color="tab:orange", linestyle="--", label=TRIVIAL)
        axes.legend(loc="best", fontsize="small")
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"accuracy on {results.num_test} questions (bars: 95 % interval; ticks: seeds)")
    axes.set_title(f"{results.recipe.title or results.name}\n{results.lm}", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
