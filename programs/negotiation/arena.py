"""Reading replies as NegotiationArena does, to compare with published numbers; what crashed it is `Invalid` here.

This repeats observed behaviour, faults included: the first answer tag anywhere in the reply counts, only the exact word
ACCEPT in it accepts, amounts may be negative and resources invented. It is written from what scripted games showed.
"""

from __future__ import annotations

import re

from programs.negotiation.game import Game
from programs.negotiation.parse import ANSWER, TRADE, Move, parse_action
from programs.negotiation.sell import Sell
from programs.negotiation.ultimatum import Ultimatum
from programs.negotiation.values import Accept, Act, Bundle, Invalid, Propose, Reject, Reply, Role, Trade, Wait

_AMOUNTS = re.compile(r"\s*\w+\s*:\s*-?[0-9]{1,9}\s*(?:,\s*\w+\s*:\s*-?[0-9]{1,9}\s*)*")
_SIDES = re.compile(r"player\s+(red|blue)\s+gives([^|]*)", re.IGNORECASE)


def read_arena(reply: Reply, game: Game, role: Role) -> Move:
    """Read a reply in tags, or a bare action."""
    answer, trade = _first(ANSWER, reply.text), _first(TRADE, reply.text)
    if answer is None and trade is None:
        return Move(_bare(reply.text, game, role), reply.message, reply.reason)
    act = _act(answer, trade, _first("my resources", reply.text), game)
    ignored = isinstance(act, Accept | Reject) and trade not in (None, "NONE")
    note = "a trade beside the answer was ignored" if ignored else ""
    message = reply.message or _first("message", reply.text) or ""
    return Move(act, message, reply.reason or _first("reason", reply.text) or "", note)


def _bare(text: str, game: Game, role: Role) -> Act:
    """Our own grammar, which the original has no fault in: read as ever, but for where it knows no Reject."""
    act = parse_action(text, game, role)
    return Wait() if isinstance(act, Reject) and not isinstance(game, Ultimatum) else act


def _act(answer: str | None, trade: str | None, resources: str | None, game: Game) -> Act:
    if answer is None or trade is None:
        return Invalid("a tag is missing")
    if resources is not None and not _AMOUNTS.fullmatch(resources):
        return Invalid("the echo of the resources cannot be read")
    return _answer(answer, game) or (Wait() if trade == "NONE" else _trade(trade, game))


def _answer(text: str, game: Game) -> Act | None:
    """The exact words only; in sell & buy, and where it is no move, REJECT is ignored like any other word."""
    if text == "ACCEPT":
        return Accept()
    return Reject() if text == "REJECT" and isinstance(game, Ultimatum) else None


def _trade(text: str, game: Game) -> Act:
    sides = {role.lower(): _bundle(content) for role, content in _SIDES.findall(text)}
    red, blue = sides.get("red"), sides.get("blue")
    if red is None or blue is None:
        return Invalid("the trade cannot be read")
    if isinstance(game, Sell) and not (set(red) | set(blue)) <= set(game.resources):
        return Invalid("the price cannot be read")
    return Propose(Trade(Bundle.of(red), Bundle.of(blue)))


def _bundle(text: str) -> dict[str, int] | None:
    if not _AMOUNTS.fullmatch(text):
        return None
    pairs = (item.split(":") for item in text.split(","))
    return {name.strip(): int(amount) for name, amount in pairs}


def _first(name: str, text: str) -> str | None:
    match = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return match and match[1].strip()
