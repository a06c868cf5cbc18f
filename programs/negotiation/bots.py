"""Scripted players: they test the engine, serve as baselines, and let games run without any LM.

A bot is built with the game, so it knows what can be executed and what a fair deal is, which no agent is told. Given
that, its move is a pure function of its view and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from programs.negotiation.errors import GameError
from programs.negotiation.game import Game
from programs.negotiation.parse import WORDS, to_text
from programs.negotiation.values import ROLES, Accept, Act, Propose, Reject, Reply, Role, Status, Trade, Wait
from programs.negotiation.view import View

Player = Callable[[View], Reply]
"""Whoever makes moves: gets what it may know and hands in a reply."""


@dataclass(frozen=True)
class Seat:
    """What a bot knows of the game, from its own side."""

    game: Game
    role: Role
    seed: int

    def gain(self, trade: Trade) -> float:
        """What a deal is worth above no deal, in the game's units."""
        deal, none = self.game.payoffs(Status("deal", trade=trade)), self.game.payoffs(Status("timeout"))
        return deal.raw[ROLES.index(self.role)] - none.raw[ROLES.index(self.role)]

    def best(self, share: float) -> Trade:
        """The trade at a share of the way from the best one to the worst that is no loss."""
        scale = self.game.scale(self.role)
        return self._rung(scale[round(share * self._last_bearable(scale))])

    @cached_property
    def fair(self) -> Trade:
        """The even split or the midpoint price: where the paper's payoff is nearest to 0."""
        return self._rung(min(self.game.scale(self.role), key=lambda number: abs(self._sirius(number))))

    def dice(self, t: int) -> random.Random:
        """For one move."""
        return random.Random(f"{self.seed}/{self.role}/{t}")

    def any_trade(self, dice: random.Random) -> Trade:
        """Some trade that can be executed and is legal."""
        scale = self.game.scale(self.role)
        return self._rung(scale[dice.randrange(len(scale))])

    def _last_bearable(self, scale: range) -> int:
        """Binary search, since gains fall along the scale and a pot may be large."""
        low, high = 0, len(scale) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._gains(scale[middle]) >= 0 else (low, middle - 1)
        return low

    def _rung(self, number: int) -> Trade:
        return self.game.rung(number, self.role)

    def _gains(self, number: int) -> float:
        return self.gain(self._rung(number))

    def _sirius(self, number: int) -> float:
        return self.game.payoffs(Status("deal", trade=self._rung(number))).sirius[ROLES.index(self.role)]


def random_legal(seat: Seat, view: View) -> Act:
    """Any move there is, any trade that can be executed."""
    dice = seat.dice(view.t)
    kind = dice.choice(view.kinds)
    if kind == "propose":
        return Propose(seat.any_trade(dice))
    return WORDS[kind]


def accepter(seat: Seat, view: View) -> Act:
    """Accepts whatever is offered, and proposes what is fair."""
    return _answer(view, accepts=view.standing is not None, demand=seat.fair)


def never(seat: Seat, view: View) -> Act:
    """Demands the most that can be executed, and accepts nothing."""
    return _answer(view, accepts=False, demand=seat.best(0.0))


def fair(seat: Seat, view: View) -> Act:
    """Proposes the even split or the midpoint price, and accepts nothing worse."""
    return _answer(view, accepts=_at_least(seat, view, seat.gain(seat.fair)), demand=seat.fair)


def greedy(seat: Seat, view: View) -> Act:
    """Accepts every gain, however small, and demands the most that can be executed.

    In the exchange, where payoffs add up to zero, it is the best response to partners that make mistakes.
    """
    gains = view.standing is not None and seat.gain(view.standing) > 0
    return _answer(view, accepts=gains, demand=seat.best(0.0))


def boulware(seat: Seat, view: View) -> Act:
    """Hard: holds out, and concedes near the end."""
    return _concede(seat, view, beta=0.2)


def conceder(seat: Seat, view: View) -> Act:
    """Soft: concedes early."""
    return _concede(seat, view, beta=3.0)


BOTS: Mapping[str, Callable[[Seat, View], Act]] = {
    "random": random_legal,
    "accepter": accepter,
    "never": never,
    "fair": fair,
    "greedy": greedy,
    "boulware": boulware,
    "conceder": conceder,
}
"""The names by which examples and tables call the bots."""


def bot(name: str, game: Game, role: Role, seed: int = 0) -> Player:
    """A scripted player.

    Args:
        name: One of `BOTS`.
        game: What it will play.
        role: Whom it will play.
        seed: Of its dice; only `random` throws any.

    Raises:
        GameError: There is no bot of that name.
    """
    if name not in BOTS:
        raise GameError(f"Player {name!r}, expected one of the bots {sorted(BOTS)}.")
    rule, seat = BOTS[name], Seat(game, role, seed)
    return lambda view: Reply(to_text(rule(seat, view), game, role))


def _concede(seat: Seat, view: View, beta: float) -> Act:
    """Concede by the clock, from the best trade to the last that is no loss, which is the demand of the last word.

    References:
        Faratin, Sierra and Jennings (1998), Negotiation decision functions for autonomous agents, Robotics and
        Autonomous Systems 24: the polynomial time-dependent tactic.
    """
    demand = seat.best((view.t / view.turns) ** (1 / beta) if "propose" in view.kinds else 1.0)
    return _answer(view, accepts=_at_least(seat, view, seat.gain(demand)), demand=demand)


def _at_least(seat: Seat, view: View, gain: float) -> bool:
    return view.standing is not None and seat.gain(view.standing) >= gain


def _answer(view: View, *, accepts: bool, demand: Trade) -> Act:
    """Accept, else propose, else let time pass; where a game has no waiting, refuse."""
    if accepts:
        return Accept()
    if "propose" in view.kinds:
        return Propose(demand)
    return Wait() if "wait" in view.kinds else Reject()
