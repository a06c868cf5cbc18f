"""The training rows of the critic: its advice that led to a repair, under the prompt with which it was asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import dspy

from sirius_dspy.optimizer.session import Session
from sirius_dspy.repair.critic import critique_inputs
from sirius_dspy.repair.critic_training import CRITIC, LearningCritic
from sirius_dspy.repair.prompts import Critique
from sirius_dspy.training.caps import draw_evenly
from sirius_dspy.training.curate import Row, TrainingSet
from sirius_dspy.training.prompts import PromptProbe
from sirius_dspy.trajectory import Attempt, Repair

_PREDICTOR = "self"
"""DSPy's name of a predictor that is a whole program."""


def critic_rows(session: Session, iteration: int, critic: LearningCritic) -> list[Row]:
    """Write a row for each advice that led to a repair before an iteration, without demonstrations, sorted by id."""
    predictor = dspy.Predict(Critique)
    predictor.lm = critic.lm
    probe = PromptProbe(predictor)
    rows: dict[str, Row] = {}
    for repair, attempt in _good_advice(session, iteration, critic.rung):
        row = _row(session, probe, repair, attempt)
        if row is not None:
            rows[row.id] = min(row, rows.get(row.id, row), key=lambda row: row.trajectory)
    return [rows[id] for id in sorted(rows)]


def critic_set(rows: Sequence[Row], max_rows: int | None, seed: int) -> TrainingSet:
    """Shuffle the rows, and draw some of them evenly over the examples if there are too many."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    kept = draw_evenly(shuffled, max_rows, lambda row: row.example_key)
    left_out = len(rows) - len(kept)
    return TrainingSet(CRITIC, tuple(kept), {"over the cap": left_out} if left_out else {})


def _good_advice(session: Session, iteration: int, rung: str) -> Iterator[tuple[Repair, Attempt]]:
    for number in range(1, iteration):
        for repair in session.library.repairs(run=session.run, iteration=number):
            for attempt in repair.attempts:
                if attempt.verdict == "repaired" and attempt.feedback and attempt.rung == rung:
                    yield repair, attempt


def _row(session: Session, probe: PromptProbe, repair: Repair, attempt: Attempt) -> Row | None:
    """Return the row of one advice; `None` if it cannot be written, or its example is no longer in the trainset."""
    failed = session.library.get(repair.parent)
    example = session.plan.unique_trainset.get(failed.example_key)
    if example is None:
        return None
    inputs = critique_inputs(failed, example, attempt.position)
    prompt, _ = probe.prompt(_PREDICTOR, inputs)
    reply, _ = probe.reply(_PREDICTOR, inputs, {"feedback": attempt.feedback})
    if prompt is None or reply is None:
        return None
    messages = (*prompt.messages, reply)
    return Row(messages, attempt.predictor, attempt.trajectory or "", failed.example_key)
