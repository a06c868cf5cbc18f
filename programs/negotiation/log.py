"""The log of a game as JSON, and the game from its log: same game and same texts, same result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from programs.negotiation.configs import game_from
from programs.negotiation.engine import State, step
from programs.negotiation.errors import GameError, GameLogError
from programs.negotiation.parse import to_word
from programs.negotiation.values import Invalid, Propose, Reply, Status, Turn

FORMAT = 1
"""Version of the log; another one is refused rather than guessed at."""


def to_log(state: State) -> dict[str, Any]:
    """The game as plain JSON, finished or not."""
    return {
        "format": FORMAT,
        "game": state.game.to_dict(),
        "turns": [_turn(turn) for turn in state.log],
        "status": _status(state.status),
    }


def replay(log: Mapping[str, Any]) -> State:
    """Play a logged game again from its texts.

    Raises:
        GameLogError: The log is unfinished or damaged, or its texts give another game than it says.
    """
    game = _part(log, "game", dict)
    turns = _part(log, "turns", list)
    status = _part(log, "status", dict)
    if _part(log, "format", int) != FORMAT:
        raise GameLogError(f"The game log has format {log['format']!r}, expected {FORMAT}. Write it with this version.")
    if status.get("kind") == "open":
        raise GameLogError(
            f"The game log is unfinished: it stops after {len(turns)} moves, and its result is missing. Play the game "
            "to its end, or drop the log and count the game as not played."
        )
    try:
        state = State(game_from(game))
    except GameError as error:
        raise GameLogError(f"The game log's `game` is damaged: {error}") from error
    for number, turn in enumerate(turns, start=1):
        state = _replay(state, turn, number)
    if _status(state.status) != status:
        raise GameLogError(
            f"The game log says {status!r}, but its {len(turns)} moves give {_status(state.status)!r}: moves are "
            "missing or changed. Restore the log from where it was written."
        )
    return state


def _replay(state: State, turn: Any, number: int) -> State:
    if state.over:
        raise GameLogError(f"The game log goes on at move {number} after its end as {state.status.kind!r}. Restore it.")
    texts = [turn.get(name) if isinstance(turn, Mapping) else None for name in ("text", "message", "reason")]
    read = [text for text in texts if isinstance(text, str)]
    if len(read) < len(texts):
        raise GameLogError(
            f"Move {number} of the game log is {turn!r}, expected an object with the texts `text`, `message` and "
            "`reason`. Restore the log from where it was written."
        )
    after = step(state, Reply(*read))
    if _turn(after.log[-1]) != turn:
        raise GameLogError(
            f"Move {number} of the game log says {turn!r}, but its text gives {_turn(after.log[-1])!r}. Restore the "
            "log from where it was written."
        )
    return after


def _turn(turn: Turn) -> dict[str, Any]:
    act: dict[str, Any] = {"kind": to_word(turn.act)}
    if isinstance(turn.act, Propose):
        act |= turn.act.trade.to_dict()
    if isinstance(turn.act, Invalid):
        act["why"] = turn.act.reason
    told = {"told": turn.message, "thought": turn.reason, "note": turn.note}
    texts = {"text": turn.reply.text, "message": turn.reply.message, "reason": turn.reply.reason}
    return {"t": turn.t, "role": turn.role, **texts, "act": act, **told}


def _status(status: Status) -> dict[str, Any]:
    trade = None if status.trade is None else status.trade.to_dict()
    return {"kind": status.kind, "by": status.by, "trade": trade, "reason": status.reason}


def _part(log: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(log, Mapping) or not isinstance(log.get(name), kind):
        value = log.get(name) if isinstance(log, Mapping) else log
        raise GameLogError(
            f"`{name}` is missing from the game log, or damaged: {value!r}, expected {kind.__name__}. Pass the whole "
            "JSON object that `to_log` gave."
        )
    return log[name]
