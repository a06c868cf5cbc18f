"""What a compile took, as tables: by stage and by agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sirius_dspy.optimizer.budget import STAGES
from sirius_dspy.optimizer.results import CompileResult, IterationResult, UnfinishedIteration, UsageResult
from sirius_dspy.report.numbers import NONE, format_count, format_seconds, format_usd
from sirius_dspy.report.table import Table

_USAGE = ("LM calls", "prompt tokens", "completion tokens", "US dollars")


def stage_table(results: CompileResult) -> Table:
    """LM calls, tokens, money and seconds of each stage of each iteration."""
    rows = [
        (str(iteration), stage, *_usage(usage), format_seconds(seconds))
        for iteration, stage, usage, seconds in _stages(results)
    ]
    note = (
        "All LM calls that servers answered, those of the metric and of repeated calls included; answers from a cache "
        "are free. Hosted fine-tuning is part of the US dollars if its price was given. Seconds are those of the last "
        "process that did the stage."
    )
    return Table("cost", "Cost by stage", ("iteration", "stage", *_USAGE, "seconds"), tuple(rows), note)


def agent_cost_table(results: CompileResult) -> Table:
    """LM calls, tokens and money of each agent in each iteration."""
    rows = [
        (str(entry.iteration), name, *_usage(agent.usage))
        for entry in results.iterations
        for name, agent in entry.agents.items()
        if agent.usage.calls
    ]
    note = "The agent's own calls in the runs and repairs that are in the library, those on the valset included."
    return Table("agent-cost", "Cost by agent", ("iteration", "agent", *_USAGE), tuple(rows), note)


def stage_seconds(results: CompileResult) -> dict[int, Mapping[str, float]]:
    """Iteration to stage to seconds, of all iterations that were timed."""
    return {part.iteration: part.seconds for part in _parts(results) if part.seconds}


def _stages(results: CompileResult) -> Iterator[tuple[int, str, UsageResult | None, float | None]]:
    for part in _parts(results):
        for stage in sorted({*part.stages, *part.seconds}, key=_order):
            yield part.iteration, stage, part.stages.get(stage), part.seconds.get(stage)


def _parts(results: CompileResult) -> list[IterationResult | UnfinishedIteration]:
    return [*results.iterations, *([results.unfinished] if results.unfinished else [])]


def _order(stage: str) -> tuple[int, str]:
    """As in an iteration, in which the evaluation comes last."""
    order = (*STAGES[1:], STAGES[0])
    return (order.index(stage) if stage in order else len(order)), stage


def _usage(usage: UsageResult | None) -> tuple[str, ...]:
    if usage is None:
        return (NONE,) * len(_USAGE)
    counts = (usage.calls, usage.prompt_tokens, usage.completion_tokens)
    return (*map(format_count, counts), format_usd(usage.usd))
