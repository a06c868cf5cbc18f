"""Repair: let the augmenter work on the failed runs of an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import dspy

from sirius_dspy.errors import AugmenterError
from sirius_dspy.library.rows import Entry
from sirius_dspy.optimizer.collect import failed_runs, rollouts
from sirius_dspy.optimizer.credit import find_credits, gains_of
from sirius_dspy.optimizer.session import Session
from sirius_dspy.repair.augmenters import RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.solved import SolvedRuns
from sirius_dspy.running.attempts import Broken, attempt_all
from sirius_dspy.running.unfinished import Unfinished, report_unfinished
from sirius_dspy.tracking.events import Repaired, StageStarted
from sirius_dspy.trajectory import Repair, Trajectory, Usage


def repair(session: Session, iteration: int) -> None:
    """Repair one failed run of each example that no sample solved; what is done already is not done again.

    Raises:
        AugmenterError: The augmenter edited what is no part of the program.
        UnfinishedError: Some repairs did not end, because the LM or the network failed.
        BudgetReached: There is no room for another repair.
    """
    settings, augmenter = session.settings, session.settings.augmenter
    if augmenter is None:
        return
    done = {item.parent for item in session.library.repairs(run=session.run, iteration=iteration)}
    failed = [run for run in augmenter.choose(failed_runs(session, iteration)) if run.id not in done]
    context = RepairContext(
        session.weights.program,
        rollouts(session, iteration),
        settings.threshold,
        session.plan.editable,
        session.weights.answered,
        _solved(session, iteration),
        _last_rungs(session, iteration),
        gains_of(find_credits(session, [iteration])) if settings.credit is not None and settings.credit.order else {},
    )
    session.tracker.on_stage_started(StageStarted(iteration, "repair", len(failed)))

    def work(run: Trajectory) -> RepairOutcome:
        outcome = augmenter.repair(run, session.plan.unique_trainset[run.example_key], context)
        _check_edits(session, outcome.repair)
        return outcome

    unfinished: list[tuple[dspy.Example, Unfinished]] = []
    num_done = 0
    first_calls = augmenter.num_calls(session.num_predictors)[1]
    outcomes = attempt_all(
        work,
        failed,
        settings.num_threads,
        patience=settings.patience,
        health=session.health,
        limit=session.account.allowance(first_calls),
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
            reruns = sum((rerun.usage for rerun in outcome.trajectories), Usage())
            session.account.note_item(outcome.repair.usage + reruns)
            session.tracker.on_repaired(Repaired(iteration, outcome.repair, outcome.trajectories, run))
    report_unfinished(unfinished, settings.patience.max_unfinished)
    if num_done < len(failed):
        session.account.end_if_full(first_calls)


def _solved(session: Session, iteration: int) -> SolvedRuns:
    """Successful runs of this compile before the repairs of this iteration, the latest iterations first."""
    return SolvedRuns(
        (run, session.plan.unique_trainset[run.example_key])
        for number in range(iteration, 0, -1)
        for run in session.library.trajectories(
            run=session.run,
            iteration=number,
            origin="rollout" if number == iteration else ("rollout", "repair"),
            min_reward=session.settings.threshold,
        )
        if run.example_key in session.plan.unique_trainset
    )


def _last_rungs(session: Session, iteration: int) -> dict[str, str]:
    """Example key to the kind of help with which a run of it was repaired last."""
    last: dict[str, str] = {}
    for number in range(1, iteration):
        keys = {run.id: run.example_key for run in _repaired(session, number)}
        for item in session.library.repairs(run=session.run, iteration=number):
            last |= {keys[attempt.trajectory]: attempt.rung for attempt in item.attempts if attempt.trajectory in keys}
    return last


def _repaired(session: Session, iteration: int) -> Iterator[Entry]:
    threshold = session.settings.threshold
    return session.library.entries(run=session.run, iteration=iteration, origin="repair", min_reward=threshold)


def _check_edits(session: Session, repair: Repair) -> None:
    """Refuse an edit of what is no part of the program, before the repair is stored.

    Raises:
        AugmenterError: The message names the predictor.
    """
    for attempt in repair.attempts:
        if attempt.predictor not in session.weights.predictors:
            raise AugmenterError(
                f"The augmenter {type(session.settings.augmenter).__name__} edited a step of {attempt.predictor!r}, "
                f"which is no predictor of the program. Let it edit steps of {sorted(session.plan.editable)} only, the "
                "predictors in `context.editable`."
            )
