"""What the stages of one compile share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.budget import Account
from sirius_dspy.optimizer.hold import Hold
from sirius_dspy.optimizer.live import LiveFile
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.results import IterationResult
from sirius_dspy.optimizer.settings import Settings
from sirius_dspy.optimizer.weights import Weights
from sirius_dspy.program import copy_program
from sirius_dspy.running.bugs import BugWatch
from sirius_dspy.running.executor import Workers
from sirius_dspy.running.patience import Health
from sirius_dspy.running.rollout import Task
from sirius_dspy.tracking.events import RolledOut, Trackers
from sirius_dspy.trajectory import Trajectory


@dataclass
class Session:
    """One call of `compile`.

    Attributes:
        plan: What was checked.
        run: Id of the compile.
        library: Where its runs are kept.
        tracker: Receives its events.
        weights: Which LM each agent has.
        account: What was spent.
        live: What others see of it while it works.
        hold: What others ask of it meanwhile.
        workers: Where its runs are made.
        history: The iterations so far.
    """

    plan: Plan
    run: str
    library: ExperienceLibrary
    tracker: Trackers
    weights: Weights
    account: Account
    live: LiveFile
    hold: Hold
    workers: Workers
    history: list[IterationResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.health = Health()
        self.bugs = {"rollout": BugWatch(), "validation": BugWatch()}
        self.teachers: list[dspy.Module] = [copy_program(teacher) for teacher in self.plan.teachers]

    @property
    def settings(self) -> Settings:
        """The user's settings."""
        return self.plan.settings

    @property
    def num_predictors(self) -> int:
        """Predictors of the program: the LM calls of a run, before any was made."""
        return len(self.weights.predictors)

    def row_iterations(self, iteration: int) -> range:
        """The iterations whose runs an iteration is trained on: all so far, if the curator is cumulative."""
        return range(1 if self.settings.curator.cumulative else iteration, iteration + 1)

    def rollout_options(self, origin: str) -> dict[str, Any]:
        """What the rollouts of all stages have in common."""
        settings = self.plan.settings
        return {
            "run": self.run,
            "seed": settings.seed,
            "num_threads": settings.num_threads,
            "workers": self.workers,
            "broken_reward": settings.broken_reward,
            "agents": frozenset(self.plan.agents) | self.weights.predictors,
            "patience": settings.patience,
            "health": self.health,
            "bugs": self.bugs[origin],
            "allowance": self.account.allowance(self.num_predictors),
            "held": self.hold.is_held,
            "on_unfinished": self.library.add_unfinished,
        }

    def keep(self, iteration: int, batch: Sequence[tuple[Task, Trajectory]]) -> list[Trajectory]:
        """Store runs that ended together, and return those that succeeded."""
        runs = [trajectory for _, trajectory in batch]
        self.library.add_runs(runs, [task.example for task, _ in batch])
        solved = []
        for trajectory in runs:
            self.account.note_item(trajectory.usage)
            self.weights.note_chosen(trajectory)
            succeeded = trajectory.succeeded(self.plan.settings.threshold)
            self.tracker.on_rolled_out(RolledOut(iteration, trajectory, succeeded))
            solved += [trajectory] if succeeded else []
        return solved
