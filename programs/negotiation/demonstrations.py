"""Worked positions for a cold start: an LM that never makes a valid move wins nothing to learn from.

They are written by hand, on configurations that no split has, and training prompts never show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dspy

from programs.negotiation.configs import Name, symmetric_exchange
from programs.negotiation.engine import State, step
from programs.negotiation.errors import GameError
from programs.negotiation.game import Game
from programs.negotiation.sell import Sell
from programs.negotiation.ultimatum import Ultimatum
from programs.negotiation.values import ROLES, Role
from programs.negotiation.view import briefing, view_of

GAMES: Mapping[Name, Game] = {
    "exchange": symmetric_exchange(18, 6),
    "ultimatum": Ultimatum(pot=40),
    "sell": Sell(cost=12, willingness=32, budget=50),
}

POSITIONS: Mapping[Name, Mapping[Role, Sequence[Sequence[str]]]] = {
    "exchange": {
        "red": (
            ("offer give X 4 get Y 6",),
            ("wait", "offer give Y 9 get X 5", "accept"),
            ("offer give X 2 get Y 7", "offer give Y 3 get X 8", "offer give X 3 get Y 5"),
        ),
        "blue": (
            ("offer give X 3 get Y 8", "offer give Y 4 get X 7"),
            ("offer give X 9 get Y 6", "accept"),
            ("wait", "offer give Y 5 get X 6"),
        ),
    },
    "ultimatum": {
        "red": (
            ("offer 15",),
            ("offer 14", "offer 17", "accept"),
            ("offer 12", "offer 35", "offer 16"),
        ),
        "blue": (
            ("offer 3", "offer 25"),
            ("offer 22", "accept"),
            ("offer 5", "offer 24", "offer 19", "accept"),
        ),
    },
    "sell": {
        "red": (
            ("offer 29",),
            ("offer 31", "offer 25", "accept"),
            ("offer 28", "offer 9", "offer 26"),
        ),
        "blue": (
            ("offer 37", "offer 16"),
            ("offer 19", "accept"),
            ("offer 41", "offer 14", "offer 35", "offer 18"),
        ),
    },
}
"""Moves from the start of a game; the last one is shown as the answer."""

_WORDS = {
    "offer": ("I ask for a good share.", "How about this?"),
    "accept": ("This is good for me.", "Deal."),
}
"""Reason and message that go with a move, for agents that talk."""


def demonstrations(game: Name) -> dict[str, list[dspy.Example]]:
    """Demonstrations of each role, trained and frozen, for `Collect(demos=...)` and few-shot baselines.

    Args:
        game: `exchange`, `ultimatum` or `sell`.

    Raises:
        GameError: There is no such game.
    """
    if game not in GAMES:
        raise GameError(f"The game is {game!r}, expected one of {list(GAMES)}.")
    demos = {role: [_example(GAMES[game], moves) for moves in POSITIONS[game][role]] for role in ROLES}
    return {name: demos[role] for role in ROLES for name in (role, f"base_{role}")}


def _example(game: Game, moves: Sequence[str]) -> dspy.Example:
    *before, action = moves
    state = State(game)
    for move in before:
        state = step(state, move)
    position = briefing(view_of(state), game)
    reason, message = _WORDS[action.split()[0]]
    asked = {"rules": position.rules, "history": position.history, "moves": position.moves}
    return dspy.Example(**asked, reason=reason, message=message, action=action).with_inputs(*asked)
