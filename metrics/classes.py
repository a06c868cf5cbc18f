"""Accuracy that counts every class alike, for answers from a few classes of which one is frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class ClassReport:
    """How well each class of the gold labels is recognized.

    Attributes:
        recall: Class to the share of its examples that are recognized.
        f1: Class to the harmonic mean of its precision and recall; 0 if no example of it is recognized.
    """

    recall: dict[str, float]
    f1: dict[str, float]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes; one of three constant answers has a third, however frequent its class is."""
        return fmean(self.recall.values())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes."""
        return fmean(self.f1.values())


def class_report(gold: Sequence[str], predicted: Sequence[str | None]) -> ClassReport:
    """Compare predicted with gold labels.

    Args:
        gold: The right labels. Only these classes count in the means.
        predicted: The labels of the replies, in the same order; `None` for a reply without a readable label, which
            is wrong.

    Raises:
        ValueError: There are no labels, or not equally many of both.

    Examples:
        >>> class_report(["yes", "yes", "no", "maybe"], ["yes", "yes", "yes", None]).balanced_accuracy
        0.3333333333333333
    """
    if not gold:
        raise ValueError("No labels. Pass at least one.")
    counts, guesses = Counter(gold), Counter(predicted)
    hits = Counter(right for right, guess in zip(gold, predicted, strict=True) if right == guess)
    return ClassReport(
        recall={label: hits[label] / count for label, count in counts.items()},
        f1={label: 2 * hits[label] / (count + guesses[label]) for label, count in counts.items()},
    )
