"""The program that SiriuS trains: a match in which each role is an agent with weights of its own.

An opponent may be the other agent, the weights that training started from, or a bot. Weights that stay as they were
are predictors of their own (`base_red`, `base_blue`): name them in `SiriuS(frozen=FROZEN)`.

References:
    SiriuS (arXiv:2502.04780), section 3.3: each player is tuned on its own turns of games that it did well in. What
    counts as well, and against whom, is not given there: see `metric` and `examples`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any, get_args

import dspy

from programs.negotiation.bots import Player, bot
from programs.negotiation.configs import GAMES, Name, Split, game_from
from programs.negotiation.engine import State
from programs.negotiation.errors import GameError
from programs.negotiation.game import Game
from programs.negotiation.log import to_log
from programs.negotiation.match import play
from programs.negotiation.player import Play, SilentPlay, agent
from programs.negotiation.values import ROLES, Invalid, Role
from sirius_dspy.errors import DatasetError

AGENT, BASE = "agent", "base"
"""Names of a role's trained predictor and of its frozen twin, where a bot's name could stand."""

FROZEN = ("base_red", "base_blue")
"""Predictors that are opponents only."""

PRACTICE_BOTS = ("random", "accepter", "fair", "conceder")
"""Opponents while collecting."""

HELD_OUT_BOTS = ("never", "greedy", "boulware")
"""Opponents that no training game is played against."""


class NegotiationGame(dspy.Module):
    """RED against BLUE, one match per call.

    Args:
        talk: Whether agents give a private reason and a public message with each move. Without, all they write is the
            move, which the smallest LMs manage more often.
    """

    def __init__(self, talk: bool = True) -> None:
        super().__init__()
        self.talk = talk
        signature = Play if talk else SilentPlay
        self.red = dspy.Predict(signature)
        self.blue = dspy.Predict(signature)
        self.base_red = dspy.Predict(signature)
        self.base_blue = dspy.Predict(signature)

    def forward(self, game: Mapping[str, Any], red: str = AGENT, blue: str = AGENT, seed: int = 0) -> dspy.Prediction:
        """Play one match.

        Args:
            game: What `to_dict()` of a game gives.
            red: `agent`, `base`, or the name of a bot.
            blue: The same for the other role.
            seed: Of the bots.

        Returns:
            `players` by role, `status` and `by` whom, `trade`, `raw` and `sirius` payoffs by role (`None` of a void
            game), the number of `invalid` moves and of all `moves` by role, and the whole `log`.

        Raises:
            GameError: There is no such game or player.
        """
        played = game_from(game)
        players = [self.player(name, played, role, seed) for name, role in zip((red, blue), ROLES, strict=True)]
        return dspy.Prediction(players={"red": red, "blue": blue}, **outcome(play(played, *players)))

    def player(self, name: str, game: Game, role: Role, seed: int = 0) -> Player:
        """Who plays a role under a name."""
        if name == AGENT:
            return agent(self.red if role == "red" else self.blue, game)
        if name == BASE:
            return agent(self.base_red if role == "red" else self.base_blue, game)
        return bot(name, game, role, seed)


def build(talk: bool = True) -> NegotiationGame:
    """The untrained program, with predictors `red`, `blue`, `base_red`, `base_blue` and no LM set."""
    return NegotiationGame(talk)


def outcome(state: State) -> dict[str, Any]:
    """A finished game in plain values."""
    payoffs = state.payoffs
    log = to_log(state)
    return {
        "status": state.status.kind,
        "by": state.status.by,
        "trade": log["status"]["trade"],
        "raw": payoffs and dict(zip(ROLES, payoffs.raw, strict=True)),
        "sirius": payoffs and dict(zip(ROLES, payoffs.sirius, strict=True)),
        "invalid": {role: sum(t.role == role and isinstance(t.act, Invalid) for t in state.log) for role in ROLES},
        "moves": {role: sum(t.role == role for t in state.log) for role in ROLES},
        "log": log,
    }


def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:
    """Reward each agent for its own game: 1.0 if it won (`sirius` above 0) without an invalid move, else 0.0.

    Only a role that the agent itself played is rewarded, so that neither its frozen twin's turns nor a bot's are ever
    learnt. `score` is the mean over those roles; a game of an agent against itself scores 0.5 at most, for one wins.

    Args:
        example: Says who played: `red` and `blue`.
        prediction: Of `NegotiationGame`.
        trace: Not used; DSPy passes it to every metric.

    Raises:
        GameError: No agent played.
    """
    won = {role: float(_won(prediction, role)) for role in ROLES if example[role] == AGENT}
    if not won:
        raise GameError(f"{example.red!r} against {example.blue!r} is a game without an agent; make one 'agent'.")
    rewards = dict.fromkeys((*ROLES, *FROZEN), 0.0) | won
    return dspy.Prediction(score=sum(won.values()) / len(won), rewards=rewards)


def _won(prediction: Any, role: Role) -> bool:
    return prediction.sirius is not None and prediction.sirius[role] > 0 and prediction.invalid[role] == 0


def examples(split: Split, size: int = 60, seed: int = 0, game: Name = "exchange") -> list[dspy.Example]:
    """Matches to play, with the inputs `game`, `red`, `blue` and `seed`.

    Configurations, seats and opponents take turns, so that a size that is a multiple of their number has all of them
    equally often. Training and validation games are against the other agent, the frozen base and `PRACTICE_BOTS`; test
    games, on configurations of their own, are against the base, these bots and `HELD_OUT_BOTS`, and never against
    the other agent: its opponent stays frozen while a role is measured.

    Args:
        split: `train`, `validation` or `test`.
        size: Number of matches.
        seed: Decides the bots' dice; splits and seeds share none.
        game: `exchange`, `ultimatum` or `sell`.

    Raises:
        DatasetError: The split, the size or the game cannot be served.
    """
    if split not in get_args(Split) or game not in GAMES:
        raise DatasetError(f"Split {split!r} of {game!r}, expected one of {get_args(Split)} of one of {list(GAMES)}.")
    if type(size) is not int or size < 1:
        raise DatasetError(f"Size {size!r}, expected a whole number from 1.")
    dice = random.Random(f"{split}/{game}/{seed}")
    pairings = islice(cycle(_pairings(split, game)), size)
    return [_example(played, red, blue, dice.getrandbits(48)) for played, red, blue in pairings]


def _pairings(split: Split, game: Name) -> Iterator[tuple[Game, str, str]]:
    opponents = (BASE, *PRACTICE_BOTS, *HELD_OUT_BOTS) if split == "test" else (BASE, *PRACTICE_BOTS)
    for played in GAMES[game][split]:
        for opponent in opponents:
            yield played, AGENT, opponent
            yield played, opponent, AGENT
        if split != "test":
            yield played, AGENT, AGENT


def _example(game: Game, red: str, blue: str, seed: int) -> dspy.Example:
    fields = {"game": game.to_dict(), "red": red, "blue": blue, "seed": seed}
    return dspy.Example(**fields).with_inputs(*fields)
