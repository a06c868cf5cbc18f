"""The head of a report: what a reader wants to know first."""

from __future__ import annotations

from sirius_dspy.optimizer.results import CompileResult, UsageResult
from sirius_dspy.report.contents import Report
from sirius_dspy.report.numbers import (
    format_count,
    format_duration,
    format_interval,
    format_score,
    format_score_briefly,
    format_usd,
)

Facts = list[tuple[str, str]]
"""Labels with their values."""


def title(report: Report) -> str:
    """The title of the report, with the program's name."""
    return f"SiriuS report: {report.results.program}" if report.results.program else "SiriuS report"


def summary(report: Report) -> str:
    """The result in one line, e.g. "0 % to 54 % (validation), 41 % on test"; empty before the first score."""
    results, in_percent = report.results, report.is_in_percent
    if results.best is None:
        return ""
    best = format_score_briefly(results.best.score, in_percent=in_percent)
    first = results.iterations[0]
    if first.iteration == 0 and results.best.iteration > 0:
        best = f"{format_score_briefly(first.score, in_percent=in_percent)} to {best}"
    parts = [f"{best} (validation)"]
    if report.tested is not None:
        parts.append(f"{format_score_briefly(report.tested.score, in_percent=in_percent)} on test")
    return ", ".join(parts)


def facts(report: Report) -> Facts:
    """The best iteration, how the compile ended, and what it took."""
    return [*_best(report), ("State", state(report.results)), *spending(report.results)]


def details(report: Report) -> Facts:
    """Which compile it was."""
    results = report.results
    listed = {
        "Date": "" if report.date is None else report.date.isoformat(),
        "Run": results.run,
        "Directory": results.run_dir,
        "Seed": str(results.seed),
        "Success is a reward of at least": f"{results.threshold:g}",
        "Training examples": _examples(results),
    }
    return [(label, value) for label, value in listed.items() if value]


def _examples(results: CompileResult) -> str:
    """How many examples the trainset had; equal ones are run once."""
    if not results.num_train:
        return ""
    distinct = "" if results.num_distinct == results.num_train else f", {format_count(results.num_distinct)} distinct"
    return f"{format_count(results.num_train)}{distinct}"


def state(results: CompileResult) -> str:
    """How the compile ended."""
    texts = {
        "finished": "finished",
        "budget": "ended at its budget",
        "nothing learned": "ended early, since an iteration gave no training row",
        "unfinished": "not finished; this is what there is",
    }
    return f"{texts[results.ended]}: {results.reason}" if results.reason else texts[results.ended]


def spending(results: CompileResult) -> Facts:
    """Wall time, LM calls, tokens and money of the whole compile; empty if it asked no LM."""
    usage = results.usage
    time = [("Time", format_duration(results.seconds))] if results.seconds else []
    return [*time, *_usage(usage)] if usage.calls else time


def _usage(usage: UsageResult) -> Facts:
    return [
        ("LM calls", format_count(usage.calls)),
        ("Tokens", format_count(usage.prompt_tokens + usage.completion_tokens)),
        ("US dollars", format_usd(usage.usd)),
    ]


def _best(report: Report) -> Facts:
    best, in_percent = report.results.best, report.is_in_percent
    if best is None:
        return []
    name = "the student as it came" if best.iteration == 0 else f"iteration {best.iteration}"
    score = format_score(best.score, in_percent=in_percent)
    listed = [("Best", name), ("Validation score", score)]
    if best.interval is not None:
        listed.append(("95 % interval", format_interval(best.interval, in_percent=in_percent)))
    if report.tested is not None:
        listed.append(("Test score", format_score(report.tested.score, in_percent=in_percent)))
    return listed
