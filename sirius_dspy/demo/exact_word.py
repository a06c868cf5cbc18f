"""Exact match of a name or a word."""

from __future__ import annotations

from typing import Any

import dspy

from sirius_dspy.demo.gold import gold_answer, read_reply

_OPENING = " \t\r\n\"'`\u201c\u2018"
_CLOSING = _OPENING + ".,;:!?\u201d\u2019"


def exact_word(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Score 1.0 if the reply is the gold word and nothing else, and 0.0 otherwise; there is no partial credit.

    Before the comparison, surrounding whitespace and quotation marks and trailing punctuation are removed, runs of
    whitespace become one space, and case is folded: `"jazz".` equals `Jazz`. A reply that contains more than the word
    is wrong (`Answer: Jazz or Craig`), because an agent that lists every candidate would always be right.

    Args:
        example: Example with the gold word in `answer`.
        prediction: Prediction with the reply in `answer`. `None`, or a reply that is missing or not a string, scores
            0.0.
        trace: Ignored; DSPy passes it to every metric.

    Raises:
        DatasetError: The example has no gold word.
    """
    return float(is_same_word(read_reply(prediction), gold_answer(example)))


def is_same_word(reply: str, gold: str) -> bool:
    """Return whether a reply is the gold word and nothing else, by the rules of `exact_word`."""
    return bool(_normal(reply)) and _normal(reply) == _normal(gold)


def _normal(text: str) -> str:
    return " ".join(text.lstrip(_OPENING).rstrip(_CLOSING).split()).casefold()
