"""Lets the schedule choose the examples of an iteration, from what the iterations before it left in the library."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from sirius_dspy.optimizer.schedule import ExampleRecord, Examples, choose_examples
from sirius_dspy.optimizer.session import Session
from sirius_dspy.trajectory import Trajectory


def scheduled_examples(session: Session, iteration: int) -> Examples:
    """Return the examples that an iteration runs, in the order in which they are started.

    Raises:
        SettingsError: The schedule returned something else than keys of the trainset.
    """
    examples, schedule = session.plan.unique_trainset, session.settings.collect.schedule
    if schedule is None:
        return examples
    records = read_records(session, iteration)
    return choose_examples(schedule, examples, records, iteration, session.settings.iterations)


def read_records(session: Session, iteration: int) -> dict[str, ExampleRecord]:
    """Return the record of each example of the trainset, from the iterations before this one.

    They have finished, so that the records are the same after an interruption.
    """
    counts: dict[str, _Counts] = defaultdict(_Counts)
    agent_of = {name: agent for agent, names in session.plan.trained.items() for name in names}
    threshold = session.settings.threshold
    for number in range(1, iteration):
        runs = session.library.trajectories(run=session.run, iteration=number, origin=("rollout", "repair"))
        for run in runs:
            counts[run.example_key].add(run, threshold, is_taught=_is_taught(run, agent_of, threshold))
    return {key: counts[key].record for key in session.plan.unique_trainset}


def _is_taught(run: Trajectory, agent_of: Mapping[str, str], threshold: float) -> bool:
    """Return whether a step of the run may become a training row."""
    return any(
        run.succeeded_for(agent_of[step.predictor], step.predictor, threshold=threshold)
        for step in run.taught_steps
        if step.predictor in agent_of
    )


class _Counts:
    """Counts the runs of one example."""

    def __init__(self) -> None:
        self.runs = self.successes = self.steps = 0
        self.trained_in: set[int] = set()

    def add(self, run: Trajectory, threshold: float, *, is_taught: bool) -> None:
        if is_taught:
            self.trained_in.add(run.iteration)
        if run.origin == "rollout":
            self.runs += 1
            self.successes += run.succeeded(threshold)
            self.steps += len(run.steps)

    @property
    def record(self) -> ExampleRecord:
        steps = self.steps / self.runs if self.runs else 0.0
        return ExampleRecord(self.runs, self.successes, len(self.trained_in), steps)
