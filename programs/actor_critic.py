"""Actor, judge, critic: the actor answers, the judge says right or wrong, on wrong the critic advises a second answer.

One pass, and nobody sees the gold answer: the judge learns from verdicts on cases whose outcome is known, the critic
from advice that turned a wrong answer right. The second answer has inputs of its own, so it has a predictor of its own,
`reviser`, with a reward of its own: one reward for both answers of a run would teach the first one, which was wrong.

    task = actor_critic.simple_equations
    SiriuS(task.metric, augmenter=None).compile(task.build(), trainset=task.examples("train"), ...)

A judge of a mostly wrong actor needs `curator=VerdictCurator()`, or it learns to say "wrong" always.

Repairs (`augmenter`) would show a critic the gold answer, which this setting of the paper does not.

References:
    SiriuS (arXiv:2502.04780), section 3.2. There, a verdict that does not parse counts as "wrong"; here it is counted
    apart, and the first answer stands. The critic is paid only where a wrong answer became right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import dspy
from dspy.signatures import make_signature
from dspy.utils.exceptions import AdapterParseError

from metrics.yes_no_maybe import yes_no_maybe
from programs import pubmedqa as pubmedqa_program
from programs import reasoning
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.running.metric import Metric
from sirius_dspy.stats import Interval, wilson_interval
from sirius_dspy.training.balanced import BalancedCurator
from sirius_dspy.trajectory import Trajectory

__all__ = [
    "ActorCritic",
    "ActorCriticMetric",
    "Report",
    "Task",
    "VerdictCurator",
    "parse_verdict",
    "pubmedqa",
    "report",
    "simple_equations",
]

_JUDGE = "Is the proposed answer right? Reply with one word: right or wrong."
_CRITIC = "The proposed answer is believed to be wrong. Say in one sentence what to look at again."
_REVISER = "An earlier answer is believed to be wrong: follow the feedback."

_RIGHT, _WRONG = frozenset({"right", "correct", "true"}), frozenset({"wrong", "incorrect", "false", "not right"})


class ActorCritic(dspy.Module):
    """Predictors `actor`, `judge`, `critic` and `reviser`.

    Args:
        inputs: Fields of the task as in a DSPy signature, e.g. `context: str, question: str`.
        instructions: What the actor is to do; its output is the text `answer`.
        self_correct: Without the judge: advice and a second answer for every first one, a baseline of the paper.
    """

    def __init__(self, inputs: str, instructions: str, self_correct: bool = False) -> None:
        super().__init__()
        self.self_correct = self_correct
        self.actor = dspy.Predict(make_signature(f"{inputs} -> answer: str", instructions))
        if not self_correct:
            self.judge = dspy.Predict(make_signature(f"{inputs}, proposed_answer: str -> verdict: str", _JUDGE))
        self.critic = dspy.Predict(make_signature(f"{inputs}, proposed_answer: str -> feedback: str", _CRITIC))
        revision = f"{inputs}, earlier_answer: str, feedback: str -> answer: str"
        self.reviser = dspy.Predict(make_signature(revision, f"{instructions} {_REVISER}"))

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer once or twice.

        Returns:
            `answer`, the final one; `first_answer`; `verdict`, true for right, `None` where it did not parse or there
            is no judge; and `feedback`, `None` where nobody asked for it. Advice or a second answer that does not
            parse leaves the first answer standing.
        """
        first = self.actor(**inputs).answer
        verdict = feedback = second = None
        if not self.self_correct:
            verdict = parse_verdict(_output(self.judge, "verdict", **inputs, proposed_answer=first))
        if self.self_correct or verdict is False:
            feedback = _output(self.critic, "feedback", **inputs, proposed_answer=first)
        if feedback is not None:
            second = _output(self.reviser, "answer", **inputs, earlier_answer=first, feedback=feedback)
        return _prediction(first, verdict, feedback, second)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        first = (await self.actor.acall(**inputs)).answer
        verdict = feedback = second = None
        if not self.self_correct:
            verdict = parse_verdict(await _aoutput(self.judge, "verdict", **inputs, proposed_answer=first))
        if self.self_correct or verdict is False:
            feedback = await _aoutput(self.critic, "feedback", **inputs, proposed_answer=first)
        if feedback is not None:
            second = await _aoutput(self.reviser, "answer", **inputs, earlier_answer=first, feedback=feedback)
        return _prediction(first, verdict, feedback, second)


