"""Three negotiation games: an engine for them, players, and the program that learns to play.

    values.py      bundles, trades, acts, replies: frozen values
    game.py        what a game is; exchange.py, ultimatum.py and sell.py are the three
    parse.py       from a player's text to an act, and back; arena.py reads as the original did
    engine.py      State, legal, step
    view.py        what one player may know
    log.py         a game as JSON, and back
    bots.py        scripted players; player.py asks an LM; match.py lets two play
    configs.py     the games of each split
    program.py     NegotiationGame, examples, metric
    curator.py     training sets that no pairing and no outcome dominates
    tasks.py       each game as the task of an experiment
    tournament.py  cross-play and its table
    openspiel.py   the same players in an engine of others

The engine (up to `log.py`) is plain Python.
"""

from programs.negotiation.bots import BOTS, Player, bot
from programs.negotiation.configs import GAMES, game_from, symmetric_exchange
from programs.negotiation.engine import State, legal, step
from programs.negotiation.errors import GameError, GameLogError
from programs.negotiation.exchange import Exchange
from programs.negotiation.game import Game
from programs.negotiation.log import replay, to_log
from programs.negotiation.match import play
from programs.negotiation.parse import parse
from programs.negotiation.program import FROZEN, NegotiationGame, build, examples, metric
from programs.negotiation.sell import Sell
from programs.negotiation.ultimatum import Ultimatum

__all__ = [
    "BOTS",
    "FROZEN",
    "GAMES",
    "Exchange",
    "Game",
    "GameError",
    "GameLogError",
    "NegotiationGame",
    "Player",
    "Sell",
    "State",
    "Ultimatum",
    "bot",
    "build",
    "examples",
    "game_from",
    "legal",
    "metric",
    "parse",
    "play",
    "replay",
    "step",
    "symmetric_exchange",
    "to_log",
]
