"""A window as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sirius_dspy.report.numbers import (
    NONE,
    format_count,
    format_duration,
    format_flag,
    format_interval,
    format_losses,
    format_score,
    format_share,
    format_usd,
)
from sirius_dspy.stats import Interval
from sirius_dspy.window.views import SpendView, StageView, TrajectoryView, View

KEYS = "p pause   s stop after this stage   g go on   q leave"

SILENT_S = 30.0
"""Seconds without a sign of life that are worth a word; a compile at work gives one each second."""

_STATES = {
    "running": "running",
    "pausing": "pausing",
    "paused": "paused",
    "finished": "finished",
    "failed": "failed",
    "interrupted": "interrupted; call the same compile again to resume",
    "gone": "its process has ended without a word; call the same compile again to resume",
    "unknown": "not finished; whether it is at work is not known",
}

_COLORS = {"running": "green", "finished": "green", "pausing": "yellow", "paused": "yellow", "unknown": "yellow"}

_WIDTH = 44
"""Columns of a run, beside others."""


def describe_state(view: View) -> str:
    """How the compile is doing, in a line."""
    text = _STATES[view.state]
    if view.state == "pausing":
        text += f": {view.in_flight} in flight"
    if view.wish == "stop":
        text += ", stops after this stage"
    if view.silent_s is not None and view.silent_s >= SILENT_S:
        text += f", no sign of life for {format_duration(view.silent_s)}"
    return text


def render(view: View, *, keys: str = "") -> Group:
    """Everything that a window shows.

    Args:
        view: What to show.
        keys: A line about the keys; empty if there are none.
    """
    head = Text.assemble((f"{view.program}  ", "bold"), (describe_state(view), _COLORS.get(view.state, "red")))
    parts: list[RenderableType] = [head, Text(view.run_dir, "dim")]
    parts += [Text(line, "red") for line in (view.reason, *view.problems) if line]
    parts += [Text(keys, "dim")] if keys else []
    parts += [_stages(view.stages, view.note), _spending(view.spending)]
    tables = [_scores(view), _runs(view), _repairs(view), _agents(view)]
    parts += [table for table in tables if table.row_count]
    if view.trajectories:
        parts.append(Columns([_trajectory(item) for item in view.trajectories]))
    return Group(*parts)


def _table(title: str, *columns: str, words: int = 1) -> Table:
    """A table with words in the first columns and numbers in the others."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=number >= words)
    return table


def _add(table: Table, cells: Iterable[str]) -> None:
    table.add_row(*(Text(cell) for cell in cells))  # `Text`: a name in brackets is no markup


def _stages(stages: Sequence[StageView], note: str) -> Text:
    """A line for each iteration."""
    line = Text()
    for number, stage in enumerate(stages):
        if number == 0 or stage.iteration != stages[number - 1].iteration:
            line.append(f"{'' if number == 0 else chr(10)}iteration {stage.iteration}: ")
        else:
            line.append(" > ")
        if stage.status == "now":
            line.append(f"{stage.stage} {stage.done} of {stage.total}" if stage.total else stage.stage, "bold reverse")
            line.append(f" ({note})" if note else "")
        else:
            line.append(
                stage.stage + (" done" if stage.status == "done" else ""), "" if stage.status == "done" else "dim"
            )
    return line


def _spending(spending: Sequence[SpendView]) -> Text:
    parts = [_format_spent(item.name, item.spent) + _limit(item) for item in spending]
    return Text("spent: " + ", ".join(parts) if parts else "")


def _format_spent(name: str, value: float | None) -> str:
    if name == "usd":
        return f"{format_usd(value)} US dollars"
    if value is None:
        return f"{NONE} {name}"
    return format_duration(value) if name == "seconds" else f"{format_count(int(value))} {name}"


def _limit(item: SpendView) -> str:
    if item.limit is None:
        return ""
    return f" of {format_duration(item.limit)}" if item.name == "seconds" else f" of {item.limit:,g}"


def _scores(view: View) -> Table:
    table = _table("Validation score", "iteration", "score", "95 % interval", "examples")
    for item in view.scores:
        bounds = None if item.low is None or item.high is None else Interval(item.low, item.high)
        score = format_score(item.score, in_percent=view.in_percent)
        interval = format_interval(bounds, in_percent=view.in_percent)
        best = " (best)" if item.is_best else ""
        _add(table, (f"{item.iteration}{best}", score, interval, format_count(item.num_val)))
    return table


def _runs(view: View) -> Table:
    table = _table("Runs", "iteration", "origin", "runs", "succeeded", "share", words=2)
    for item in view.runs:
        counts = (format_count(item.runs), format_count(item.succeeded), format_share(item.succeeded, item.runs))
        _add(table, (str(item.iteration), item.origin, *counts))
    return table


def _repairs(view: View) -> Table:
    verdicts = ("leaked", "diverged", "unparsed", "unchanged", "failed", "unconfirmed", "repaired")
    table = _table("Repairs", "iteration", "rung", "failed runs", "attempts", *verdicts, words=2)
    for item in view.repairs:
        counts = (item.runs, item.attempts, *(getattr(item, name) for name in verdicts))
        _add(table, (str(item.iteration), item.rung or NONE, *map(format_count, counts)))
    return table


def _agents(view: View) -> Table:
    table = _table("Agents", "iteration", "agent", "rows", "loss", "kept", words=2)
    for item in view.agents:
        losses = format_losses(item.losses or ())
        _add(table, (str(item.iteration), item.agent, format_count(item.rows), losses, format_flag(item.is_kept)))
    return table


def _trajectory(item: TrajectoryView) -> Panel:
    body = Text(overflow="fold")
    for step in item.steps:
        body.append(f"{step.predictor}{' (edited)' if step.is_edited else ''}\n", "bold")
        for name, value in step.inputs.items():
            body.append(f"  {name}: {_short(value)}\n", "dim")
        for name, value in step.outputs.items():
            body.append(f"  {name}: {_short(value)}\n")
        body.append(f"  {_short(step.failure)}\n" if step.failure else "", "red")
    body.append(_short(item.failure or item.prediction), "red" if item.failure else "")
    color = "green" if item.succeeded else "red"
    title = f"{item.id} {item.origin} reward {item.reward:g}"
    return Panel(body, title=Text(title), title_align="left", border_style=color, width=_WIDTH)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else f"{line[:90]} …"
