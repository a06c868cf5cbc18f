"""Which games are played: the paper's, those it was never trained on, and more that nobody has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from programs.negotiation.errors import GameError
from programs.negotiation.exchange import Exchange
from programs.negotiation.game import Game
from programs.negotiation.sell import Sell
from programs.negotiation.ultimatum import Ultimatum
from programs.negotiation.values import Bundle

Name = Literal["exchange", "ultimatum", "sell"]
Split = Literal["train", "validation", "test"]


def symmetric_exchange(high: int, low: int) -> Exchange:
    """Resource exchange where RED has `high` X and `low` Y, and BLUE the reverse."""
    return Exchange(red=Bundle.of({"X": high, "Y": low}), blue=Bundle.of({"X": low, "Y": high}))


GAMES: Mapping[Name, Mapping[Split, tuple[Game, ...]]] = {
    "exchange": {
        "train": (symmetric_exchange(25, 5),),
        "validation": (symmetric_exchange(30, 10),),
        "test": (symmetric_exchange(35, 15), symmetric_exchange(20, 4), symmetric_exchange(40, 8)),
    },
    "ultimatum": {
        "train": (Ultimatum(),),
        "validation": (Ultimatum(pot=200),),
        "test": (Ultimatum(pot=1000), Ultimatum(pot=60), Ultimatum(turns=6)),
    },
    "sell": {
        "train": (Sell(),),
        "validation": (Sell(cost=35, willingness=65),),
        "test": (Sell(cost=30, willingness=70), Sell(cost=20, willingness=50), Sell(cost=45, willingness=75)),
    },
}
"""Game and split to configurations; the first of each training and test split is the paper's."""


def game_from(plain: Mapping[str, Any]) -> Game:
    """The game that `Game.to_dict` described.

    Raises:
        GameError: It is no such description.
    """
    try:
        settings = dict(plain)
        name = settings.pop("game")
        if name == "exchange":
            red, blue = Bundle.of(settings.pop("red")), Bundle.of(settings.pop("blue"))
            return Exchange(red=red, blue=blue, **settings)
        if name == "ultimatum":
            return Ultimatum(**settings)
        if name == "sell":
            return Sell(**settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, GameError):
            raise
        raise GameError(f"{plain!r} describes no game ({error!r}). Pass what `to_dict()` of a game gives.") from error
    raise GameError(f"The game is {name!r}, expected 'exchange', 'ultimatum' or 'sell'.")
