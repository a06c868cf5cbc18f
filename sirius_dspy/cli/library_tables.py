"""Rich tables and lines of `sirius-dspy library`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from sirius_dspy.cli.console import new_table
from sirius_dspy.library.rows import Entry
from sirius_dspy.library.stats import LibraryStats
from sirius_dspy.library.trl import Exported
from sirius_dspy.plain import readable
from sirius_dspy.stats import wilson_interval
from sirius_dspy.trajectory import Attempt, Repair, Step, Trajectory, Usage

_ID = 12
"""Characters of an id in a table, enough to identify a trajectory in a library of millions."""

_ANSWER = 60
"""Characters of an answer in a table."""


@dataclass(frozen=True)
class RepairStats:
    """Counts of the repairs in a library."""

    num_tried: int
    """Failed runs."""
    num_repaired: int
    usage: Usage
    """Usage of critics and new answers. Replays are separate trajectories."""

    @classmethod
    def of(cls, repairs: Iterable[Repair]) -> RepairStats:
        """Count repairs, with one in memory at a time."""
        tried, repaired, usage = 0, 0, Usage()
        for repair in repairs:
            tried, repaired, usage = tried + 1, repaired + repair.repaired, usage + repair.usage
        return cls(tried, repaired, usage)


def entries_table(entries: Sequence[Entry], threshold: float) -> Table:
    """Make a table with one row per trajectory."""
    table = Table(title="Trajectories", title_justify="left")
    for name in ("id", "run", "origin"):
        table.add_column(name, no_wrap=True)
    for name in ("iteration", "sample", "reward", "calls", "tokens", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answer", no_wrap=True, overflow="ellipsis")
    for entry in entries:
        style = "green" if entry.succeeded(threshold) else "red"
        table.add_row(
            *map(_plain, (entry.id[:_ID], entry.run, entry.origin)),
            *map(str, (entry.iteration, entry.sample)),
            Text(f"{entry.reward:g}", style),
            *(str(entry.usage.calls), f"{_tokens(entry.usage):,}", f"{entry.seconds:.1f}"),
            _plain(_answer(entry)),
        )
    return table


def position(num_shown: int, offset: int, total: int) -> str:
    """Describe which of the matches are shown, and how to see the next ones."""
    if not num_shown:
        return f"None of {total:,} matches shown." if total else "No trajectory matches."
    last = offset + num_shown
    more = f" Pass `--offset {last}` for the next." if last < total else ""
    return f"{offset + 1:,} to {last:,} of {total:,}.{more}"


def describe(
    trajectory: Trajectory, repairs: Sequence[Repair], children: Sequence[str], made_by: Repair | None
) -> Iterator[Text]:
    """Describe one trajectory, line by line.

    Args:
        trajectory: The trajectory.
        repairs: Its repairs.
        children: Ids of the runs that the repairs produced.
        made_by: The repair that produced it.
    """
    yield Text(f"Trajectory {trajectory.id}", "bold")
    yield from _lines(
        {
            "reward": f"{trajectory.reward:g}" + (f" {dict(trajectory.rewards)}" if trajectory.rewards else ""),
            "origin": f"{trajectory.origin}, run {trajectory.run or '-'}, iteration {trajectory.iteration}, sample "
            f"{trajectory.sample}",
            "example": trajectory.example_key,
            "made at": trajectory.created_at.isoformat(timespec="seconds"),
            "took": f"{trajectory.usage.calls} LM calls, {_tokens(trajectory.usage)} tokens, "
            f"{trajectory.seconds:.1f} seconds",
        }
    )
    if trajectory.failure is not None:
        yield from _lines({"raised": f"{trajectory.failure.kind}: {trajectory.failure.message}"})
    if trajectory.parent is not None:
        yield from _lines({"repairs": f"{trajectory.parent}, by editing step {(trajectory.edited or 0) + 1}"})
    for number, step in enumerate(trajectory.steps, start=1):
        yield from _step_lines(step, number, is_edited=trajectory.edited == number - 1)
    yield Text("Prediction", "bold")
    yield from _lines({"": _words(readable(trajectory.prediction))})
    for repair in [*([made_by] if made_by else []), *repairs]:
        came_from = repair is made_by
        yield Text("The repair it came out of" if came_from else "Repair", "bold")
        for attempt in repair.attempts:
            yield from _attempt_lines(attempt)
    if children:
        yield from _lines({"runs that came out": ", ".join(child[:_ID] for child in children)})


def groups_table(groups: Sequence[LibraryStats], threshold: float) -> Table:
    """Make a table with one row per run, iteration and origin."""
    table = Table(title=f"Trajectories; a success is a reward of at least {threshold:g}", title_justify="left")
    for name in ("run", "origin"):
        table.add_column(name)
    for name in ("iteration", "runs", "succeeded", "share", "95 % interval", "mean reward", "LM calls", "tokens"):
        table.add_column(name, justify="right")
    for group in groups:
        low, high = wilson_interval(group.num_successes, group.num_trajectories)
        numbers = (
            str(group.iteration),
            f"{group.num_trajectories:,}",
            f"{group.num_successes:,}",
            f"{group.num_successes / group.num_trajectories:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{group.mean_reward:.3f}",
            f"{group.usage.calls:,}",
            f"{_tokens(group.usage):,}",
        )
        table.add_row(_plain(group.run), group.origin, *numbers)
    return table


def agents_table(groups: Sequence[LibraryStats], agents: Mapping[str, Sequence[str]]) -> Table:
    """Make a table of steps by agent and origin."""
    origins = list(dict.fromkeys(group.origin for group in groups))
    table = new_table("Steps by agent", "agent", *origins, "all")
    for agent, counts in _steps_by_agent(groups, agents).items():
        table.add_row(_plain(agent), *(f"{counts[origin]:,}" for origin in origins), f"{counts.total():,}")
    return table


def size(groups: Sequence[LibraryStats], repairs: RepairStats, num_bytes: int) -> str:
    """Describe the total size of a library."""
    number = sum(group.num_trajectories for group in groups)
    usage = sum((group.usage for group in groups), repairs.usage)
    return (
        f"{number:,} trajectories, {repairs.num_repaired:,} of {repairs.num_tried:,} failed runs repaired; "
        f"{usage.calls:,} LM calls, {usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} completion tokens, "
        f"with those of repairs; {num_bytes / 1e6:.1f} MB."
    )


def plain_stats(
    groups: Sequence[LibraryStats],
    repairs: RepairStats,
    num_bytes: int,
    threshold: float,
    agents: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Return all statistics as JSON."""
    return {
        "threshold": threshold,
        "num_trajectories": sum(group.num_trajectories for group in groups),
        "num_bytes": num_bytes,
        "repairs": asdict(repairs),
        "groups": [
            {**asdict(group), "interval": list(wilson_interval(group.num_successes, group.num_trajectories))}
            for group in groups
        ],
        "steps_by_agent": {agent: dict(counts) for agent, counts in _steps_by_agent(groups, agents).items()},
    }


