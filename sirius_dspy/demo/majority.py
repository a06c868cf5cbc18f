"""The scores of a constant answer and of other trivial rules, to compare every accuracy with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import dspy

from sirius_dspy.demo.exact_word import is_same_word
from sirius_dspy.errors import DatasetError


def majority_baseline(examples: Sequence[dspy.Example]) -> float:
    """Return the share of examples whose `answer` is the most frequent one, from 0 to 1.

    Raises:
        DatasetError: There are no examples.
    """
    if not examples:
        raise DatasetError("The majority baseline of 0 examples is undefined; expected at least one example.")
    return Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)


def best_trivial_rule(examples: Sequence[dspy.Example], guess: Callable[[dspy.Example], Iterable[str]]) -> float:
    """Return the best score of a constant answer, and of rules that guess without doing the task, from 0 to 1.

    A generated task may have a shortcut that nobody planned, and a model finds it: compare with what shortcuts score.

    Args:
        examples: The examples, with an `answer`.
        guess: Returns the guess of each rule for an example, always in the same order.

    Raises:
        DatasetError: There are no examples.
    """
    constant = majority_baseline(examples)
    right = [[is_same_word(text, example.answer) for text in guess(example)] for example in examples]
    return max(constant, *(sum(rule) / len(examples) for rule in zip(*right, strict=True)))
