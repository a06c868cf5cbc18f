"""Training sets that no pairing and no outcome dominates, or players drift to what is won fast."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dspy

from programs.negotiation.values import ROLES
from sirius_dspy import checks
from sirius_dspy.training.curate import Appraise, Curator, TrainingSet, appraise_equally
from sirius_dspy.trajectory import IsOwn, Trajectory, canonical, every_step


@dataclass(frozen=True)
class GameCurator(Curator):
    """A `Curator` that takes at most so many won games of one pairing with one outcome.

    Games against weak partners are over in two moves and are won most often; without a cap they would be most rows.

    Attributes:
        max_games: Per pairing of players, winner, and number of moves.
    """

    max_games: int = 16

    def check(self) -> None:
        """See `Curator.check`."""
        super().check()
        checks.check("GameCurator", vars(self), {"max_games": checks.whole(1)})

    def curate(
        self,
        program: dspy.Module,
        trajectories: Iterable[Trajectory],
        agents: Mapping[str, Sequence[str]],
        *,
        threshold: float,
        seed: int = 0,
        is_own: IsOwn = every_step,
        appraise: Appraise = appraise_equally,
    ) -> dict[str, TrainingSet]:
        """See `Curator.curate`; which games stay is drawn with the seed."""
        won = [game for game in trajectories if any(reward >= threshold for reward in game.rewards.values())]
        games = self._cap(won, seed)
        return super().curate(program, games, agents, threshold=threshold, seed=seed, is_own=is_own, appraise=appraise)

    def _cap(self, won: Iterable[Trajectory], seed: int) -> Iterator[Trajectory]:
        """Draw from a fixed order, so that the order in which threads finished has no say."""
        games = sorted(won, key=lambda game: game.id)
        random.Random(seed).shuffle(games)
        taken: Counter[str] = Counter()
        for game in games:
            group = _group(game)
            taken[group] += 1
            if taken[group] <= self.max_games:
                yield game


def _group(game: Trajectory) -> str:
    prediction = game.prediction
    winners = [role for role in ROLES if prediction["sirius"][role] > 0]
    return canonical([prediction["log"]["game"], prediction["players"], winners, prediction["moves"]])