def parse_verdict(text: str | None) -> bool | None:
    """Read a verdict: its first clause must be one of a few words, after `verdict:` if the reply has that.

    Returns:
        True for right, false for wrong, `None` for anything else.

    Examples:
        >>> parse_verdict("**Wrong.** It is 9."), parse_verdict("Verdict: correct"), parse_verdict("right or wrong")
        (False, True, None)
    """
    stated = re.split(r"verdict[\s*_]*:", text or "", flags=re.IGNORECASE)[-1].strip(" \t\r\n*_\"'`")
    clause = re.split(r"[.,;:!\n]", stated, maxsplit=1)[0].strip(" *_\"'`").lower()
    return True if clause in _RIGHT else False if clause in _WRONG else None


def _output(predictor: dspy.Predict, name: str, **inputs: Any) -> str | None:
    """One output of a call; `None` if the reply does not parse."""
    try:
        return str(predictor(**inputs)[name])
    except AdapterParseError:
        return None


async def _aoutput(predictor: dspy.Predict, name: str, **inputs: Any) -> str | None:
    """Like `_output`, without blocking the event loop."""
    try:
        return str((await predictor.acall(**inputs))[name])
    except AdapterParseError:
        return None


def _prediction(first: str, verdict: bool | None, feedback: str | None, second: str | None) -> dspy.Prediction:
    answer = first if second is None else second
    return dspy.Prediction(answer=answer, first_answer=first, verdict=verdict, feedback=feedback)


