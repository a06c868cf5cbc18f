"""How good a program was on a set of examples, and which of two is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sirius_dspy.trajectory import Failure


class Scored(Protocol):
    """A run with its reward, or why it has none."""

    @property
    def failure(self) -> Failure | None:
        """Why it broke."""

    @property
    def reward(self) -> float:
        """Of a run that ended."""


@dataclass(frozen=True)
class Standing:
    """What a mean reward is made of.

    A run that broke has no reward. In a mean it counts as the lowest reward that any run had which it is compared with,
    and at most as 0, as in `dspy.Evaluate`: with rewards of -3, to break is not the best that a program can do. Of two
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
    def of(cls, runs: Sequence[Scored]) -> Standing:
        """That of some runs."""
        rewards = [run.reward for run in runs if run.failure is None]
        return cls(len(rewards), len(runs) - len(rewards), sum(rewards), min(rewards, default=0.0))

    def __add__(self, other: Standing) -> Standing:
        """That of both sets of runs."""
        lowest = min((part.lowest for part in (self, other) if part.ended), default=0.0)
        return Standing(self.ended + other.ended, self.broken + other.broken, self.total + other.total, lowest)

    def mean(self, floor: float | None = None) -> float:
        """Mean reward; 0 for no runs.

        Args:
            floor: What a broken run counts; by default as if these runs were compared with none but themselves.
        """
        number = self.ended + self.broken
        return (self.total + self.broken * (floor_of([self]) if floor is None else floor)) / number if number else 0.0

    def rank(self, floor: float) -> tuple[float, int]:
        """What is greater for the better one."""
        return self.mean(floor), -self.broken

    def to_plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def floor_of(standings: Iterable[Standing]) -> float:
    """What a broken run counts where these are compared."""
    return min([0.0, *(standing.lowest for standing in standings)])