def _steps_by_agent(groups: Sequence[LibraryStats], agents: Mapping[str, Sequence[str]]) -> dict[str, Counter[str]]:
    """Count steps by agent, or by predictor if the agents are unknown, and by origin."""
    agent_of = {name: agent for agent, names in agents.items() for name in names}
    counts: dict[str, Counter[str]] = {}
    for group in groups:
        for predictor, number in group.num_steps.items():
            counts.setdefault(agent_of.get(predictor, predictor), Counter())[group.origin] += number
    return dict(sorted(counts.items()))


def _step_lines(step: Step, number: int, *, is_edited: bool) -> Iterator[Text]:
    notes = [step.lm, *([step.source] if step.source != "live" else []), *(["edited"] if is_edited else [])]
    yield Text(f"Step {number}: {step.predictor}", "bold").append(f" [{', '.join(dict.fromkeys(notes))}]", "dim")
    yield from _lines(readable(step.inputs), "dim")
    if step.outputs is not None:
        yield from _lines({f"-> {name}": value for name, value in readable(step.outputs).items()})
    if step.failure is not None:
        yield from _lines({"-> failed": f"{step.failure.kind}: {step.failure.message}"}, "red")


def _attempt_lines(attempt: Attempt) -> Iterator[Text]:
    style = "green" if attempt.verdict == "repaired" else ""
    made = f", run {attempt.trajectory[:_ID]}" if attempt.trajectory else ""
    yield Text(f"  step {attempt.position + 1}, {attempt.predictor}: ").append(attempt.verdict, style).append(made)
    fields = {
        "feedback": attempt.feedback,
        "answered anew": attempt.regenerated,
        "rephrased": attempt.rephrased if attempt.rephrased != attempt.regenerated else None,
        "because": attempt.detail or None,
    }
    for line in _lines({name: value for name, value in fields.items() if value is not None}):
        yield Text("  ").append_text(line)


def _lines(values: Mapping[str, Any], style: str = "") -> Iterator[Text]:
    for name, value in values.items():
        yield Text(_visible(f"  {name}: {_words(value)}" if name else f"  {_words(value)}"), style)


def _answer(entry: Entry) -> str:
    if entry.failure is not None:
        return f"raised {entry.failure.kind}"
    text = _words(readable(entry.prediction))
    return text if len(text) <= _ANSWER else text[: _ANSWER - 1] + "\u2026"


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> Text:
    """Make a cell without markup, since data may contain brackets."""
    return Text(_visible(text))


def _visible(text: str) -> str:
    """Escape control characters, direction marks and lone surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _tokens(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def describe_export(exported: Exported) -> str:
    """Return the number of rows of each agent, and why other steps became none."""
    lines = [f"{exported.path}: {exported.num_rows:,} rows"]
    for agent, rows in exported.rows.items():
        left_out = exported.left_out.get(agent, {})
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in sorted(left_out.items()))
        lines.append(f"  {agent}: {rows:,} rows" + (f"; left out: {reasons}" if reasons else ""))
    return "\n".join(lines)
