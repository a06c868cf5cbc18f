"""Exact match of one whole number."""

from __future__ import annotations

from typing import Any

import dspy

from metrics import number
from metrics.answer_line import answer_line
from sirius_dspy.demo.gold import gold_answer, read_reply
from sirius_dspy.errors import DatasetError


def whole_number(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Score 1.0 if the reply states the gold number, and 0.0 otherwise; there is no partial credit.

    Args:
        example: Has the gold number in `answer`, as text.
        prediction: Has the reply in `answer`; one that cannot be parsed scores 0.0. Count these with `parse`.
        trace: Not used; DSPy passes it to every metric.

    Raises:
        DatasetError: The example has no gold number.
    """
    gold = parse(gold_answer(example))
    if gold is None:
        raise DatasetError(f"Gold answer {example.answer!r}, expected a whole number. Correct the example's `answer`.")
    return float(parse(read_reply(prediction)) == gold)


def parse(text: str) -> int | None:
    r"""The whole number that a reply states; see `metrics.answer_line` and `metrics.number` for the rules.

    Examples:
        >>> parse("3 + 4 makes 7.\nAnswer: 7 legs"), parse("7 or 8"), parse("7.5")
        (7, None, None)
    """
    line = answer_line(text)
    value = None if line is None else number.parse(line)
    return int(value) if value is not None and value.denominator == 1 else None
