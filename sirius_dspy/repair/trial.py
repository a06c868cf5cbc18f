"""Tries an edit: what the guard lets pass is replayed, and a success has to be more than luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sirius_dspy.errors import ReplayDivergedError
from sirius_dspy.plain import to_plain
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.context import Tried
from sirius_dspy.repair.leak import Guard
from sirius_dspy.trajectory import Edit, Trajectory, Values, Verdict

Tries = tuple[int, int]
"""Numbers of a try, which name its sample."""

Fields = Mapping[str, Any]
"""Further fields of an `Attempt`."""


def try_outputs(case: Case, position: int, outputs: Values, guard: Guard, tries: Tries, fields: Fields) -> Tried:
    """Replace the outputs of a step by others as they are; see `replay_unless_leaked`."""
    fields = {"regenerated": outputs, "rephrased": outputs, **fields}
    if case.is_unchanged(position, outputs):
        return case.attempt(position, "unchanged", **fields), ()
    return replay_unless_leaked(case, position, outputs, guard, tries, fields)


def replay_unless_leaked(
    case: Case, position: int, outputs: Values, guard: Guard, tries: Tries, fields: Fields
) -> Tried:
    """Replace the outputs of a step if the guard lets them pass, and run the program on.

    Args:
        case: The failed run.
        position: Of the step.
        outputs: In its place.
        guard: Decides whether they give too much away.
        tries: Numbers of the try, which name its sample.
        fields: Further fields of the `Attempt`.
    """
    step, labels = case.failed.steps[position], to_plain(case.example.labels())
    if leak := guard.leak(outputs, step, labels, answers=bool(case.answer_fields(step, outputs))):
        return case.attempt(position, "leaked", **fields, detail=leak), ()
    key = "/".join(map(str, ["replay", position, *tries]))
    try:
        run = case.context.replay(case.failed, case.example, Edit(position, outputs), key)
    except ReplayDivergedError as error:
        return case.attempt(position, "diverged", **fields, detail=str(error)), ()
    verdict, runs = judge(case, run, key)
    return case.attempt(position, verdict, **fields, reward=run.reward, trajectory=runs[0].id), runs


def judge(case: Case, run: Trajectory, key: str) -> tuple[Verdict, tuple[Trajectory, ...]]:
    """Say whether a run repairs a failed one: it succeeded, and so does what follows its edit once more.

    What follows the edit may have been lucky, so it is sampled again without help, as samples after the first are,
    until one of the tries succeeds. Nothing has to be confirmed where nothing follows. That a step wrote what the label
    tells is no proof: many a sentence holds a short label.

    Args:
        case: The failed run.
        run: The run of the repair.
        key: Names its sample within the repair.

    Returns:
        The verdict with the runs to store: first this one, which counts as no repair if it is not confirmed, then those
        that were made here.

    Raises:
        UnfinishedError: An LM or the network failed.
        RolloutError: An LM refused for lack of credentials, credit or configuration.
    """
    context = case.context
    if not run.succeeded(context.threshold):
        return "failed", (run,)
    if not context.confirmations or len(run.taught_steps) == 1:
        return "repaired", (run,)
    made: list[Trajectory] = []
    for number in range(context.confirmations):
        try:
            made.append(context.run_on(case.failed, case.example, run, f"{key}/confirmation/{number}"))
        except ReplayDivergedError:
            continue
        if made[-1].succeeded(context.threshold):
            return "repaired", (run, *made)
    return "unconfirmed", (replace(run, origin="confirmation"), *made)
