"""Everybody against everybody, in both seats: who wins, what it is worth, and how sure that is.

Every game that was started counts. A win rate is over decisive games, beside their number, and `None` where there is
none: 0.00 would say that somebody lost. The two seats of a pairing are two rows, since moving first matters.

References:
    SiriuS (arXiv:2502.04780), Figures 2 to 7: win rate in decisive games and mean payoff by seat.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from programs.negotiation.bots import BOTS
from programs.negotiation.errors import GameError
from programs.negotiation.exchange import Exchange
from programs.negotiation.game import Game
from programs.negotiation.program import AGENT, NegotiationGame
from programs.negotiation.sell import MONEY, Sell
from programs.negotiation.values import ROLES, Bundle, Role, Status, Trade
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.stats import Estimate, Interval, bootstrap, wilson_interval
from sirius_dspy.trajectory import Trajectory

Entrant = NegotiationGame | str
"""A program, which plays a role with its predictor of that name, or the name of a bot."""


@dataclass(frozen=True)
class Pairing:
    """All games of one entrant as RED against one as BLUE.

    Attributes:
        game: What they played.
        games: One trajectory per game that was started, also of those that failed or are void.
        seed: Of the bootstrap.
    """

    red: str
    blue: str
    game: Game
    games: tuple[Trajectory, ...]
    seed: int = 0

    @property
    def started(self) -> int:
        """Number of games."""
        return len(self.games)

    def count(self, status: str, by: Role | None = None) -> int:
        """Games that ended so, and through whom, if that matters; `failed` are those that raised."""
        return sum(
            _status(trajectory) == status and (by is None or trajectory.prediction["by"] == by)
            for trajectory in self.games
        )

    def rate(self, status: str) -> Estimate:
        """Share of the started games that ended so, with Wilson's interval."""
        return _share(self.count(status), self.started)

    def invalid(self, role: Role) -> float | None:
        """Share of a player's moves that were invalid; `None` if it made none."""
        played = [trajectory.prediction for trajectory in self.games if trajectory.failure is None]
        moves = sum(prediction["moves"][role] for prediction in played)
        return sum(prediction["invalid"][role] for prediction in played) / moves if moves else None

    def payoff(self, role: Role, kind: str = "sirius") -> Estimate | None:
        """Mean payoff, `raw` or `sirius`, over all games but void ones, with a bootstrap interval.

        A game that failed counts as one without a deal. `None` if all were void.
        """
        values = [payoff[role] for trajectory in self.games if (payoff := self._payoffs(trajectory, kind)) is not None]
        return bootstrap([values], seed=self.seed) if values else None

    def wins(self, role: Role) -> int:
        """Games that a player ended with a `sirius` payoff above 0 while the other did not."""
        return sum(self._winner(trajectory) == role for trajectory in self.games)

    @property
    def draws(self) -> int:
        """Games that nobody won, void ones included: they were started, and nobody won them."""
        return self.started - self.wins("red") - self.wins("blue")

    def win_rate(self, role: Role) -> Estimate | None:
        """Share of the decisive games that a player won, with Wilson's interval; `None` if there is none."""
        decisive = self.wins("red") + self.wins("blue")
        return _share(self.wins(role), decisive) if decisive else None

    @property
    def traded(self) -> float | None:
        """Mean amount that changed hands in a deal of the exchange, both sides together; `None` without a deal."""
        if not isinstance(self.game, Exchange):
            return None
        return _mean([trade.red_gives.total + trade.blue_gives.total for trade in self._trades()])

    @property
    def price(self) -> float | None:
        """Mean price given a deal; `None` without one. Read it beside the deal rate."""
        return _mean([trade.blue_gives[MONEY] for trade in self._trades()]) if isinstance(self.game, Sell) else None

    def to_dict(self) -> dict[str, Any]:
        """Every number as JSON."""
        ends = ("deal", "rejected", "timeout", "forfeit", "void", "failed")
        return {
            "red": self.red,
            "blue": self.blue,
            "game": self.game.to_dict(),
            "started": self.started,
            "ends": {status: self.count(status) for status in ends},
            "rates": {status: _plain(self.rate(status)) for status in ends},
            "forfeits": {role: self.count("forfeit", role) for role in ROLES},
            "invalid": {role: self.invalid(role) for role in ROLES},
            "raw": {role: _plain(self.payoff(role, "raw")) for role in ROLES},
            "sirius": {role: _plain(self.payoff(role)) for role in ROLES},
            "wins": {role: self.wins(role) for role in ROLES},
            "draws": self.draws,
            "win_rate": {role: _plain(self.win_rate(role)) for role in ROLES},
            "traded": self.traded,
            "price": self.price,
        }

    def _payoffs(self, trajectory: Trajectory, kind: str) -> Mapping[str, float] | None:
        if trajectory.failure is None:
            payoffs: Mapping[str, float] | None = trajectory.prediction[kind]
            return payoffs
        none = self.game.payoffs(Status("timeout"))
        return dict(zip(ROLES, none.raw if kind == "raw" else none.sirius, strict=True))

    def _winner(self, trajectory: Trajectory) -> Role | None:
        payoffs = self._payoffs(trajectory, "sirius")
        above = [role for role in ROLES if payoffs is not None and payoffs[role] > 0]
        return above[0] if len(above) == 1 else None

    def _trades(self) -> list[Trade]:
        trades = [trajectory.prediction["trade"] for trajectory in self.games if _status(trajectory) == "deal"]
        return [Trade(Bundle.of(trade["red_gives"]), Bundle.of(trade["blue_gives"])) for trade in trades]


