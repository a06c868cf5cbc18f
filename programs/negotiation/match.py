"""One game between two players."""

from __future__ import annotations

from programs.negotiation.bots import Player
from programs.negotiation.engine import State, step
from programs.negotiation.game import Game
from programs.negotiation.view import view_of


def play(game: Game, red: Player, blue: Player) -> State:
    """Play a game to its end, which comes after `game.turns` moves at the latest."""
    state = State(game)
    while not state.over:
        player = red if state.to_move == "red" else blue
        state = step(state, player(view_of(state)))
    return state
