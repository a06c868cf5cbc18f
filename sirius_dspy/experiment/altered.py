"""Methods that alter the program of another method, which only experiments need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from sirius_dspy.baselines import Method
from sirius_dspy.baselines.method import the_lm
from sirius_dspy.program import copy_program, predictor_names, set_lms


@dataclass(frozen=True)
class OtherProgram:
    """Replaces the student by another program with the student's LM."""

    program: dspy.Module
    method: Method

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`."""
        program = copy_program(self.program)
        program.set_lm(the_lm(student))
        return self.method.compile(program, trainset=trainset, valset=valset)


@dataclass(frozen=True)
class UntrainedAgent:
    """The result of another method, in which one agent has its initial weights.

    References:
        Tables 4 and 5 of SiriuS (arXiv:2502.04780): "SiriuS analyst + base solver", and so on.
    """

    method: Method
    agent: str

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`."""
        program = self.method.compile(student, trainset=trainset, valset=valset)
        names: Sequence[str] = program.detailed_results.agents[self.agent]
        predictors, originals = predictor_names(program), predictor_names(student)
        set_lms(program, {name: originals[name].lm for name in names})
        for name in names:
            predictors[name].demos = list(originals[name].demos)
        return program