@dataclass(frozen=True)
class ActorCriticMetric:
    """Scores the final answer, and rewards each agent for its own part.

    Attributes:
        answer_metric: Scores an `answer`, 1.0 if it is right.
    """

    answer_metric: Metric

    def __call__(self, example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:
        """The score, and `rewards` by predictor; a prediction of the actor alone has no rewards."""
        final = self._is_right(example, prediction.answer)
        if "first_answer" not in prediction:
            return dspy.Prediction(score=float(final), rewards={})
        first = self._is_right(example, prediction.first_answer)
        rewards = {
            "actor": first,
            "judge": prediction.verdict is not None and prediction.verdict == first,
            "critic": final and not first,
            "reviser": final,
        }
        return dspy.Prediction(score=float(final), rewards={agent: float(paid) for agent, paid in rewards.items()})

    def _is_right(self, example: dspy.Example, answer: str) -> bool:
        return self.answer_metric(example, dspy.Prediction(answer=answer)) >= 1.0


@dataclass(frozen=True)
class Report:
    """What the agents did on a set of examples; counts of runs.

    `x_judged_y`: the first answer was x, the judge said y.
    """

    total: int = 0
    right_judged_right: int = 0
    right_judged_wrong: int = 0
    """The failure that the paper names: a right answer goes to the critic."""
    wrong_judged_right: int = 0
    wrong_judged_wrong: int = 0
    right_unparsed: int = 0
    """A verdict on a right first answer that did not parse; never filed as wrong."""
    wrong_unparsed: int = 0
    failed: int = 0
    """Runs without any first answer, e.g. because it did not parse."""
    wrong_to_right: int = 0
    right_to_wrong: int = 0
    overall_right: int = 0
    """Right after the second answer, where there was one."""

    @property
    def tp_accuracy(self) -> float:
        """Actor right and judge says right, over all runs."""
        return self.right_judged_right / self.total

    @property
    def overall_accuracy(self) -> float:
        """Right in the end, over all runs."""
        return self.overall_right / self.total

    @property
    def judge_rows(self) -> dict[str, int]:
        """The judge's right verdicts by class, which are its training rows: of good actors mostly `right`."""
        return {"right": self.right_judged_right, "wrong": self.wrong_judged_wrong}

    def interval(self, name: str) -> Interval:
        """Wilson's 95 % interval of a count as a share of all runs, e.g. of `right_judged_right` for TP accuracy."""
        return wilson_interval(asdict(self)[name], self.total)


@dataclass(frozen=True)
class VerdictCurator(BalancedCurator):
    """A `Curator` that gives the judge equally many rows of either verdict.

    An actor that is mostly wrong, or mostly right, leaves verdicts of mostly one kind, and from these a judge learns to
    say that one always. Where all are of one kind, the judge gets no rows and stays as it is.
    """

    label: str = "verdict"

    def value_of(self, text: str) -> bool | None:
        """See `BalancedCurator.value_of`."""
        return parse_verdict(text)


def report(trajectories: Iterable[Trajectory]) -> Report:
    """Count what scored runs of an `ActorCritic` did, e.g. `evaluate(program, test, task.metric).trajectories`."""
    counts: Counter[str] = Counter()
    for trajectory in trajectories:
        counts["total"] += 1
        counts.update(_events(trajectory))
    return Report(**counts)


def _events(trajectory: Trajectory) -> list[str]:
    if trajectory.failure is not None:
        return ["failed"]
    first, final = trajectory.rewards["actor"] >= 1.0, trajectory.reward >= 1.0
    was = "right" if first else "wrong"
    verdict = trajectory.prediction["verdict"]
    names = [f"{was}_unparsed" if verdict is None else f"{was}_judged_{'right' if verdict else 'wrong'}"]
    if first != final:
        names.append("right_to_wrong" if first else "wrong_to_right")
    return [*names, *(["overall_right"] if final else [])]


def _demonstrations() -> dict[str, list[dspy.Example]]:
    """Four for each predictor, with numbers that the generator of the equations does not use."""
    cases = [
        ("Solve for z: z + 21 = 25", "4", "5", "25 minus 21 is not 5; subtract again."),
        ("Find the value of y in the equation: y - 30 = 6", "36", "24", "Add 30 to the other side, do not subtract."),
        ("Solve for w: 40 - w = 33", "7", "73", "Find what is taken from 40 to leave 33."),
        ("Determine the value of v that satisfies: v + 50 = 61", "11", "10", "Count again from 50 up to 61."),
    ]
    demos: dict[str, list[dspy.Example]] = {"actor": [], "judge": [], "critic": [], "reviser": []}
    for number, (question, answer, mistake, feedback) in enumerate(cases):
        asked = dspy.Example(question=question)
        proposed, verdict = (answer, "right") if number % 2 else (mistake, "wrong")
        demos["actor"].append(asked.copy(answer=answer).with_inputs("question"))
        judged = asked.copy(proposed_answer=proposed, verdict=verdict)
        demos["judge"].append(judged.with_inputs("question", "proposed_answer"))
        advised = asked.copy(proposed_answer=mistake, feedback=feedback)
        demos["critic"].append(advised.with_inputs("question", "proposed_answer"))
        revised = asked.copy(earlier_answer=mistake, feedback=feedback, answer=answer)
        demos["reviser"].append(revised.with_inputs("question", "earlier_answer", "feedback"))
    return demos


@dataclass(frozen=True)
class Task:
    """What the agents work on.

    Attributes:
        name: Of the task.
        inputs: Fields as in a DSPy signature.
        instructions: Of the actor.
        answer_metric: Scores one answer.
        examples: Loads a split; see the function behind it.
        demos: Demonstrations by predictor name, whose questions are in no split.
    """

    name: str
    inputs: str
    instructions: str
    answer_metric: Metric
    examples: Callable[..., list[dspy.Example]]
    demos: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)

    def build(self, single: bool = False, self_correct: bool = False) -> dspy.Module:
        """The untrained program, without LMs.

        Args:
            single: The actor alone.
            self_correct: See `ActorCritic`.
        """
        if single:
            return dspy.Predict(make_signature(f"{self.inputs} -> answer: str", self.instructions))
        return ActorCritic(self.inputs, self.instructions, self_correct)

    @property
    def metric(self) -> ActorCriticMetric:
        """Of the whole program, with a reward for each agent; of the actor alone, too."""
        return ActorCriticMetric(self.answer_metric)

    def demonstrations(self, single: bool = False) -> dict[str, list[dspy.Example]]:
        """For cold starts and the few-shot baseline, by predictor name; training prompts never have any."""
        if single:
            return {"self": list(self.demos["actor"])} if self.demos else {}
        return {name: list(demos) for name, demos in self.demos.items()}

    def majority_baseline(self, examples: Sequence[dspy.Example]) -> float:
        """Share of the examples that the most frequent answer gets right."""
        return majority_baseline(examples)


pubmedqa = Task(
    "pubmedqa",
    "context: str, question: str",
    "Answer the question from the context with one word: yes, no or maybe.",
    yes_no_maybe,
    pubmedqa_program.examples,
)
"""The paper's task for these agents."""

simple_equations = Task(
    "simple_equations",
    "question: str",
    "Solve the equation. Reply with a number.",
    reasoning.simple_equations.metric,
    reasoning.simple_equations.examples,
    _demonstrations(),
)
"""Small enough for a small model; a judge can check an answer by putting it in."""