@dataclass(frozen=True)
class Table:
    """The result of a tournament."""

    pairings: tuple[Pairing, ...]

    def of(self, red: str, blue: str) -> Pairing:
        """One pairing, by the names of the entrants.

        Raises:
            GameError: It was not played.
        """
        for pairing in self.pairings:
            if (pairing.red, pairing.blue) == (red, blue):
                return pairing
        played = sorted({pairing.red for pairing in self.pairings})
        raise GameError(f"{red!r} against {blue!r} was not played, only entrants of {played}.")

    def to_dict(self) -> list[dict[str, Any]]:
        """Every number as JSON, a pairing each."""
        return [pairing.to_dict() for pairing in self.pairings]

    def to_markdown(self) -> str:
        """A table with a row per pairing and seat."""
        head = ("player", "seat", "against", "n", "deals", "win rate (decisive)", "W-L-D", "mean payoff", "invalid")
        rows = [_row(pairing, role) for pairing in self.pairings for role in ROLES]
        lines = [head, ("---",) * len(head), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tournament(
    players: Mapping[str, Entrant],
    game: Game,
    games: int,
    seed: int = 0,
    *,
    temperature: float | None = None,
    num_threads: int | None = None,
) -> Table:
    """Let everybody play everybody else, and itself, in both seats.

    Args:
        players: Name to program (a checkpoint, say) or bot.
        game: What they play.
        games: Of each ordered pairing.
        seed: Of the bots, of sampling and of the bootstrap; equal arguments give an equal table, if the LMs allow.
        temperature: Of all LMs; by default their own. At 0, all games of two agents are one game.
        num_threads: Games at a time; DSPy's setting by default.

    Raises:
        GameError: There are no players or games, or an entrant is neither a program nor the name of a bot.
        RolloutError: An LM refused for credentials, credit or configuration.
    """
    if not players or type(games) is not int or games < 1:
        raise GameError(f"{len(players)} players and {games!r} games each, expected at least one of both.")
    for name, entrant in players.items():
        if not isinstance(entrant, NegotiationGame) and entrant not in BOTS:
            raise GameError(f"Player {name!r} is {entrant!r}, expected a NegotiationGame or one of {sorted(BOTS)}.")
    kwargs = {} if temperature is None else {"temperature": temperature}
    rollouts = Rollouts(
        _no_metric, seed=seed, origin="validation", first_kwargs=kwargs, lm_kwargs=kwargs, num_threads=num_threads
    )
    return Table(
        tuple(
            Pairing(red, blue, game, _play(rollouts, players[red], players[blue], game, games), seed)
            for red in players
            for blue in players
        )
    )


def cross(red: Entrant, blue: Entrant) -> NegotiationGame:
    """A program whose RED is that of one program, and whose BLUE is that of another."""
    crossed = NegotiationGame()
    if isinstance(red, NegotiationGame):
        crossed.red = red.red
    if isinstance(blue, NegotiationGame):
        crossed.blue = blue.blue
    return crossed


def _play(rollouts: Rollouts, red: Entrant, blue: Entrant, game: Game, games: int) -> tuple[Trajectory, ...]:
    names: dict[str, str] = {"red": _name(red), "blue": _name(blue)}
    dice = random.Random(rollouts.seed)
    tasks = []
    for number in range(games):
        fields = {"game": game.to_dict(), **names, "seed": dice.getrandbits(48)}
        tasks.append(Task(dspy.Example(**fields).with_inputs(*fields), number))
    by_number = {task.sample: trajectory for task, trajectory in rollouts.run_all(cross(red, blue), tasks)}
    return tuple(by_number[number] for number in range(games))


def _name(entrant: Entrant) -> str:
    return entrant if isinstance(entrant, str) else AGENT


def _no_metric(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """What a game is worth is read from its prediction."""
    return 0.0


def _status(trajectory: Trajectory) -> str:
    return "failed" if trajectory.failure is not None else str(trajectory.prediction["status"])


def _share(successes: int, trials: int) -> Estimate:
    interval: Interval = wilson_interval(successes, trials)
    return Estimate(successes / trials, *interval)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _plain(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else list(estimate)


def _row(pairing: Pairing, role: Role) -> tuple[str, ...]:
    player, against = (pairing.red, pairing.blue) if role == "red" else (pairing.blue, pairing.red)
    wins, losses = pairing.wins(role), pairing.wins("blue" if role == "red" else "red")
    invalid = pairing.invalid(role)
    return (
        player,
        role.upper(),
        against,
        str(pairing.started),
        _format_estimate(pairing.rate("deal")),
        f"{_format_estimate(pairing.win_rate(role))} of {wins + losses}",
        f"{wins}-{losses}-{pairing.draws}",
        _format_estimate(pairing.payoff(role)),
        "-" if invalid is None else f"{invalid:.2f}",
    )


def _format_estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
