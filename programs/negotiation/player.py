"""A player that asks an LM: one predictor, and prompts short enough for a small one."""

from __future__ import annotations

import dspy
from dspy.utils.exceptions import AdapterParseError

from programs.negotiation.bots import Player
from programs.negotiation.game import Game
from programs.negotiation.values import Reply
from programs.negotiation.view import Briefing, View, briefing


class Play(dspy.Signature):
    """Choose your next move in this negotiation."""

    rules: str = dspy.InputField()
    history: str = dspy.InputField()
    moves: str = dspy.InputField()
    reason: str = dspy.OutputField(desc="private thoughts, one sentence", default="")
    message: str = dspy.OutputField(desc="what to tell the other player", default="")
    action: str = dspy.OutputField(desc="one of the moves, and nothing else")


class SilentPlay(dspy.Signature):
    """Choose your next move in this negotiation."""

    rules: str = dspy.InputField()
    history: str = dspy.InputField()
    moves: str = dspy.InputField()
    action: str = dspy.OutputField(desc="one of the moves, and nothing else")


def ask(predictor: dspy.Predict, position: Briefing) -> Reply:
    """Ask for one move. A reply without the fields is handed on as it is: the engine judges it.

    Args:
        predictor: Of the signature `Play` or `SilentPlay`.
        position: Its inputs.
    """
    try:
        prediction = predictor(rules=position.rules, history=position.history, moves=position.moves)
    except AdapterParseError as error:
        return Reply(str(error.lm_response))
    return Reply(prediction.action, prediction.get("message", ""), prediction.get("reason", ""))


def agent(predictor: dspy.Predict, game: Game) -> Player:
    """The predictor as a player of a game."""

    def play(view: View) -> Reply:
        return ask(predictor, briefing(view, game))

    return play
