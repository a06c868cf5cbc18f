"""Reading the two sides of a comparison: the gold label must be there, the reply may be anything."""

from __future__ import annotations

from typing import Any

import dspy

from sirius_dspy.errors import DatasetError


def gold_answer(example: dspy.Example) -> str:
    """The example's `answer`.

    Raises:
        DatasetError: There is none, or it is not a text: every reply would be wrong, and nobody would know why.
    """
    answer = example.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise DatasetError(
            f"Gold answer {answer!r} in an example with the fields {sorted(example.keys())}; expected a non-empty text "
            "in the field `answer`. Build the example as `dspy.Example(..., answer='...')`."
        )
    return answer


def read_reply(prediction: Any) -> str:
    """The prediction's `answer`, empty where there is none: a failed run is a wrong answer, not an error."""
    answer = getattr(prediction, "answer", None)
    return answer if isinstance(answer, str) else ""
