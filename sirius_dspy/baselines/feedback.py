"""Measures the critic's advice: how often it fixes an answer, gives the answer away, or spoils it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.stats import Interval, wilson_interval
from sirius_dspy.trajectory import Attempt, Step, Values

_GUARD = LeakGuard(traces=r"(?!)")
"""A guard that only looks for the gold answer."""


@dataclass(frozen=True)
class FeedbackQuality:
    """Counts of repair attempts. An attempt is a new answer of an agent after one piece of advice.

    Like the leak guard, this compares whole words to decide whether a text contains the gold answer. If the gold answer
    is a common word (`no`, `a`), these counts are upper bounds.
    """

    attempts: int = 0
    """Attempts for which the critic gave advice."""
    turned_right: int = 0
    """The run succeeded after the edit."""
    advice_leaks: int = 0
    """The advice contains the gold answer, which the agent had not seen or written before."""
    edits_refused: int = 0
    """The leak guard refused the new answer, because it newly contains the gold answer or mentions a correction."""
    right_before: int = 0
    """The edited step already contained the gold answer, so the mistake was made later."""
    made_wrong: int = 0
    """The attempts of `right_before` whose new answer does not contain the gold answer."""
    unanswered: int = 0
    """The new answer did not parse, or was the old one."""

    def __add__(self, other: FeedbackQuality) -> FeedbackQuality:
        return FeedbackQuality(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def interval(self, name: str) -> Interval:
        """Compute Wilson's 95 % interval of a share: `made_wrong` of `right_before`, other counts of all attempts.

        Raises:
            ValueError: The denominator is zero.
        """
        return wilson_interval(getattr(self, name), self.right_before if name == "made_wrong" else self.attempts)


def feedback_quality(
    library: ExperienceLibrary, *, run: str | None = None, iteration: int | None = None
) -> dict[str, FeedbackQuality]:
    """Measure the quality of the feedback in all repairs of a library.

    Args:
        library: Library with the repairs, their failed runs and the examples.
        run: Id of a compile (`detailed_results["run"]`); all compiles by default.
        iteration: Number of an iteration, from 1; all iterations by default.

    Returns:
        Predictor name to its counts; `total` adds them up.

    Raises:
        LibraryError: The library cannot be read.
    """
    by_predictor: dict[str, FeedbackQuality] = {}
    for repair in library.repairs(run=run, iteration=iteration):
        failed = library.get(repair.parent)
        _, labels = library.plain_example(failed.example_key)
        for attempt in repair.attempts:
            quality = _quality(attempt, failed.steps[attempt.position], labels)
            by_predictor[attempt.predictor] = by_predictor.get(attempt.predictor, FeedbackQuality()) + quality
    return by_predictor


def total(by_predictor: Mapping[str, FeedbackQuality] | Iterable[FeedbackQuality]) -> FeedbackQuality:
    """Add up the counts of all predictors."""
    parts = by_predictor.values() if isinstance(by_predictor, Mapping) else by_predictor
    return sum(parts, FeedbackQuality())


def _quality(attempt: Attempt, step: Step, labels: Values) -> FeedbackQuality:
    if not attempt.feedback:
        return FeedbackQuality()
    written = attempt.rephrased or attempt.regenerated
    right_before = _carries(step.outputs or {}, labels)
    return FeedbackQuality(
        attempts=1,
        turned_right=attempt.verdict == "repaired",
        advice_leaks=bool(_GUARD.leak({"advice": attempt.feedback}, step, labels, answers=False)),
        edits_refused=attempt.verdict == "leaked",
        right_before=right_before,
        made_wrong=right_before and written is not None and not _carries(written, labels),
        unanswered=attempt.verdict in ("unparsed", "unchanged"),
    )


def _carries(values: Mapping[str, Any], labels: Values) -> bool:
    """Return whether a text contains the gold answer."""
    blank = Step(predictor="", occurrence=0, inputs={}, outputs={}, lm="")
    return bool(_GUARD.leak(values, blank, labels, answers=False))
