"""Accuracy on questions that are answered by yes, no or maybe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import dspy

from metrics.classes import ClassReport, class_report
from sirius_dspy.demo.gold import gold_answer, read_reply
from sirius_dspy.errors import DatasetError
from sirius_dspy.examples import answer_of
from sirius_dspy.trajectory import Trajectory

LABELS = ("yes", "no", "maybe")

_HEADER = re.compile(
    r"^\W*(?:(?:so|therefore),? )?(?:the )?(?:final |correct )?answer[\s*_]*(?:is\b[\s*_]*:?|:)", re.I | re.M
)
_CLAUSE_END = re.compile(r"[.,;:!?\n\u2014]+")
_HEDGES = frozenset({"or", "and", "but", "perhaps", "possibly", "probably", "also"})
_MARKS = " \t\r\n*_\"'`()[]{}<>\u201c\u201d\u2018\u2019"


def yes_no_maybe(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Score 1.0 if the reply is parsed as the gold label, and 0.0 otherwise; see `parse` for the rule.

    Args:
        example: Has the gold label in `answer`: `yes`, `no` or `maybe`.
        prediction: Has the reply in `answer`; one that cannot be parsed scores 0.0. Count these with `parse`.
        trace: Not used; DSPy passes it to every metric.

    Raises:
        DatasetError: The example has no gold label, or another one.
    """
    gold = gold_answer(example).strip().lower()
    if gold not in LABELS:
        raise DatasetError(f"Gold answer {gold!r}, expected one of {LABELS}. Correct the example's `answer`.")
    return float(parse(read_reply(prediction)) == gold)


def parse(text: str) -> str | None:
    r"""Read the one label that a reply commits itself to.

    The label is anchored: it is the first clause of the reply (`No. The groups did not differ.`), or, where lines start
    with `Answer:` or `The answer is`, the first clause after that, on every such line the same. An explanation after it
    does not count (`Yes. No patient relapsed.`). A reply that offers a second label (`yes or no`, `Yes, no, maybe`) has
    no answer.

    Returns:
        `yes`, `no` or `maybe`; `None` if the reply cannot be parsed.

    Examples:
        >>> parse("Both groups improved, with no difference.\n**Answer:** Maybe.")
        'maybe'
        >>> parse("yes/no/maybe") is None
        True
    """
    headers = list(_HEADER.finditer(text))
    answers = [text[header.end() :].strip(_MARKS).split("\n", 1)[0] for header in headers] or [text]
    labels = {_first_label(answer) for answer in answers}
    return labels.pop() if len(labels) == 1 else None


def report(trajectories: Sequence[Trajectory], examples: Sequence[dspy.Example]) -> ClassReport:
    """Compare the answers of scored runs with the gold labels, each class alike.

    Args:
        trajectories: One run per example; one that raised has no readable answer.
        examples: The examples with their gold labels in `answer`, in the same order.
    """
    gold = [gold_answer(example).strip().lower() for example in examples]
    return class_report(gold, [parse(str(answer_of(trajectory) or "")) for trajectory in trajectories])


def _first_label(text: str) -> str | None:
    clauses = [clause.strip(_MARKS).lower() for clause in _CLAUSE_END.split(text.strip(_MARKS))]
    offered = {label for clause in clauses for label in _find_labels(clause)}
    return clauses[0] if clauses[0] in LABELS and len(offered) == 1 else None


def _find_labels(clause: str) -> set[str]:
    """The labels in a clause that has nothing but labels and hedges: `or maybe no` offers two, `no deaths` none."""
    words = set(clause.split())
    return words & set(LABELS) if words <= {*LABELS, *_HEDGES} else set()
