"""Repair some failed runs of an iteration: all at once, each stored as soon as it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import dspy

from sirius_dspy.errors import AugmenterError
from sirius_dspy.optimizer.session import Session
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.attempts import Broken, attempt_all
from sirius_dspy.running.unfinished import Unfinished, report_unfinished
from sirius_dspy.tracking.events import Repaired, StageStarted
from sirius_dspy.trajectory import Repair, Trajectory, Usage

Note = Callable[[Repair], None]
"""Called with each repair after it was stored."""


def repair_runs(
    session: Session,
    augmenter: Augmenter,
    failed: Sequence[Trajectory],
    context: RepairContext,
    note: Note = lambda repair: None,
) -> None:
    """Let the augmenter work on failed runs of one iteration.

    Raises:
        AugmenterError: The augmenter edited what is no part of the program.
        UnfinishedError: Some repairs did not end, because the LM or the network failed.
        BudgetReached: There is no room for another repair.
    """
    settings, iteration = session.settings, context.rollouts.iteration
    session.tracker.on_stage_started(StageStarted(iteration, "repair", len(failed)))

    with session.workers.open(_RepairRun(augmenter, context), settings.patience) as repair_run:

        def work(run: Trajectory) -> RepairOutcome:
            outcome = repair_run((run, session.plan.unique_trainset[run.example_key]))
            _check_edits(session, augmenter, outcome.repair)
            return outcome

        num_done = _keep_repairs(session, augmenter, failed, work, repair_run.leave, note)
    if num_done < len(failed):
        session.account.end_if_full(augmenter.num_calls(session.num_predictors)[1])


@dataclass(frozen=True)
class _RepairRun:
    """Repairs a failed run; this is what workers get."""

    augmenter: Augmenter
    context: RepairContext

    def __call__(self, item: tuple[Trajectory, dspy.Example]) -> RepairOutcome:
        return self.augmenter.repair(*item, self.context)


def _keep_repairs(
    session: Session,
    augmenter: Augmenter,
    failed: Sequence[Trajectory],
    work: Callable[[Trajectory], RepairOutcome],
    on_stop: Callable[[], None],
    note: Note,
) -> int:
    """Make repairs, store each as soon as it ends, and return how many ended."""
    settings = session.settings
    unfinished: list[tuple[dspy.Example, Unfinished]] = []
    num_done = 0
    outcomes = attempt_all(
        work,
        failed,
        settings.num_threads,
        patience=settings.patience,
        health=session.health,
        limit=session.account.allowance(augmenter.num_calls(session.num_predictors)[1]),
        held=session.hold.is_held,
        on_stop=on_stop,
    )
    with closing(outcomes):  # an interrupt keeps this frame alive, but must not leave repairs under way
        for run, outcome in outcomes:
            num_done += 1
            if isinstance(outcome, Broken):
                unfinished.append(
                    (session.plan.unique_trainset[run.example_key], Unfinished.of(run.repair_lineage, outcome.failure))
                )
                session.library.add_unfinished(unfinished[-1][1])
                continue
            session.library.add_repair(outcome.repair, outcome.trajectories)
            note(outcome.repair)
            reruns = sum((rerun.usage for rerun in outcome.trajectories), Usage())
            session.account.note_item(outcome.repair.usage + reruns)
            session.tracker.on_repaired(Repaired(run.iteration, outcome.repair, outcome.trajectories, run))
    report_unfinished(unfinished, settings.patience.max_unfinished)
    return num_done


def _check_edits(session: Session, augmenter: Augmenter, repair: Repair) -> None:
    """Refuse an edit of what is no part of the program, before the repair is stored.

    Raises:
        AugmenterError: The message names the predictor.
    """
    for attempt in repair.attempts:
        if attempt.predictor not in session.weights.predictors:
            raise AugmenterError(
                f"The augmenter {type(augmenter).__name__} edited a step of {attempt.predictor!r}, "
                f"which is no predictor of the program. Let it edit steps of {sorted(session.plan.editable)} only, the "
                "predictors in `context.editable`."
            )
