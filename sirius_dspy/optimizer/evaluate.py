"""Evaluate: score the program on the valset, and let the gate decide which new weights are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count
from typing import NamedTuple

from sirius_dspy import checks
from sirius_dspy.optimizer.budget import BudgetReached
from sirius_dspy.optimizer.gate import Trial
from sirius_dspy.optimizer.session import Session
from sirius_dspy.optimizer.weights import LMs
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.running.standing import Standing, floor_of
from sirius_dspy.tracking.events import Evaluated, StageStarted


def evaluate(session: Session, iteration: int, lms: LMs, label: str, *, candidate: int) -> Standing:
    """Score the program on the valset, its LMs used as they are; these runs are kept, and never trained on.

    Args:
        session: The compile.
        iteration: 0 is the student as it came.
        lms: Agent name to LM.
        label: For trackers.
        candidate: Number of the evaluation within the iteration, which tells its runs from those of the others.

    Raises:
        UnfinishedError: Some runs did not end; a mean over the others would be that of another valset.
        BudgetReached: There is no room for another run.
    """
    session.weights.install(lms)
    rollouts = Rollouts(
        session.settings.metric,
        iteration=iteration,
        origin="validation",
        first_kwargs={},
        **session.rollout_options("validation"),
    )
    runs = {
        run.example_key: run
        for run in session.library.trajectories(
            run=session.run, iteration=iteration, origin="validation", sample=candidate
        )
        if session.weights.could_have_made(run, lms)
    }
    for run in runs.values():
        session.weights.note_chosen(run)
    session.bugs["validation"].is_resumed |= bool(runs)
    tasks = [Task(item, candidate) for key, item in session.plan.unique_valset.items() if key not in runs]
    session.tracker.on_stage_started(StageStarted(iteration, "evaluate", len(tasks)))
    for batch in rollouts.run_batches(session.weights.program, tasks):
        session.keep(iteration, batch)
        runs |= {trajectory.example_key: trajectory for _, trajectory in batch}
    if len(runs) < len(session.plan.unique_valset):
        session.account.check()  # which says what is used up, if anything is
        raise BudgetReached("the valset could not be evaluated")
    standing = Standing.of([runs[key] for key in session.plan.valset_keys])
    score = standing.mean(floor_of([standing, *_earlier(session)]))
    session.tracker.on_evaluated(Evaluated(iteration, score, len(session.plan.valset), label))
    return standing


class Choice(NamedTuple):
    """What the gate chose."""

    kept: LMs
    standing: Standing
    """How good the program is with these."""
    trials: Sequence[tuple[tuple[str, ...], Standing]]
    """What was evaluated, in that order: agents with their new weights, and how good the program was."""


def choose_weights(session: Session, iteration: int, new: LMs, earlier: Sequence[Standing] = ()) -> Choice:
    """Let the gate choose among new weights.

    Args:
        session: The compile.
        iteration: 0 is the warm start.
        new: Agent name to its new LM.
        earlier: How good the program was before; by default after each iteration so far.

    Raises:
        SettingsError: The gate names something other than agents with new weights.
        UnfinishedError: As for `evaluate`.
        BudgetReached: As for `evaluate`.
    """
    current = session.weights.current
    numbers = count(0 if iteration else 1)  # iteration 0 has evaluated the student already

    def score(agents: Collection[str]) -> Standing:
        label = "program" if len(agents) == len(new) else ", ".join(agent for agent in new if agent in agents)
        lms = current | {agent: new[agent] for agent in agents}
        return evaluate(session, iteration, lms, label, candidate=next(numbers))

    earlier = tuple(earlier) or _earlier(session)
    trial = Trial(tuple(new), earlier[-1], earlier, score)
    gate = session.settings.gate
    kept = trial.agents if gate is None else gate.choose(trial)
    checks.check(type(gate).__name__, {"choose": kept}, {"choose": checks.NAMES})
    standing = trial.evaluate(kept)
    return Choice({agent: new[agent] for agent in kept}, standing, trial.scores)


def _earlier(session: Session) -> tuple[Standing, ...]:
    return tuple(entry.standing for entry in session.history)
