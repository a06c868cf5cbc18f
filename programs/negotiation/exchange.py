"""Resource exchange: each player has much of one resource and little of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from programs.negotiation.game import Game
from programs.negotiation.values import Bundle, Kind, Payoffs, Role, Status, Trade, other, trade_of

_RED = Bundle.of({"X": 25, "Y": 5})
_BLUE = Bundle.of({"X": 5, "Y": 25})


@dataclass(frozen=True, kw_only=True)
class Exchange(Game):
    """Trade X for Y; the payoff is the change of X + Y, so what one wins the other loses.

    Attributes:
        red: What RED starts with.
        blue: What BLUE starts with.
        cap: T//2 - 1, as the original prompts say.
    """

    red: Bundle = _RED
    blue: Bundle = _BLUE

    name: ClassVar[str] = "exchange"
    resources: ClassVar[tuple[str, ...]] = ("X", "Y")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_holdings("red", self.red)
        self._check_holdings("blue", self.blue)

    def start(self, role: Role) -> Bundle:
        """See `Game`."""
        return self.red if role == "red" else self.blue

    def kinds(self, t: int) -> tuple[Kind, ...]:
        """See `Game`."""
        return ("propose", "accept", "wait")

    def payoffs(self, status: Status) -> Payoffs:
        """Change of X + Y; 0 without a deal."""
        if status.trade is None:
            return Payoffs((0.0, 0.0), (0.0, 0.0))
        red = float(status.trade.blue_gives.total - status.trade.red_gives.total)
        return Payoffs((red, 0 - red), (red, 0 - red))

    def scale(self, role: Role) -> range:
        """How much to ask of what the opponent has most of."""
        held = self.start(other(role))
        return range(held[_most(held)], -1, -1)

    def rung(self, number: int, role: Role) -> Trade:
        """Ask that much for half of one's own surplus, which would even out a mirrored start."""
        own_half, asked = self.start(role), self.start(other(role))
        surplus = max(own_half["X"], own_half["Y"]) - min(own_half["X"], own_half["Y"])
        give = min(max(1, surplus // 2), own_half[_most(own_half)])
        return trade_of(role, Bundle.of({_most(own_half): give}), Bundle.of({_most(asked): number}))

    def describe(self, role: Role) -> str:
        """See `Game`."""
        limit = "" if self.cap is None else f" Each may make {self.cap} offers."
        return (
            f"You are {role.upper()}. You and {other(role).upper()} take turns and may trade X and Y. "
            f"Your score is how much your X + Y grows; without a deal it is 0. The game ends with the first deal, or "
            f"after {self.turns} turns.{limit} An offer stands for one turn. Give and get are always from your side."
        )

    def facts(self, role: Role) -> str:
        """Own holdings."""
        return f"You have {self.start(role)}."

    def to_dict(self) -> dict[str, Any]:
        """See `Game`."""
        return {**self._settings(), "red": self.red.to_dict(), "blue": self.blue.to_dict()}


def _most(held: Bundle) -> str:
    return "X" if held["X"] >= held["Y"] else "Y"
