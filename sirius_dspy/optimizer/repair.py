"""Repair: let the augmenter work on the failed runs of an iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sirius_dspy.library.rows import Entry
from sirius_dspy.optimizer.collect import failed_runs, rollouts
from sirius_dspy.optimizer.credit import find_credits, gains_of
from sirius_dspy.optimizer.critic import teach_critic
from sirius_dspy.optimizer.repair_runs import Note, repair_runs
from sirius_dspy.optimizer.results import CriticResult
from sirius_dspy.optimizer.session import Session
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.solved import SolvedRuns
from sirius_dspy.trajectory import Trajectory


def repair(session: Session, iteration: int) -> CriticResult | None:
    """Repair one failed run of each example that no sample solved; what is done already is not done again.

    Returns:
        What the critic of the augmenter learned; `None` if it has none that learns, or nothing was learned.

    Raises:
        AugmenterError: The augmenter edited what is no part of the program.
        UnfinishedError: Some repairs did not end, because the LM or the network failed.
        TrainingError: The fine-tuning job of the critic failed.
        BudgetReached: There is no room for another repair.
    """
    augmenter = session.settings.augmenter
    if augmenter is None:
        return None
    failed, context = augmenter.choose(failed_runs(session, iteration)), _context(session, iteration)

    def repair_missing(augmenter: Augmenter, runs: Sequence[Trajectory]) -> None:
        done = {item.parent for item in session.library.repairs(run=session.run, iteration=iteration)}
        repair_runs(session, augmenter, [run for run in runs if run.id not in done], context)

    def repair_again(augmenter: Augmenter, runs: Sequence[Trajectory], note: Note) -> None:
        repair_runs(session, augmenter, runs, context, note)

    augmenter, learned = teach_critic(session, iteration, augmenter, failed, repair_missing, repair_again)
    repair_missing(augmenter, failed)
    return learned


def _context(session: Session, iteration: int) -> RepairContext:
    settings = session.settings
    return RepairContext(
        session.weights.program,
        rollouts(session, iteration),
        settings.threshold,
        session.plan.editable,
        session.weights.ownership.answered,
        _solved(session, iteration),
        _last_rungs(session, iteration),
        gains_of(find_credits(session, [iteration])) if settings.credit is not None and settings.credit.order else {},
    )


def _solved(session: Session, iteration: int) -> SolvedRuns:
    """Successful runs of this compile before the repairs of this iteration, the latest iterations first."""
    return SolvedRuns(
        lambda: (
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
