"""Several edits of one run: what stands between them is taught only if it is right, and luck ends no help."""

from itertools import count

import dspy
import pytest

from sirius_dspy import HintAugmenter, LabelAugmenter, LadderAugmenter
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests.team import exact_match

pytestmark = pytest.mark.usefixtures("chat_adapter")

EXAMPLE = dspy.Example(context="Ann likes tea. Omar likes milk.", answer="Omar").with_inputs("context")


class Notes(dspy.Module):
    def __init__(self):
        super().__init__()
        self.finder = dspy.Predict("context -> fact")
        self.analyst = dspy.Predict("fact -> notes")
        self.solver = dspy.Predict("fact, notes -> answer")

    def forward(self, context):
        fact = self.finder(context=context).fact
        return self.solver(fact=fact, notes=self.analyst(fact=fact).notes)


def repair(notes, rung, answers=()):
    """Repair a run whose finder needs help, and whose solver answers as given, and then wrong without help."""
    number = count()

    def play(prompt):
        is_helped = bool(prompt.field("hint"))
        if prompt.asks_for("answer"):
            lucky = dict(enumerate(answers)).get(next(number), "Ann")
            return chat_reply(answer="Omar" if is_helped else lucky)
        if prompt.asks_for("notes"):
            return chat_reply(notes=notes(prompt.field("fact")))
        return chat_reply(fact="Omar likes milk." if is_helped else "Ann likes tea.")

    program = Notes()
    program.set_lm(ScriptedLM(play))
    rollouts = Rollouts(exact_match, run="r", iteration=1, lm_kwargs={"temperature": 1.0}, num_threads=1)
    failed = rollouts.run_one(program, Task(EXAMPLE))
    context = RepairContext(program, rollouts, 1.0, frozenset({"finder", "analyst", "solver"}))
    return LadderAugmenter([rung]).repair(failed, EXAMPLE, context)


def verdicts(outcome):
    return [(attempt.predictor, attempt.verdict) for attempt in outcome.repair.attempts]


def taught(outcome):
    return [step.predictor for step in outcome.trajectories[-1].taught_steps]


def test_between_edits_a_step_is_taught_if_it_wrote_what_it_should():
    outcome = repair(lambda fact: "nonsense", HintAugmenter(shares=[0.5]))
    assert verdicts(outcome)[::2] == [("finder", "failed"), ("solver", "repaired")]
    assert taught(outcome) == ["finder", "solver"]

    outcome = repair(lambda fact: fact, HintAugmenter(shares=[0.5]))
    assert verdicts(outcome) == [("finder", "failed"), ("solver", "repaired")]
    assert taught(outcome) == ["finder", "analyst", "solver"]


def test_after_a_success_by_luck_the_next_step_is_helped_as_after_a_failure():
    outcome = repair(lambda fact: "nonsense", HintAugmenter(shares=[0.5]), answers=["Ann", "Omar"])
    assert verdicts(outcome)[::2] == [("finder", "unconfirmed"), ("solver", "repaired")]
    repaired = outcome.trajectories[-1]
    assert (repaired.edited, repaired.parent) == (0, outcome.repair.parent)
    assert repaired.steps[-1].outputs == {"answer": "Omar"}


class Relay(dspy.Module):
    def __init__(self):
        super().__init__()
        self.reader = dspy.Predict("part -> event")
        self.reporter = dspy.Predict("holder, event -> answer")

    def forward(self, start, parts):
        holder = start
        for part in parts:
            holder = self.reporter(holder=holder, event=self.reader(part=part).event).answer
        return dspy.Prediction(answer=holder)


def test_a_wrong_text_between_two_labels_is_not_taught():
    example = dspy.Example(start="Ann", parts=["Ann gives to Omar", "It rains"], answer="Omar")
    example = example.with_inputs("start", "parts")

    def play(prompt):
        if prompt.asks_for("answer"):
            return chat_reply(answer="Zoe")
        return chat_reply(event="Zoe sings" if prompt.field("part") == "It rains" else prompt.field("part"))

    program = Relay()
    program.set_lm(ScriptedLM(play))
    rollouts = Rollouts(exact_match, run="r", iteration=1, num_threads=1)
    failed = rollouts.run_one(program, Task(example))
    context = RepairContext(program, rollouts, 1.0, frozenset({"reader", "reporter"}), confirmations=2)
    outcome = LabelAugmenter().repair(failed, example, context)
    assert [(attempt.position, attempt.verdict) for attempt in outcome.repair.attempts] == [
        (1, "failed"),
        (3, "repaired"),
    ]
    repaired = outcome.trajectories[-1]
    assert [step.outputs for step in repaired.taught_steps] == [{"answer": "Omar"}] * 2
