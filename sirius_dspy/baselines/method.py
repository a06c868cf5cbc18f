"""The interface of all methods: `compile`, which leaves the student unchanged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import dspy

from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.optimizer import prepare
from sirius_dspy.program import copy_program, lms_of, predictor_names, set_lms

Demos = Mapping[str, Sequence[dspy.Example]]
"""Predictor name to demonstrations."""


class Method(Protocol):
    """A method that improves a program or leaves it unchanged. `SiriuS` is one."""

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """Return a program to test; the student is left unchanged."""


@dataclass(frozen=True)
class PromptedTeam:
    """The program without any training.

    Attributes:
        demos: Predictor name to demonstrations for its prompts; without them, the program is zero-shot.
    """

    demos: Demos = field(default_factory=dict)

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`."""
        return prepare_student(student, self.demos)


@dataclass(frozen=True)
class SingleAgent:
    """A program with one predictor that replaces the team and uses its LM.

    Attributes:
        program: Program with one predictor for the same examples.
        method: Method that is applied to the program; by default, it is left untrained.
        max_tokens: Maximum number of tokens of its replies, if it reasons and the team does not; by default, the LM's.

    Examples:
        ```python
        SingleAgent(dspy.ChainOfThought("question -> answer"))                     # the prompted single agent
        SingleAgent(dspy.ChainOfThought("question -> answer"), star(metric))       # STaR
        ```
    """

    program: dspy.Module
    method: Method = field(default_factory=PromptedTeam)
    max_tokens: int | None = None

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`; only the LM of the student is used.

        Raises:
            UnpreparedProgramError: The program has several predictors, or the student's have different LMs.
        """
        names = list(predictor_names(self.program))
        if len(names) != 1:
            raise UnpreparedProgramError(
                f"A single agent has one predictor; the program has {names}. Pass a program with one predictor."
            )
        single = copy_program(self.program)
        lm = the_lm(student)
        single.set_lm(lm if self.max_tokens is None else with_max_tokens(lm, self.max_tokens))
        return self.method.compile(single, trainset=trainset, valset=valset)


def prepare_student(student: dspy.Module, demos: Demos | None = None) -> dspy.Module:
    """Copy a student, with its LM objects or DSPy's default LM, and add demonstrations.

    Args:
        student: Any program.
        demos: Predictor name to demonstrations; other predictors keep theirs.

    Raises:
        UnpreparedProgramError: The student has no predictors, a predictor has no LM, or `demos` names an unknown one.
    """
    prepare.check_student(student)
    prepare.check_demos(demos or {}, student)
    lms = prepare.starting_lms(student, {name: (name,) for name in predictor_names(student)})
    program = copy_program(student, lms)
    for name, predictor in predictor_names(program).items():
        predictor.demos = list((demos or {}).get(name, predictor.demos))
    return program


def the_lm(program: dspy.Module) -> dspy.LM:
    """Return the only LM of a program.

    Raises:
        UnpreparedProgramError: The program has no LM, or several.
    """
    names = list(predictor_names(program))
    lms = prepare.starting_lms(program, {name: (name,) for name in names})
    if len({lm.model for lm in lms.values()}) != 1:
        models = {name: lm.model for name, lm in lms.items()}
        raise UnpreparedProgramError(f"The method needs one LM for all predictors; the program has {models}.")
    return lms[names[0]]


def with_max_tokens(lm: dspy.LM, number: int) -> dspy.LM:
    """Return a copy of an LM with another limit; DSPy names it differently for reasoning models of OpenAI."""
    name = "max_completion_tokens" if "max_completion_tokens" in lm.kwargs else "max_tokens"
    return lm.copy(**{name: number})


def put_lms_back(program: dspy.Module, source: dspy.Module) -> dspy.Module:
    """Give a program the LM objects of another one, since DSPy's optimizers return copies of LMs."""
    set_lms(program, lms_of(source))
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Redirect stdout to stderr, and keep no history of LM calls.

    DSPy's evaluators draw thousands of progress bars on stdout while they search for prompts.
    """
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        dspy.context(disable_history=True),
    ):
        yield
