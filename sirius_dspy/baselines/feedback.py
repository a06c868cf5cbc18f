"""How good the critic's advice is: what it turns right, what it gives away, and what it spoils."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.stats import Interval, wilson_interval
from sirius_dspy.trajectory import Attempt, Step, Values

_GUARD = LeakGuard(traces=r"(?!)")
"""Looks for the gold answer and for nothing else."""


@dataclass(frozen=True)
class FeedbackQuality:
    """Counts of repair attempts; one attempt is one new answer of one agent after one piece of advice.

    Whether a text carries the gold answer is decided as the leak guard does, by whole words. Where the gold answer is a
    common word (`no`, `a`), the counts of what carries it are upper bounds.
    """

    attempts: int = 0
    """Attempts for which the critic gave advice at all."""
    turned_right: int = 0
    """The run succeeded after the edit."""
    advice_leaks: int = 0
    """The advice itself states the gold answer, which the advised agent had not seen or written before."""
    edits_refused: int = 0
    """The leak guard refused the new answer: it newly carries the gold answer, or speaks of a correction."""
    right_before: int = 0
    """The edited step carried the gold answer already, so that what was wrong came later."""
    made_wrong: int = 0
    """Of these, the ones whose new answer does not carry it any more."""
    unanswered: int = 0
    """After the advice, the agent's new answer did not parse, or was the old one."""

    def __add__(self, other: FeedbackQuality) -> FeedbackQuality:
        return FeedbackQuality(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def interval(self, name: str) -> Interval:
        """Wilson's 95 % interval of a count as a share: `made_wrong` of `right_before`, the others of all attempts.

        Raises:
            ValueError: There is nothing to take a share of.
        """
        return wilson_interval(getattr(self, name), self.right_before if name == "made_wrong" else self.attempts)


def feedback_quality(
    library: ExperienceLibrary, *, run: str | None = None, iteration: int | None = None
) -> dict[str, FeedbackQuality]:
    """Look at all repairs in a library.

    Args:
        library: Holds the repairs, their failed runs and the examples.
        run: Id of a compile (`detailed_results["run"]`); all of them by default.
        iteration: From 1; all by default.

    Returns:
        By predictor name; `total` gives their sum.

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
    """The sum over predictors."""
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
    """Whether a text holds the gold answer: what the guard says of it if nothing was known before."""
    blank = Step(predictor="", occurrence=0, inputs={}, outputs={}, lm="")
    return bool(_GUARD.leak(values, blank, labels, answers=False))
