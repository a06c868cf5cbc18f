"""How good a program was on a set of examples, and which of two is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sirius_dspy.trajectory import Failure


class Run(Protocol):
    """A run with its reward, or why it has none."""

    @property
    def failure(self) -> Failure | None:
        """Why it broke; `None` if it did not."""

    @property
    def reward(self) -> float:
        """The metric's number, if the run ended."""


@dataclass(frozen=True)
class Standing:
    """The sums behind a mean reward, which can be added up.

    A run that broke has no reward. In a mean it counts as the lowest reward of all runs that are compared, and at most
    as 0, as in `dspy.Evaluate`: where rewards are negative, breaking must not be the best that a program can do. Of two
    equal means, the one with fewer broken runs is better.
    """

    ended: int
    """Runs with a reward."""
    broken: int
    total: float
    """Sum of the rewards."""
    lowest: float
    """The lowest reward; 0 without any."""

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Standing:
        """Sum up some runs."""
        rewards = [run.reward for run in runs if run.failure is None]
        return cls(len(rewards), len(runs) - len(rewards), sum(rewards), min(rewards, default=0.0))

    def __add__(self, other: Standing) -> Standing:
        """Sum up both sets of runs."""
        lowest = min((part.lowest for part in (self, other) if part.ended), default=0.0)
        return Standing(self.ended + other.ended, self.broken + other.broken, self.total + other.total, lowest)

    def mean(self, floor: float | None = None) -> float:
        """Mean reward; 0 for no runs.

        Args:
            floor: Reward that a broken run counts as; by default as if these runs were compared only with themselves.
        """
        number = self.ended + self.broken
        return (self.total + self.broken * (floor_of([self]) if floor is None else floor)) / number if number else 0.0

    def rank(self, floor: float) -> tuple[float, int]:
        """A key that is greater for the better standing."""
        return self.mean(floor), -self.broken

    def to_plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def floor_of(standings: Iterable[Standing]) -> float:
    """The reward that a broken run counts as, where these are compared."""
    return min([0.0, *(standing.lowest for standing in standings)])
