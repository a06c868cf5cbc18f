"""Weights of rows by how often the program solves their example."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sirius_dspy import checks
from sirius_dspy.trajectory import Trajectory

if TYPE_CHECKING:  # curators weigh rows
    from sirius_dspy.training.curate import Row


@dataclass
class PassRates:
    """Counts how many of an example's runs earned a step of a predictor its place in the training set.

    Attributes:
        agent_of: Predictor to agent, of the predictors that are trained.
        threshold: Lowest reward of a success.
    """

    agent_of: Mapping[str, str]
    threshold: float
    _counts: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    """Predictor and example to the numbers of successes and of runs."""

    def add(self, run: Trajectory) -> None:
        """Count a run; repairs count like all others, so that an example that only repairs solve is not hopeless."""
        for predictor, agent in self.agent_of.items():
            succeeded = run.succeeded_for(agent, predictor, threshold=self.threshold)
            counts = self._counts[predictor, run.example_key]
            counts[0] += succeeded
            counts[1] += 1

    def rate(self, row: Row) -> float:
        """Return the share of the runs of the row's example that succeeded."""
        successes, runs = self._counts[row.predictor, row.example_key]
        return successes / runs


@dataclass(frozen=True)
class PassRateWeights:
    """Weighs rows by the pass rate p of their example: in proportion to sqrt(p (1 - p)).

    Examples that the program sometimes solves teach most. What it always solves it can do already, and a success among
    many failures may be luck. The weights of an agent's rows have the mean 1. Use two samples or more of each example.

    Attributes:
        floor: Least weight as a share of the largest one possible, so that no row is lost.

    References:
        arXiv:2605.27765, which weighs questions so.
    """

    floor: float = 0.25

    def check(self) -> None:
        """Refuse a floor of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("PassRateWeights", vars(self), {"floor": checks.number(above=0, below=1)})

    def weigh(self, rows: Sequence[Row], rates: PassRates) -> tuple[Row, ...]:
        """Return the rows of one agent with their weights, multiplied with those that they have."""
        weights = [max(self.floor, 2 * math.sqrt(rate * (1 - rate))) for rate in map(rates.rate, rows)]
        mean = sum(weights) / len(weights) if weights else 1.0
        return tuple(replace(row, weight=row.weight * weight / mean) for row, weight in zip(rows, weights, strict=True))
