"""What a game is: who starts with what, which moves there are, what a deal is worth, and how players are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from programs.negotiation.errors import GameError
from programs.negotiation.values import Bundle, Kind, Payoffs, Role, Status, Trade, other

Rules = Literal["strict", "arena"]


@dataclass(frozen=True, kw_only=True)
class Game(ABC):
    """Rules and numbers of one negotiation between RED, who moves first, and BLUE.

    Attributes:
        turns: T, the moves of both together.
        cap: Proposals that each may make; `None` for no limit.
        max_strikes: Invalid moves that each is forgiven; one more forfeits the game.
        rules: `arena` repeats the behaviour of NegotiationArena for comparison with published numbers: no check of what
            players hold, no cap, and games that are void. Never train on it.

    References:
        Bianchi et al., How Well Can LLMs Negotiate? NegotiationArena Platform and Analysis (arXiv:2402.05863).
        SiriuS (arXiv:2502.04780), section 3.3.
    """

    turns: int = 8
    cap: int | None = 3
    max_strikes: int = 2
    rules: Rules = "strict"

    name: ClassVar[str]
    resources: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        self._check("turns", self.turns, 2)
        self._check("max_strikes", self.max_strikes, 0)
        if self.cap is not None:
            self._check("cap", self.cap, 1)
        if self.rules not in ("strict", "arena"):
            raise GameError(f"`rules` is {self.rules!r}, expected 'strict' or 'arena'.")

    @property
    def is_arena(self) -> bool:
        """Whether the game is played as in the original."""
        return self.rules == "arena"

    @abstractmethod
    def start(self, role: Role) -> Bundle:
        """What a player holds at first."""

    @abstractmethod
    def kinds(self, t: int) -> tuple[Kind, ...]:
        """The moves that the rules know at a time, whatever stands."""

    def problem(self, trade: Trade) -> str:
        """Why a trade is none of this game; empty if it is one. What players hold is checked elsewhere."""
        return "" if trade.red_gives or trade.blue_gives else "both sides are empty"

    def offer(self, number: int) -> Trade | None:
        """The trade that one number stands for; `None` in games where it takes more."""
        return None

    def number(self, trade: Trade) -> int | None:
        """The number that stands for a trade, or `None`."""
        return None

    @abstractmethod
    def payoffs(self, status: Status) -> Payoffs:
        """What a finished game is worth to both; of `void` as if nothing had been agreed."""

    @abstractmethod
    def scale(self, role: Role) -> range:
        """Numbers of executable trades, from the player's best to its worst; see `rung`."""

    @abstractmethod
    def rung(self, number: int, role: Role) -> Trade:
        """The trade for a number of the player's scale."""

    @abstractmethod
    def describe(self, role: Role) -> str:
        """The rules, in words for one player."""

    @abstractmethod
    def facts(self, role: Role) -> str:
        """What only this player knows, in words; empty if everything is public."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON form; see `configs.game_from`."""

    def executable(self, trade: Trade) -> bool:
        """Whether both hold what they give."""
        return not any(
            trade.gift_of(role).negative or (self.start(role) - trade.gift_of(role)).negative
            for role in ("red", "blue")
        )

    def holdings(self, role: Role, status: Status) -> Bundle:
        """What a player holds once a deal is done, or as long as there is none."""
        if status.trade is None:
            return self.start(role)
        return self.start(role) - status.trade.gift_of(role) + status.trade.gift_of(other(role))

    def _settings(self) -> dict[str, Any]:
        common = ("turns", "cap", "max_strikes", "rules")
        return {"game": self.name, **{name: getattr(self, name) for name in common}}

    def _check(self, name: str, value: Any, least: int) -> None:
        if type(value) is not int or value < least:
            raise GameError(f"`{name}` of the game {self.name!r} is {value!r}, expected a whole number from {least}.")

    def _check_holdings(self, role: Role, held: Bundle) -> None:
        if not isinstance(held, Bundle) or held.negative or set(held.to_dict()) - set(self.resources):
            raise GameError(
                f"`{role}` of the game {self.name!r} is {held!r}, expected a `Bundle` of {self.resources} from 0."
            )
