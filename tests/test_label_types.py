"""Labels that are of another type than the field that has to hold them."""

import datetime

import dspy
import pytest

from sirius_dspy import Curator
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.hint import HintAugmenter
from sirius_dspy.repair.label import LabelAugmenter
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply

pytestmark = pytest.mark.usefixtures("chat_adapter")


def repair(augmenter, label, answer="5", hinted="6", kind="str", metric=None):
    """Repair a run of an agent whose only output is a text, or of another kind."""

    def same(example, prediction, trace=None):
        return prediction.answer.strip() in (str(example.answer), "4")

    program = dspy.Predict(f"question -> answer: {kind}")
    program.set_lm(ScriptedLM(lambda prompt: chat_reply(answer=hinted if prompt.field("hint") else answer)))
    example = dspy.Example(question="2+2?", answer=label).with_inputs("question")
    rollouts = Rollouts(metric or same, run="r", iteration=1, lm_kwargs={"temperature": 1.0}, num_threads=1)
    failed = rollouts.run_one(program, Task(example))
    return program, augmenter.repair(failed, example, RepairContext(program, rollouts, 1.0, frozenset({"self"})))


@pytest.mark.parametrize("kind", ["str", "Optional[str]"])
@pytest.mark.parametrize(
    ("label", "text"), [(4, "4"), (4.0, "4"), (True, "True"), (datetime.date(2020, 1, 2), "2020-01-02")]
)
def test_a_label_that_is_no_text_is_written_as_one_and_becomes_a_row(kind, label, text):
    program, outcome = repair(LabelAugmenter(), label, kind=kind)
    assert outcome.repair.repaired
    (row,) = Curator().curate(program, outcome.trajectories, {"self": ["self"]}, threshold=1.0)["self"].rows
    assert f"\n{text}\n" in row.messages[-1]["content"]


def test_a_hint_speaks_of_a_number_as_an_lm_writes_it():
    _, outcome = repair(HintAugmenter(shares=(0, 0.5)), 4.0, hinted="4")
    (attempt,) = outcome.repair.attempts
    assert (attempt.feedback, attempt.verdict) == ("It begins with '4' and has 1 character.", "repaired")


class Opaque:
    """Objects of it are stored by their text alone."""


@pytest.mark.parametrize("label", [["4", "four"], Opaque()], ids=["accepted answers", "an object"])
@pytest.mark.parametrize("augmenter", [LabelAugmenter(), HintAugmenter()])
def test_what_cannot_be_an_answer_is_no_help(augmenter, label):
    _, outcome = repair(augmenter, label)
    assert outcome.repair.attempts == ()


@pytest.mark.parametrize(
    ("kind", "label", "wrong", "text"),
    [("str", "four \n", "5", "four"), ("str", "\tfour", "5", "four"), ("int", "4", "5", "4"), ("int", 4.0, "5", "4")],
)
def test_a_label_stands_in_the_row_as_an_lm_would_have_replied(kind, label, wrong, text):
    program, outcome = repair(LabelAugmenter(), label, kind=kind, answer=wrong, metric=differs)
    assert outcome.repair.repaired
    (row,) = Curator().curate(program, outcome.trajectories, {"self": ["self"]}, threshold=1.0)["self"].rows
    assert row.messages[-1]["content"].startswith(f"[[ ## answer ## ]]\n{text}\n")


@pytest.mark.parametrize(("kind", "label"), [("int", "four"), ("int", 4.5), ("Literal['5', '6']", "4")])
@pytest.mark.parametrize("augmenter", [LabelAugmenter(), HintAugmenter()])
def test_a_label_that_no_reply_can_have_is_no_help(augmenter, kind, label):
    _, outcome = repair(augmenter, label, kind=kind, metric=differs)
    assert outcome.repair.attempts == ()


def differs(example, prediction, trace=None):
    return str(prediction.answer) not in ("5", "")
