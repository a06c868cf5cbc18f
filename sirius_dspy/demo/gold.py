"""Reads gold labels, which must exist, and replies, which may be anything."""

from __future__ import annotations

from typing import Any

import dspy

from sirius_dspy.errors import DatasetError


def gold_answer(example: dspy.Example) -> str:
    """Return the example's `answer`.

    Raises:
        DatasetError: It is missing or not a string. Otherwise, every reply would be wrong without an explanation.
    """
    answer = example.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise DatasetError(
            f"The gold answer of an example with the fields {sorted(example.keys())} is {answer!r}, expected a "
            "non-empty string in the field `answer`. Build the example as `dspy.Example(..., answer='...')`."
        )
    return answer


def read_reply(prediction: Any) -> str:
    """Return the prediction's `answer`, or an empty string: a failed run is a wrong answer and not an error."""
    answer = getattr(prediction, "answer", None)
    return answer if isinstance(answer, str) else ""
