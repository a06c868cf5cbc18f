"""Sell & buy: RED sells one X to BLUE, and they haggle about the price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from programs.negotiation.game import Game
from programs.negotiation.values import Bundle, Kind, Payoffs, Role, Status, Trade

GOODS, MONEY = "X", "ZUP"


@dataclass(frozen=True, kw_only=True)
class Sell(Game):
    """A proposal is a price.

    Attributes:
        cost: What X is worth to the seller, who alone knows it.
        willingness: What X is worth to the buyer, who alone knows it.
        budget: Money that the buyer has.
        turns: As in the paper; the released code has 8.
        cap: T//2 - 1.
    """

    cost: int = 40
    willingness: int = 60
    budget: int = 100
    turns: int = 10
    cap: int | None = 4

    name: ClassVar[str] = "sell"
    resources: ClassVar[tuple[str, ...]] = (GOODS, MONEY)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("cost", self.cost, 0)
        self._check("willingness", self.willingness, 0)
        self._check("budget", self.budget, 1)

    def start(self, role: Role) -> Bundle:
        """One X against the budget."""
        return Bundle.of({GOODS: 1} if role == "red" else {MONEY: self.budget})

    def kinds(self, t: int) -> tuple[Kind, ...]:
        """See `Game`."""
        return ("propose",) if t == 1 else ("propose", "accept", "reject")

    def problem(self, trade: Trade) -> str:
        """One X against money."""
        return "" if self.number(trade) is not None else f"a proposal is: RED gives {GOODS} 1, BLUE gives {MONEY}"

    def offer(self, number: int) -> Trade:
        """One X for that price."""
        return Trade(Bundle.of({GOODS: 1}), Bundle.of({MONEY: number}))

    def number(self, trade: Trade) -> int | None:
        """The price."""
        return trade.blue_gives[MONEY] if trade == self.offer(trade.blue_gives[MONEY]) else None

    def payoffs(self, status: Status) -> Payoffs:
        """Profit and saving; for the paper, both are measured from the midpoint of the two valuations."""
        if status.trade is None:
            return Payoffs((0.0, 0.0), (0.0, 0.0))
        sold = status.trade.red_gives[GOODS] - status.trade.blue_gives[GOODS]
        paid = status.trade.blue_gives[MONEY] - status.trade.red_gives[MONEY]
        middle = (self.cost + self.willingness) / 2
        raw = (float(paid - self.cost * sold), float(self.willingness * sold - paid))
        return Payoffs(raw, (paid - middle * sold, middle * sold - paid))

    def scale(self, role: Role) -> range:
        """The price."""
        return range(self.budget, -1, -1) if role == "red" else range(self.budget + 1)

    def rung(self, number: int, role: Role) -> Trade:
        """See `offer`."""
        return self.offer(number)

    def describe(self, role: Role) -> str:
        """See `Game`."""
        you = "You are RED and sell one X to BLUE" if role == "red" else "You are BLUE and buy one X from RED"
        aim = "above what X costs you" if role == "red" else "below what X is worth to you"
        limit = "" if self.cap is None else f" Each may make {self.cap} offers."
        return (
            f"{you}. You take turns. Offer 30 means a price of 30 ZUP. Your score is how far the price is {aim}; "
            f"without a deal it is 0. There are {self.turns} turns.{limit} Reject ends the game without a deal. An "
            f"offer stands for one turn."
        )

    def facts(self, role: Role) -> str:
        """The own valuation and holdings."""
        if role == "red":
            return f"X costs you {self.cost} ZUP."
        return f"X is worth {self.willingness} ZUP to you. You have {self.budget} ZUP."

    def to_dict(self) -> dict[str, Any]:
        """See `Game`."""
        values = {"cost": self.cost, "willingness": self.willingness, "budget": self.budget}
        return {**self._settings(), **values}
