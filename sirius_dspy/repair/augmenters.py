"""What repairs failed runs: the base class of augmenters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import dspy

from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.critic_training import LearningCritic
from sirius_dspy.trajectory import Attempt, Repair, Trajectory


class RepairOutcome(NamedTuple):
    """A repair, and the runs it made on the way."""

    repair: Repair
    trajectories: tuple[Trajectory, ...]


def take_first_success(failed: Trajectory, attempts: Iterable[Tried]) -> RepairOutcome:
    """Collect attempts at a failed run with their reruns, up to the first one that repairs it.

    Args:
        failed: The run.
        attempts: Made one by one; those after a success are not made.
    """
    made: list[Attempt] = []
    trajectories: list[Trajectory] = []
    for attempt, runs in attempts:
        made.append(attempt)
        trajectories += runs
        if attempt.verdict == "repaired":
            break
    return RepairOutcome(Repair(failed.id, tuple(made), failed.run, failed.iteration), tuple(trajectories))


class Augmenter(ABC):
    """Makes successful runs from failed ones. Subclass it and define `repair`.

    What an LM raises may come out of `repair`: a compile waits, tries again, and repairs the run later if the LM does
    not recover. Nothing of a repair is stored before it ends.
    """

    max_repairs: int | None = None
    """Failed runs to repair in one iteration at most; `None` for all."""

    @property
    def name(self) -> str:
        """A short name for reports, here the class without `Augmenter` in lower case."""
        return type(self).__name__.removesuffix("Augmenter").lower()

    @abstractmethod
    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """Try to repair one failed run. Called from several threads at once."""

    def choose(self, failed: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Choose the failed runs of an iteration that are worth a repair; here the first `max_repairs`.

        Args:
            failed: The first failed run of each example that no sample solved, in an order that repeats.
        """
        return failed[: self.max_repairs]

    def refuse(self, repairs: Sequence[Repair]) -> Mapping[str, str]:
        """Choose repaired runs that are not to be trained on although they succeeded; here there are none.

        Args:
            repairs: All repairs of the runs that a training set is made of.

        Returns:
            Id of a repaired run to the reason, which is counted with the other rows that were dropped.
        """
        return {}

    def learning_critic(self) -> LearningCritic | None:
        """Return the critic that a compile is to fine-tune; here there is none."""
        return None

    def with_critic(self, lm: dspy.LM, *, alone: bool = False) -> Augmenter:
        """Return an augmenter whose `learning_critic` has learned; here there is none, and nothing changes.

        Args:
            lm: Its new weights.
            alone: Whether to leave out all help but that of the critic.
        """
        return self

    def check(self, program: dspy.Module) -> None:
        """Refuse, before anything is paid for, settings or a program that do not fit; here none is refused.

        Raises:
            SettingsError: The message names the setting.
            UnpreparedProgramError: The program does not fit.
        """

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """The least and the greatest number of LM calls that one repair makes, reruns included, for a plan.

        Args:
            num_steps: Steps of a run.
        """
        return 1, 4 * num_steps
