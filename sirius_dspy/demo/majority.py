"""The score of a constant answer, to compare every accuracy with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import dspy

from sirius_dspy.errors import DatasetError


def majority_baseline(examples: Sequence[dspy.Example]) -> float:
    """Return the share of examples whose `answer` is the most frequent one, from 0 to 1.

    Raises:
        DatasetError: There are no examples.
    """
    if not examples:
        raise DatasetError("The majority baseline of 0 examples is undefined; expected at least one example.")
    return Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)
