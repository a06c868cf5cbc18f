"""What an earlier step should have handed on: the steps after it that lose it are helped, too."""

import dspy
import pytest

from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.hint import HintAugmenter
from sirius_dspy.repair.label import LabelAugmenter
from sirius_dspy.repair.solved import SolvedRuns
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests.team import exact_match

pytestmark = pytest.mark.usefixtures("chat_adapter")


class Notes(dspy.Module):
    def __init__(self):
        super().__init__()
        self.worker = dspy.Predict("note, part -> new_note")
        self.reporter = dspy.Predict("note -> answer")

    def forward(self, start, parts):
        note = start
        for part in parts:
            note = self.worker(note=note, part=part).new_note
        return self.reporter(note=note)


def text(*parts, answer):
    return dspy.Example(start="Ann", parts=list(parts), answer=answer).with_inputs("start", "parts")


def work(prompt):
    """Notes who enters, and keeps the note otherwise; but Eve confuses it."""
    if prompt.asks_for("answer"):
        return chat_reply(answer=prompt.field("note"))
    part = prompt.field("part") or ""
    if "Eve" in part:
        return chat_reply(new_note="Eve")
    return chat_reply(new_note=part.split()[0] if "enters" in part else prompt.field("note"))


def run(example):
    program = Notes()
    program.set_lm(ScriptedLM(work))
    rollouts = Rollouts(exact_match, run="r", iteration=1, lm_kwargs={"temperature": 1.0}, num_threads=1)
    return program, rollouts, rollouts.run_one(program, Task(example))


ENTERING = [text("Bo enters", "Cy leaves", "Di leaves", answer="Bo"), text("Di enters", "It rains", answer="Di")]
PASSING = [
    text("It rains", "Bo enters", answer="Bo"),
    text("It snows", "Cy enters", answer="Cy"),
    text("It rains", "It snows", answer="Ann"),
]


def repair(example, solved=ENTERING, augmenter=None):
    program, rollouts, failed = run(example)
    assert not failed.succeeded(1.0)
    context = RepairContext(
        program,
        rollouts,
        1.0,
        frozenset({"worker", "reporter"}),
        solved=SolvedRuns(lambda: [(run(other)[2], other) for other in solved]),
    )
    return failed, (augmenter or LabelAugmenter()).repair(failed, example, context)


def test_a_step_that_loses_what_it_reads_gets_the_label_after_the_step_that_finds_it():
    failed, outcome = repair(text("Eve leaves, Cy enters", "Eve sleeps", answer="Cy"))
    assert [(attempt.position, attempt.verdict) for attempt in outcome.repair.attempts] == [
        (0, "failed"),
        (1, "repaired"),
    ]
    repaired = outcome.trajectories[-1]
    assert (repaired.parent, repaired.edited) == (failed.id, 0)
    assert [list(step.outputs.values()) for step in repaired.taught_steps] == [["Cy"]] * 3


def test_a_step_that_keeps_what_it_reads_is_left_alone():
    _, outcome = repair(text("Eve leaves, Cy enters", "It rains", answer="Cy"))
    assert [(attempt.position, attempt.verdict) for attempt in outcome.repair.attempts] == [(0, "repaired")]


def test_a_step_that_usually_hands_on_what_it_reads_gets_that_and_then_the_next_one_the_label():
    failed, outcome = repair(text("Eve leaves", "Eve sleeps", answer="Ann"), PASSING, HintAugmenter(shares=[1]))
    assert [(attempt.position, attempt.verdict) for attempt in outcome.repair.attempts] == [
        (0, "failed"),
        (1, "repaired"),
    ]
    repaired = outcome.trajectories[-1]
    assert (repaired.parent, repaired.edited) == (failed.id, 0)
    assert [list(step.outputs.values()) for step in repaired.taught_steps] == [["Ann"]] * 3


def test_a_sentence_from_where_the_agent_does_not_copy_takes_no_place():
    _, outcome = repair(text("Eve leaves, Cy enters", "Eve sleeps", answer="Cy"), PASSING, HintAugmenter(shares=[1]))
    assert outcome.repair.attempts == ()
