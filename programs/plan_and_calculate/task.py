"""The tasks: data, programs, metric, demonstrations and oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.signatures import make_signature

from metrics.whole_number import parse, whole_number
from programs.plan_and_calculate.calculator import ExpressionError, calculate
from programs.plan_and_calculate.runs import LEGS_RUNS, PRICES_RUNS, Shown
from programs.plan_and_calculate.stories import Legs, Order, Prices, Story
from sirius_dspy.demo import generated
from sirius_dspy.demo.generated import Split, key_of
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.demo.steps import AnyStep, GoldStep, as_demonstrations, check_form, output_of
from sirius_dspy.errors import DatasetError

_REPORT = "Answer the question with the result."
_ANSWER = "Answer with one number."


class PlanTeam(dspy.Module):
    """Planner -> calculator (code) -> Reporter."""

    def __init__(self, planning: str) -> None:
        super().__init__()
        self.planner = dspy.Predict(make_signature("question: str -> expression: str", planning))
        self.reporter = dspy.Predict(make_signature("question: str, result: str -> answer: str", _REPORT))

    def forward(self, question: str) -> dspy.Prediction:
        """Answer one question; the prediction has `answer`."""
        expression = self.planner(question=question).expression
        return self.reporter(question=question, result=evaluate(expression))

    async def aforward(self, question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        expression = (await self.planner.acall(question=question)).expression
        return await self.reporter.acall(question=question, result=evaluate(expression))


class SinglePlanner(dspy.Module):
    """One agent, which answers, reasons and answers, or writes an expression whose value is the answer."""

    def __init__(self, planning: str, reasoning: bool = False, calculator: bool = False) -> None:
        super().__init__()
        outputs = "reasoning: str, answer: str" if reasoning else "answer: str"
        instructions = f"{planning} Then answer with one number." if reasoning else _ANSWER
        if calculator:
            outputs, instructions = "expression: str", planning
        self.solver = dspy.Predict(make_signature(f"question: str -> {outputs}", instructions))
        self._has_calculator = calculator

    def forward(self, question: str) -> dspy.Prediction:
        """Answer one question; the prediction has `answer`."""
        return self._read(self.solver(question=question))

    async def aforward(self, question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        return self._read(await self.solver.acall(question=question))

    def _read(self, reply: dspy.Prediction) -> dspy.Prediction:
        return dspy.Prediction(answer=evaluate(reply.expression)) if self._has_calculator else reply


def evaluate(expression: str) -> str:
    """Return the value of an expression, or `unknown`, so that a wrong plan makes a wrong answer and no failure."""
    try:
        return str(calculate(expression))
    except ExpressionError:
        return "unknown"


@dataclass(frozen=True)
class PlanTask:
    """The tasks of one kind of story."""

    story: Story
    shown: tuple[Shown, ...]
    """Runs written by hand; their questions are in no split."""

    @property
    def name(self) -> str:
        """The name of the kind."""
        return self.story.name

    def build(self, single: bool = False, reasoning: bool = False, calculator: bool = False) -> dspy.Module:
        """Build an untrained program without LMs.

        Args:
            single: Whether to build the single agent, `solver`, instead of `planner` and `reporter`.
            reasoning: Whether the single agent writes its reasoning before the answer.
            calculator: Whether the single agent writes an expression, whose value is the answer.

        Raises:
            DatasetError: `reasoning` or `calculator` is set for the team, or both are set.
        """
        _check_form(single, reasoning, calculator)
        return SinglePlanner(self.story.planning, reasoning, calculator) if single else PlanTeam(self.story.planning)

    def examples(
        self, split: Split, size: int = 100, seed: int = 0, kinds: int = 2, most: int = 9
    ) -> list[dspy.Example]:
        """Generate items with the input `question` and the label `answer`.

        Args:
            split: `train`, `validation` or `test`.
            size: Number of items.
            seed: Seed from 0; other seeds give other items of the same kind.
            kinds: Number of kinds of things in a question, from 1 to 6.
            most: Maximum number of things of each kind, from 2.

        Raises:
            DatasetError: An argument is invalid, or there are too few items.
        """
        if not 1 <= kinds <= 6 or most < 2:
            raise DatasetError(
                f"`kinds` is {kinds!r} and `most` is {most!r}, expected an integer from 1 to 6 and one from 2."
            )
        return generated.draw(lambda source: self._write(kinds, most, source), split, size, seed)

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Score 1.0 if the answer states the gold number, otherwise 0.0; see `whole_number`."""
        return whole_number(example, prediction, trace)

    def demonstrations(
        self, single: bool = False, reasoning: bool = False, size: int | None = None, calculator: bool = False
    ) -> dict[str, list[dspy.Example]]:
        """Return hand-written demonstrations for each predictor.

        Args:
            single: Whether they are for the single agent.
            reasoning: Whether the single agent writes its reasoning.
            size: Number of runs that they come from; by default, all.
            calculator: Whether the single agent writes an expression.
        """
        _check_form(single, reasoning, calculator)
        return as_demonstrations(
            step
            for run in self.shown[:size]
            for step in _steps(run.example, run.expression, single, reasoning, calculator)
        )

    def majority_baseline(self, examples: Sequence[dspy.Example]) -> float:
        """Return the share of the examples whose answer is the most frequent one, from 0 to 1."""
        return majority_baseline(examples)

    def gold_steps(
        self, example: dspy.Example, single: bool = False, reasoning: bool = False, calculator: bool = False
    ) -> list[GoldStep]:
        """Return the steps of a run in which every agent is right.

        Raises:
            DatasetError: `reasoning` or `calculator` is set for the team, or both are set, or a price or the legs of
                something are unknown.
        """
        _check_form(single, reasoning, calculator)
        expression = _plan(self._read(example.question))
        return list(_steps(example, expression, single, reasoning, calculator))

    def oracle(self, example: dspy.Example, step: AnyStep) -> bool:
        """Return whether the output of a step is right given its own inputs; a right expression has the gold value.

        No answer is right where the result is unknown.
        """
        if "expression" in (step.outputs or {}):
            return evaluate(output_of(step, "expression")) == example.answer
        right = str(step.inputs["result"]) if step.predictor == "reporter" else str(example.answer)
        value = parse(right)
        return value is not None and parse(output_of(step, "answer")) == value

    def _read(self, question: str) -> list[Order]:
        try:
            return self.story.read(question)
        except KeyError as error:
            raise DatasetError(f"The worth of {error} in {question!r} is unknown. Generate the examples.") from error

    def _write(self, kinds: int, most: int, source: random.Random) -> dspy.Example:
        orders = self.story.draw(kinds, most, source)
        key = key_of(" ".join([self.name, *sorted(map(str, orders))]))
        answer = str(sum(order.number * order.worth for order in orders))
        example = dspy.Example(question=self.story.write(orders), answer=answer, dspy_key=key)
        return example.with_inputs("question")


def _plan(orders: Sequence[Order]) -> str:
    return " + ".join(f"{order.number} * {order.worth}" for order in orders)


def _steps(
    example: dspy.Example, expression: str, single: bool, reasoning: bool, calculator: bool
) -> Iterator[GoldStep]:
    asked, answer = {"question": example.question}, {"answer": example.answer}
    if not single:
        yield GoldStep("planner", asked, {"expression": expression})
        yield GoldStep("reporter", {**asked, "result": example.answer}, answer)
    elif calculator:
        yield GoldStep("solver", asked, {"expression": expression})
    else:
        work = {"reasoning": f"{expression} = {example.answer}"} if reasoning else {}
        yield GoldStep("solver", asked, {**work, **answer})


def _check_form(single: bool, reasoning: bool, calculator: bool) -> None:
    check_form(single, reasoning)
    if calculator and (reasoning or not single):
        raise DatasetError("`calculator` is for the single agent without `reasoning`. The team always has one.")


legs = PlanTask(Legs(), LEGS_RUNS)
prices = PlanTask(Prices(), PRICES_RUNS)
