"""A team of two agents, questions that are their own answers, and a metric, for tests of what runs programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dspy


class Team(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.analyst = dspy.Predict("question -> facts")
        self.solver = dspy.Predict("question, facts -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.solver(question=question, facts=self.analyst(question=question).facts)


def questions(number: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"q{n}", answer=f"q{n}").with_inputs("question") for n in range(number)]


def exact_match(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return prediction.answer == example.answer


def extend(collected: list, results: Iterable) -> None:
    """Collect results one by one, so that those before an error are kept."""
    for result in results:
        collected.append(result)
