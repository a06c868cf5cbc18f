"""The three games as tasks of an experiment: data, program, demonstrations, metric, and what is counted beside it.

exchange, ultimatum, sell
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import dspy

from programs.negotiation.configs import Name, Split
from programs.negotiation.demonstrations import demonstrations
from programs.negotiation.program import AGENT, NegotiationGame, build, examples, metric
from programs.negotiation.values import ROLES
from sirius_dspy.trajectory import Trajectory

__all__ = ["GameTask", "Report", "exchange", "report", "sell", "ultimatum"]


@dataclass(frozen=True)
class GameTask:
    """One game."""

    game: Name

    def build(self, talk: bool = True) -> NegotiationGame:
        """See `programs.negotiation.build`."""
        return build(talk)

    def examples(self, split: Split, size: int = 60, seed: int = 0) -> list[dspy.Example]:
        """See `programs.negotiation.examples`."""
        return examples(split, size, seed, self.game)

    def demonstrations(self) -> dict[str, list[dspy.Example]]:
        """See `programs.negotiation.demonstrations`."""
        return demonstrations(self.game)

    def metric(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> dspy.Prediction:
        """See `programs.negotiation.metric`."""
        return metric(example, prediction, trace)


@dataclass(frozen=True)
class Report:
    """What happened in matches, beside who won."""

    total: int
    deals: int
    invalid: int
    """Invalid moves of the roles under test."""
    moves: int
    """All their moves."""

    @property
    def deal_rate(self) -> float:
        """Share of the matches that ended with a deal; one that failed did not."""
        return self.deals / self.total if self.total else 0.0

    @property
    def invalid_rate(self) -> float:
        """Share of the moves of the roles under test that were invalid."""
        return self.invalid / self.moves if self.moves else 0.0


def report(trajectories: Iterable[Trajectory]) -> Report:
    """Count what scored runs did, e.g. `evaluate(program, test, metric).trajectories`."""
    runs = list(trajectories)
    played = [run.prediction for run in runs if run.failure is None]
    tested = [(game, role) for game in played for role in ROLES if game["players"][role] == AGENT]
    return Report(
        total=len(runs),
        deals=sum(game["status"] == "deal" for game in played),
        invalid=sum(game["invalid"][role] for game, role in tested),
        moves=sum(game["moves"][role] for game, role in tested),
    )


exchange = GameTask("exchange")
ultimatum = GameTask("ultimatum")
sell = GameTask("sell")
