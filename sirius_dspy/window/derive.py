"""What a window shows, from the files of the run directory."""

from __future__ import annotations

from collections.abc import Iterator

from sirius_dspy.library.counts import RepairCount
from sirius_dspy.optimizer.live import Live, is_gone
from sirius_dspy.optimizer.results import CompileResult, IterationResult, UnfinishedIteration
from sirius_dspy.window.views import AT_WORK, RepairsView, ScoreView, SpendView, StageStatus, StageView, State


def state_of(live: Live | None, results: CompileResult | None) -> State:
    """How the compile is doing."""
    if live is None:
        return "finished" if results is not None and results.ended != "unfinished" else "unknown"
    return "gone" if live.state in AT_WORK and is_gone(live) else live.state


def reason_of(live: Live | None, results: CompileResult | None) -> str:
    """Why the compile ended, where that is not plain."""
    if live is not None:
        return live.reason
    return "" if results is None else results.reason


def stages_of(live: Live | None, results: CompileResult | None, state: State) -> Iterator[StageView]:
    """The stages of the plan; without a plan, those that something was done in."""
    seconds = _seconds(results)
    if live is None:
        for (iteration, stage), taken in seconds.items():
            yield StageView(iteration, stage, "done", seconds=taken)
        return
    for place, planned in enumerate(live.stages):
        spent = seconds.get((planned.iteration, planned.stage))
        if live.position is None:  # it has not begun a stage yet, or none was left to do
            status: StageStatus = "open" if spent is None else "done"
        elif place == live.position and state != "finished":
            yield StageView(planned.iteration, planned.stage, "now", live.done, live.total)
            continue
        else:
            status = "done" if place <= live.position else "open"
        yield StageView(planned.iteration, planned.stage, status, seconds=spent if status == "done" else None)


def _seconds(results: CompileResult | None) -> dict[tuple[int, str], float]:
    if results is None:
        return {}
    parts: list[IterationResult | UnfinishedIteration] = [*results.iterations]
    if results.unfinished is not None:
        parts.append(results.unfinished)
    return {(part.iteration, stage): spent for part in parts for stage, spent in part.seconds.items()}


def score_of(entry: IterationResult, results: CompileResult | None) -> ScoreView:
    """The validation score after an iteration."""
    low, high = (None, None) if entry.interval is None else entry.interval
    is_best = results is not None and entry.iteration == results.best_iteration
    return ScoreView(entry.iteration, entry.score, low, high, entry.num_val, is_best)


def spending_of(live: Live | None, results: CompileResult | None) -> Iterator[SpendView]:
    """Calls, tokens, dollars and seconds; what the results say where there is no `live.json`."""
    spent: dict[str, float | None]
    if live is not None:
        spent = {"calls": live.calls, "tokens": live.tokens, "usd": live.usd, "seconds": live.seconds}
    elif results is not None:
        usage = results.usage
        tokens = usage.prompt_tokens + usage.completion_tokens
        spent = {"calls": usage.calls, "tokens": tokens, "usd": usage.usd, "seconds": results.seconds}
    else:
        return
    limits = {} if live is None else live.limits
    for name, value in spent.items():
        yield SpendView(name, value, limits.get(name))


def repairs_view(count: RepairCount) -> RepairsView:
    """The attempts of one rung, with a number for each verdict."""
    verdicts = count.verdicts
    return RepairsView(
        count.iteration,
        count.rung,
        count.runs,
        attempts=sum(verdicts.values()),
        leaked=verdicts.get("leaked", 0),
        diverged=verdicts.get("diverged", 0),
        unparsed=verdicts.get("unparsed", 0),
        unchanged=verdicts.get("unchanged", 0),
        failed=verdicts.get("failed", 0),
        unconfirmed=verdicts.get("unconfirmed", 0),
        repaired=verdicts.get("repaired", 0),
    )
