"""Multi-turn ultimatum: RED has a pot, and both lose it if they do not agree how to split it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from programs.negotiation.game import Game
from programs.negotiation.values import Bundle, Kind, Payoffs, Role, Status, Trade, other

DOLLARS = "Dollars"


@dataclass(frozen=True, kw_only=True)
class Ultimatum(Game):
    """A proposal says how many dollars BLUE gets.

    Attributes:
        pot: Dollars to split; both know it.
        cap: No limit; but the last move of all may not propose, since nobody could answer.
    """

    pot: int = 100
    cap: int | None = None

    name: ClassVar[str] = "ultimatum"
    resources: ClassVar[tuple[str, ...]] = (DOLLARS,)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("pot", self.pot, 1)

    def start(self, role: Role) -> Bundle:
        """RED holds the pot."""
        return Bundle.of({DOLLARS: self.pot if role == "red" else 0})

    def kinds(self, t: int) -> tuple[Kind, ...]:
        """See `Game`."""
        if t == 1:
            return ("propose",)
        return ("accept", "reject") if t == self.turns else ("propose", "accept", "reject")

    def problem(self, trade: Trade) -> str:
        """RED gives 0 or more; BLUE has nothing to give."""
        return "BLUE gives nothing in this game" if trade.blue_gives else ""

    def offer(self, number: int) -> Trade:
        """BLUE gets that many dollars."""
        return Trade(Bundle.of({DOLLARS: number}), Bundle())

    def number(self, trade: Trade) -> int | None:
        """Dollars for BLUE."""
        return trade.red_gives[DOLLARS] if trade == self.offer(trade.red_gives[DOLLARS]) else None

    def payoffs(self, status: Status) -> Payoffs:
        """Dollars received, and their distance from the even split. Without a deal both have 0.

        In arena mode RED then keeps the pot, as in the original code, against the text of its own prompt.
        """
        raw = (0.0, 0.0)
        if status.trade is not None or self.is_arena:
            raw = (
                float(self.holdings("red", status)[DOLLARS]),
                float(self.holdings("blue", status)[DOLLARS]),
            )
        return Payoffs(raw, (raw[0] - self.pot / 2, raw[1] - self.pot / 2))

    def scale(self, role: Role) -> range:
        """Dollars for BLUE."""
        return range(self.pot + 1) if role == "red" else range(self.pot, -1, -1)

    def rung(self, number: int, role: Role) -> Trade:
        """See `offer`."""
        return self.offer(number)

    def describe(self, role: Role) -> str:
        """See `Game`."""
        share = "BLUE gets" if role == "red" else "you get"
        return (
            f"You are {role.upper()}. You and {other(role).upper()} take turns to agree how to split ${self.pot}. "
            f"Offer 30 means that {share} $30 and {'you keep' if role == 'red' else 'RED keeps'} the rest. Without a "
            f"deal both get $0. There are {self.turns} turns; the last one can only accept or reject. Reject ends the "
            f"game without a deal. An offer stands for one turn."
        )

    def facts(self, role: Role) -> str:
        """Nothing is private."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """See `Game`."""
        return {**self._settings(), "pot": self.pot}
