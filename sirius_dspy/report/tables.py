"""A compile as tables of texts, the same ones for Markdown and HTML; a table without rows is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sirius_dspy.report.experience import FUNNEL, Experience
from sirius_dspy.report.run import Results, score_interval
from sirius_dspy.stats import Interval, wilson_interval
from sirius_dspy.trajectory import Usage

NONE = "-"
"""What a table cell shows where nothing was measured."""

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """One section of a report."""

    name: str
    """Of the section; plots go by it."""
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    """What the numbers are, in a sentence or two."""

    @property
    def texts(self) -> tuple[bool, ...]:
        """Which columns hold words; the others hold numbers."""
        return tuple(name in _WORDS for name in self.header)


_WORDS = frozenset(
    {"agent", "dropped", "kept", "loss", "origin", "program", "promoted", "stage", "verdicts", "weights", "what"}
)


def headline(results: Results, experience: Experience | None = None) -> list[tuple[str, str]]:
    """Label and value of what a reader wants to know first."""
    found = []
    if (best := _best(results)) is not None:
        first = "the student as given" if best["iteration"] == 0 else f"iteration {best['iteration']}"
        found += [("Best", first), ("Validation score", f"{best['score']:.4f}")]
        if (interval := score_interval(best)) is not None:
            found.append(("95 % interval", _bounds(interval)))
    iterations = results.get("iterations", [])
    if seconds := sum(sum(entry.get("seconds", {}).values()) for entry in iterations):
        found.append(("Time", _duration(seconds)))
    calls, tokens = _totals(iterations, experience)
    if calls:
        found += [("LM calls", f"{calls:,}"), ("Tokens", f"{tokens:,}")]
    if results.get("unfinished"):
        found.append(("State", "not finished; this is what there is"))
    return found


def details(results: Results) -> list[tuple[str, str]]:
    """What the compile was."""
    names = (
        ("run", "Run"),
        ("run_dir", "Directory"),
        ("seed", "Seed"),
        ("threshold", "Success is a reward of at least"),
    )
    return [(label, str(results[key])) for key, label in names if results.get(key) is not None]


def tables(results: Results, experience: Experience | None = None) -> list[Table]:
    """All tables that have rows.

    Args:
        results: Of the compile.
        experience: Its part of the library; without it, repairs and prices are the sums that the results have.
    """
    iterations = results.get("iterations", [])
    found = [score_table(iterations), test_table(results.get("test", {}))]
    if experience is not None:
        found.append(gate_table(iterations, experience))
    found.append(agent_table(iterations))
    if experience is not None:
        found += [growth_table(experience), funnel_table(experience), price_table(iterations, experience)]
    else:
        found += [repair_table(iterations), repair_agent_table(iterations), seconds_table(iterations)]
        found.append(usage_table(iterations))
    return [table for table in found if table.rows]


# Scores


def score_table(iterations: Sequence[Results]) -> Table:
    """The score of each iteration on the valset."""
    rows = [
        (_number(entry), f"{entry['score']:.4f}", _bounds(score_interval(entry)), str(entry.get("num_val", NONE)))
        for entry in iterations
        if entry.get("score") is not None
    ]
    header = ("iteration", "score", "95 % interval", "examples")
    note = "Mean reward on the validation examples. Iteration 0 is the student as given. The intervals are Wilson's."
    return Table("score", "Validation score", header, tuple(rows), note)


def test_table(test: Results) -> Table:
    """Scores on examples that the compile never saw, of the program and of it with single agents put back.

    Args:
        test: The stage `test` of the run directory: `{"programs": [{"program": "after iteration 1", "score": 0.4,
            "interval": [0.3, 0.5], "num_examples": 100}, ...]}`.
    """
    rows = [
        (
            entry["program"],
            f"{entry['score']:.4f}",
            _bounds(Interval(*entry["interval"]) if entry.get("interval") else None),
            str(entry["num_examples"]),
        )
        for entry in test.get("programs", [])
    ]
    header = ("program", "score", "95 % interval", "examples")
    note = (
        "Scores on test examples that the compile never saw. Where an agent was put back to its base weights, the "
        "drop shows how much of the gain was learnt by that agent."
    )
    return Table("test", "What each agent learnt", header, tuple(rows), note)


def gate_table(iterations: Sequence[Results], experience: Experience) -> Table:
    """What the promotion gate saw, and what it kept."""
    entries = {entry["iteration"]: entry for entry in iterations if entry.get("promoted")}
    rows = []
    for gate in experience.gates:
        if (entry := entries.get(gate.iteration)) is None:
            continue
        agents = list(entry["promoted"])
        if gate.candidate > len(agents):  # a shared library may hold more
            continue
        agent = agents[gate.candidate - 1] if gate.candidate else ""
        kept = entry["promoted"][agent] if agent else all(entry["promoted"].values())
        interval = score_interval({"score": gate.score, "num_val": gate.num_val})
        weights = agent or "all new weights"
        rows.append((str(gate.iteration), weights, f"{gate.score:.4f}", _bounds(interval), "yes" if kept else "no"))
    header = ("iteration", "weights", "score", "95 % interval", "kept")
    note = (
        "What promotion saw on the validation examples. All new weights of an iteration are tried together; only if "
        "the score falls, each agent's are tried by themselves, upon those kept before."
    )
    return Table("gates", "Promotion", header, tuple(rows), note)


def agent_table(iterations: Sequence[Results]) -> Table:
    """The fine-tuning jobs."""
    rows = [
        (
            _number(entry),
            name,
            str(agent.get("rows", NONE)),
            _counts(agent.get("dropped", {})),
            _first_to_last(agent.get("losses", [])),
            _yes_or_no(entry.get("promoted", {}).get(name)),
            _seconds(agent.get("seconds")),
        )
        for entry in iterations
        for name, agent in entry.get("agents", {}).items()
    ]
    header = ("iteration", "agent", "rows", "dropped", "loss", "promoted", "seconds")
    note = "Training rows by agent and the steps left out, by reason. The loss is the first and the last of the job."
    return Table("agents", "Agents", header, tuple(rows), note)


# Experience


def growth_table(experience: Experience) -> Table:
    """What each iteration added to the library."""
    rows = [
        (
            str(stats.iteration),
            stats.origin,
            f"{stats.num_trajectories:,}",
            f"{stats.num_successes:,}",
            f"{stats.num_trajectories - stats.num_successes:,}",
            f"{stats.num_successes / stats.num_trajectories:.1%}",
            _percents(wilson_interval(stats.num_successes, stats.num_trajectories)),
        )
        for stats in sorted(experience.growth, key=lambda stats: stats.iteration)
    ]
    header = ("iteration", "origin", "runs", "succeeded", "failed", "share", "95 % interval")
    note = "Runs that each iteration added, by where they came from. Validation runs are kept, and never trained on."
    return Table("growth", "Experience library", header, tuple(rows), note)


def funnel_table(experience: Experience) -> Table:
    """How far failed runs came in repair."""
    header = ("iteration", "agent", *FUNNEL[:3], "leaked", *FUNNEL[3:])
    rows = [
        (str(funnel.iteration), funnel.agent, *(f"{funnel.counts[name]:,}" for name in header[2:]))
        for funnel in experience.funnels
    ]
    note = (
        "Failed runs that were tried, and how far they came: the critic advised, the agent answered anew, the program "
        "ran on from there, and it succeeded. Leaked edits gave the answer away and were refused. Agents are tried in "
        "turn until one helps, so a later agent sees fewer runs."
    )
    return Table("repair", "Repair", header, tuple(rows), note)


def price_table(iterations: Sequence[Results], experience: Experience) -> Table:
    """What each stage of each iteration took."""
    usages: dict[tuple[int, str], Usage] = {(price.iteration, price.stage): price.usage for price in experience.prices}
    seconds = {(entry["iteration"], stage): value for entry in iterations for stage, value in entry_seconds(entry)}
    order = {stage: number for number, stage in enumerate(("collect", "repair", "curate", "train", "evaluate"))}
    rows = []
    for iteration, stage in sorted({*usages, *seconds}, key=lambda place: (place[0], order.get(place[1], 9), place[1])):
        usage = usages.get((iteration, stage))
        counts = (usage.calls, usage.prompt_tokens, usage.completion_tokens) if usage else (None, None, None)
        rows.append((str(iteration), stage, *map(_count, counts), _seconds(seconds.get((iteration, stage)))))
    header = ("iteration", "stage", "LM calls", "prompt tokens", "completion tokens", "seconds")
    note = "LM calls and tokens are counted in the library, seconds are those of the last process that did the stage."
    return Table("cost", "Cost per stage", header, tuple(rows), note)


def entry_seconds(iteration: Results) -> Iterator[tuple[str, float]]:
    """Stage and seconds of one iteration."""
    yield from iteration.get("seconds", {}).items()


# The same from the results alone


def repair_table(iterations: Iterable[Results]) -> Table:
    """Repairs by iteration."""
    rows = []
    for entry in iterations:
        if repair := entry.get("repair"):
            tried, repaired = repair.get("tried", 0), repair.get("repaired", 0)
            share = f"{repaired / tried:.1%}" if tried else NONE
            rows.append((_number(entry), str(tried), str(repaired), share, _counts(repair.get("verdicts", {}))))
    header = ("iteration", "failed runs tried", "repaired", "share", "verdicts")
    return Table("repair", "Repair", header, tuple(rows))


def repair_agent_table(iterations: Iterable[Results]) -> Table:
    """Repair attempts by iteration and agent."""
    rows = [
        (_number(entry), name, str(agent.get("tried", 0)), str(agent.get("repaired", 0)))
        for entry in iterations
        for name, agent in entry.get("repair", {}).get("by_agent", {}).items()
    ]
    return Table("repair-by-agent", "Repair by agent", ("iteration", "agent", "tried", "repaired"), tuple(rows))


def seconds_table(iterations: Sequence[Results]) -> Table:
    """Seconds by iteration and stage."""
    stages = list(dict.fromkeys(stage for entry in iterations for stage in entry.get("seconds", {})))
    rows = [
        (_number(entry), *(_seconds(seconds.get(stage)) for stage in stages), _seconds(sum(seconds.values())))
        for entry in iterations
        if (seconds := entry.get("seconds", {}))
    ]
    return Table("cost", "Seconds per stage", ("iteration", *stages, "all"), tuple(rows))


def usage_table(iterations: Iterable[Results]) -> Table:
    """LM calls and tokens by iteration."""
    rows = []
    for entry in iterations:
        for key, what in (("usage", "all"), ("repair", "of it: repair")):
            usage = entry.get(key, {})
            if "calls" in usage:
                counts = (usage.get(name) for name in ("calls", "prompt_tokens", "completion_tokens"))
                rows.append((_number(entry), what, *map(_count, counts)))
    return Table("usage", "Cost", ("iteration", "what", "LM calls", "prompt tokens", "completion tokens"), tuple(rows))


# Numbers as texts


def _best(results: Results) -> Results | None:
    best = results.get("best_iteration")
    for entry in results.get("iterations", []):
        if entry.get("iteration") == best and entry.get("score") is not None:
            found: Results = entry
            return found
    return None


def _totals(iterations: Iterable[Results], experience: Experience | None) -> tuple[int, int]:
    """LM calls and tokens."""
    if experience is not None:
        usage = experience.usage
        return usage.calls, usage.prompt_tokens + usage.completion_tokens
    usages: list[Mapping[str, Any]] = [entry.get("usage", {}) for entry in iterations]
    tokens = sum(usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0) for usage in usages)
    return sum(usage.get("calls", 0) for usage in usages), tokens


def _number(iteration: Results) -> str:
    return str(iteration.get("iteration", NONE))


def _bounds(interval: Interval | None) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}" if interval else NONE


def _percents(interval: Interval) -> str:
    return f"{interval.low:.1%} to {interval.high:.1%}"


def _yes_or_no(value: bool | None) -> str:
    return NONE if value is None else "yes" if value else "no"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or NONE


def _first_to_last(losses: Sequence[float]) -> str:
    return f"{losses[0]:.3f} to {losses[-1]:.3f}" if losses else NONE


def _seconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.1f}"


def _count(count: int | None) -> str:
    return NONE if count is None else f"{count:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
