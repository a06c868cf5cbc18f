"""Errors of the negotiation games, in the tree of `sirius_dspy.errors`. A player's text is never the cause of one."""

from __future__ import annotations

from sirius_dspy.errors import SiriuSError


class GameError(SiriuSError, ValueError):
    """A game, a player or a table cannot be used as given."""


class GameLogError(GameError):
    """The log of a game is unfinished, damaged, or not what playing its texts gives."""
