"""Majority vote: uses more LM calls at test time instead of training.

References:
    Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models (arXiv:2203.11171).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.baselines.method import Method, PromptedTeam, prepare_student
from sirius_dspy.dspy_internals import mark_compiled
from sirius_dspy.program import copy_program, lms_of, set_lms
from sirius_dspy.running.faults import fault_of, raise_if_systemic

_SETTINGS = {
    "votes": checks.whole(1),
    "method": checks.able("compile", expected="a method, such as `PromptedTeam()`"),
    "temperature": checks.number(above=0),
    "answer": checks.TEXT,
}
"""The kind of each setting of `MajorityVote`."""


@dataclass(frozen=True)
class MajorityVote:
    """Runs a program several times with a temperature, and returns the most frequent answer.

    Attributes:
        votes: Number of runs per example.
        method: Method that creates the program; the prompted team by default.
        temperature: Temperature of all runs.
        answer: Field of the prediction to vote on; case and surrounding whitespace are ignored.
    """

    votes: int
    method: Method = field(default_factory=PromptedTeam)
    temperature: float = 0.7
    answer: str = "answer"

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`.

        Raises:
            SettingsError: There are no votes, all votes would be equal, or another setting is invalid.
        """
        checks.check("MajorityVote", vars(self), _SETTINGS)
        program = self.method.compile(student, trainset=trainset, valset=valset)
        program = copy_program(program)
        mark_compiled(program, False)  # DSPy hides the predictors of a compiled program in another program
        return _Voting([self._voter(program, number) for number in range(self.votes)], self.answer)

    def _voter(self, program: dspy.Module, number: int) -> dspy.Module:
        """Copy the program with another rollout id for its LMs, so that DSPy's cache does not repeat samples."""
        voter = prepare_student(program)
        lms = {name: lm.copy(temperature=self.temperature, rollout_id=number) for name, lm in lms_of(voter).items()}
        set_lms(voter, lms)
        return voter


class _Voting(dspy.Module):
    def __init__(self, voters: list[dspy.Module], answer: str) -> None:
        super().__init__()
        self.voters = voters
        self.answer = answer

    def forward(self, **inputs: Any) -> Any:
        """Return the first prediction with the most frequent answer; a failed run has no vote.

        Raises:
            Exception: The error of the last run if all runs failed, or the error of an LM that is temporarily
                unavailable.
        """
        predictions, error = [], None
        for voter in self.voters:
            try:
                predictions.append(voter(**inputs))
            except Exception as raised:
                raise_if_systemic(raised)
                if fault_of(raised) == "transient":  # a missing vote must not count against an answer
                    raise
                error = raised
        if error is not None and not predictions:
            raise error
        winner = Counter(map(self._vote, predictions)).most_common(1)[0][0]
        return next(prediction for prediction in predictions if self._vote(prediction) == winner)

    def _vote(self, prediction: Any) -> str:
        return str(prediction[self.answer]).strip().casefold()
