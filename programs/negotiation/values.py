"""The values of a negotiation: what is held, what is offered, what a player did, and how a game ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

Role = Literal["red", "blue"]
"""RED moves first."""

ROLES: tuple[Role, Role] = ("red", "blue")

Kind = Literal["propose", "accept", "reject", "wait"]
"""The moves there are; a game allows some of them."""


def other(role: Role) -> Role:
    """The opponent's role."""
    return "blue" if role == "red" else "red"


@dataclass(frozen=True)
class Bundle:
    """Whole amounts by resource. Build it with `of`, so that equal bundles are equal values.

    Examples:
        >>> Bundle.of({"Y": 0, "X": 10}) == Bundle.of({"X": 10})
        True
    """

    amounts: tuple[tuple[str, int], ...] = ()
    """(resource, amount), sorted, without zeros."""

    @classmethod
    def of(cls, amounts: Mapping[str, int]) -> Self:
        """The bundle with these amounts."""
        return cls(tuple(sorted((name, amount) for name, amount in amounts.items() if amount)))

    def __getitem__(self, resource: str) -> int:
        """The amount of a resource, 0 of what is not there."""
        return self.to_dict().get(resource, 0)

    def __add__(self, more: Bundle) -> Bundle:
        return Bundle.of({name: self[name] + more[name] for name in self.to_dict() | more.to_dict()})

    def __sub__(self, less: Bundle) -> Bundle:
        return Bundle.of({name: self[name] - less[name] for name in self.to_dict() | less.to_dict()})

    def __bool__(self) -> bool:
        return bool(self.amounts)

    @property
    def total(self) -> int:
        """The sum of all amounts."""
        return sum(amount for _, amount in self.amounts)

    @property
    def negative(self) -> bool:
        """Whether there is less than nothing of something."""
        return any(amount < 0 for _, amount in self.amounts)

    def to_dict(self) -> dict[str, int]:
        """Resource to amount."""
        return dict(self.amounts)

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount}" for name, amount in self.amounts) or "nothing"


@dataclass(frozen=True)
class Trade:
    """What changes hands if the offer is accepted."""

    red_gives: Bundle
    blue_gives: Bundle

    def gift_of(self, role: Role) -> Bundle:
        """What a player gives; the other one gets it."""
        return self.red_gives if role == "red" else self.blue_gives

    def to_dict(self) -> dict[str, dict[str, int]]:
        """JSON form."""
        return {"red_gives": self.red_gives.to_dict(), "blue_gives": self.blue_gives.to_dict()}


def trade_of(role: Role, give: Bundle, get: Bundle) -> Trade:
    """The trade in which `role` gives one bundle and gets the other."""
    return Trade(give, get) if role == "red" else Trade(get, give)


@dataclass(frozen=True)
class Propose:
    """An offer; it stands for one turn."""

    trade: Trade


@dataclass(frozen=True)
class Accept:
    """Take the trade of the opponent's last move."""


@dataclass(frozen=True)
class Reject:
    """End the game without a deal, in games that know it."""


@dataclass(frozen=True)
class Wait:
    """Let the turn pass."""


@dataclass(frozen=True)
class Invalid:
    """No move: the text could not be read, or the rules forbid what it says."""

    reason: str


Act = Propose | Accept | Reject | Wait | Invalid

StatusKind = Literal["open", "deal", "rejected", "timeout", "forfeit", "void"]


@dataclass(frozen=True)
class Status:
    """How a game stands.

    Attributes:
        kind: `void` occurs in arena mode only, where the original program would have crashed.
        by: Who accepted, rejected or forfeited, or whose reply made the game void.
        trade: Of a deal.
        reason: Of a void game.
    """

    kind: StatusKind = "open"
    by: Role | None = None
    trade: Trade | None = None
    reason: str = ""


OPEN = Status()


@dataclass(frozen=True)
class Reply:
    """What a player hands in.

    Attributes:
        text: The action: `offer give X 5 get Y 8`, JSON, or tags that hold message and reason as well.
        message: For the opponent.
        reason: Private.
    """

    text: str
    message: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Turn:
    """One move, as it is logged."""

    t: int
    """From 1; RED has the odd ones."""
    role: Role
    reply: Reply
    """As it came."""
    act: Act
    message: str = ""
    """What the opponent is told."""
    reason: str = ""
    """Private, also where it came in tags."""
    note: str = ""
    """What was ignored in the reply."""


@dataclass(frozen=True)
class Payoffs:
    """What both got, in the order RED, BLUE.

    Attributes:
        raw: In the game's own units.
        sirius: As the paper counts: above 0 is a win.
    """

    raw: tuple[float, float]
    sirius: tuple[float, float]
