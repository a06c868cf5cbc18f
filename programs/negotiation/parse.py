"""From a player's text to a move, and back. Nothing a player writes is an error: what cannot be read is `Invalid`.

Three grammars, words in any case, final punctuation ignored:

    offer give X 5 get Y 8     also `offer 40` where a game needs one number, `propose`; accept, reject, wait
    {"action": "offer", "give": {"X": 5}, "get": {"Y": 8}, "message": "...", "reason": "..."}
    <reason>...</reason> <message>...</message> <player answer> NONE </player answer>
        <newly proposed trade> Player RED Gives X: 5 | Player BLUE Gives Y: 8 </newly proposed trade>

Amounts are digits only: `1,000`, `2.5` and `-10` are never read as something near them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from programs.negotiation.game import Game
from programs.negotiation.values import (
    Accept,
    Act,
    Bundle,
    Invalid,
    Propose,
    Reject,
    Reply,
    Role,
    Trade,
    Wait,
    trade_of,
)

MAX_CHARS = 20_000
"""Longer replies are no moves: ten times what a player is ever asked for, and short enough for any prompt."""

MAX_DIGITS = 9
"""Of an amount; far above every game, and no way to fill the log with one number."""

ANSWER, TRADE = "player answer", "newly proposed trade"
PRIVATE = ("my name", "my resources", "my goals", "proposal count")

_NAMES = "|".join((ANSWER, TRADE, "message", "reason", *PRIVATE))
_OPENING = re.compile(rf"<({_NAMES})>", re.IGNORECASE)
_SIDE = re.compile(r"\b(?:(?:player\s+)?(red|blue)\s+gives?|(give|get)s?)\b\s*:?", re.IGNORECASE)
_ITEM = re.compile(rf"([a-z]+)\s*[:=]?\s*([0-9]{{1,{MAX_DIGITS}}})|([0-9]{{1,{MAX_DIGITS}}})\s*([a-z]+)", re.IGNORECASE)
_NUMBER = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")
_BETWEEN = re.compile(r",|;|\band\b", re.IGNORECASE)
_HOSTILE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and marks that turn the direction of text: what a log shows must be what was read."""

PROPOSING = frozenset({"offer", "propose", "proposal"})
"""Words that begin a proposal. We write the first: it is one token for small LMs, which rarely spell PROPOSE right."""

WORDS: Mapping[str, Act] = {"accept": Accept(), "reject": Reject(), "wait": Wait()}
"""The moves that are one word."""


@dataclass(frozen=True)
class Move:
    """What a reply says."""

    act: Act
    message: str = ""
    reason: str = ""
    note: str = ""


def read(reply: Reply, game: Game, role: Role) -> Move:
    """Read a reply whose message and reason may come beside the action, or in its text."""
    if (problem := unreadable(reply)) is not None:
        return Move(problem)
    move = parse(reply.text, game, role)
    return Move(move.act, reply.message or move.message, reply.reason or move.reason, move.note)


def unreadable(reply: Reply) -> Invalid | None:
    """Why a reply is not even looked at, if so."""
    parts = (reply.text, reply.message, reply.reason)
    if sum(map(len, parts)) > MAX_CHARS:
        return Invalid(f"longer than {MAX_CHARS} characters")
    return Invalid("control characters in the reply") if any(map(_HOSTILE.search, parts)) else None


def parse(text: str, game: Game, role: Role) -> Move:
    """Read one text in whichever grammar it is written."""
    if text.lstrip().startswith("{"):
        return _parse_json(text, game, role)
    if _OPENING.search(text):
        return _parse_tags(text, game, role)
    return Move(parse_action(text, game, role))


def parse_action(text: str, game: Game, role: Role) -> Act:
    """Read a bare action."""
    word, rest = split_word(text)
    if word in PROPOSING and rest:
        return parse_trade(rest, game, role)
    if not rest and word in WORDS:
        return WORDS[word]
    return Invalid("not a move: write accept, reject, wait or an offer")


def split_word(text: str) -> tuple[str, str]:
    """The first word, in lower case, and the rest, without final punctuation; both are empty where there is none."""
    word, *rest = text.strip().rstrip(" .!?").split(maxsplit=1) or [""]
    return word.lower(), rest[0] if rest else ""


def parse_trade(text: str, game: Game, role: Role) -> Propose | Invalid:
    """Read a trade, as one number or as two sides in either order."""
    text = text.strip().rstrip(" .!?")
    if _NUMBER.fullmatch(text) and (trade := game.offer(int(text))) is not None:
        return Propose(trade)
    sides: dict[bool, Bundle] = {}
    for own, content in split_sides(text, role):
        bundle = parse_bundle(content, game.resources)
        if isinstance(bundle, Invalid):
            return bundle
        if own in sides:
            return Invalid("one side of the trade is named twice")
        sides[own] = bundle
    if len(sides) != 2:
        return Invalid("a trade needs two sides: give ... get ...")
    return Propose(trade_of(role, sides[True], sides[False]))


def to_text(act: Act, game: Game, role: Role) -> str:
    """Write a move as a player would; `parse_action` gives it back."""
    if isinstance(act, Propose):
        return f"offer {trade_text(act.trade, game, role)}"
    return to_word(act).lower()


def to_tags(act: Act, message: str = "", reason: str = "") -> str:
    """Write a move in tags; `parse` gives it back."""
    trade = "NONE"
    if isinstance(act, Propose):
        trade = f"Player RED Gives {act.trade.red_gives} | Player BLUE Gives {act.trade.blue_gives}"
    answer = to_word(act) if isinstance(act, Accept | Reject) else "NONE"
    parts = {"reason": reason, ANSWER: answer, "message": message, TRADE: trade}
    return "\n".join(f"<{name}> {part} </{name}>" for name, part in parts.items())


def to_word(act: Act) -> str:
    """The move's word."""
    return type(act).__name__.upper()


def trade_text(trade: Trade, game: Game, role: Role) -> str:
    """A trade as `role` writes it."""
    number = game.number(trade)
    if number is not None:
        return str(number)
    give, get = (trade.red_gives, trade.blue_gives) if role == "red" else (trade.blue_gives, trade.red_gives)
    return f"give {give} get {get}"


def split_sides(text: str, role: Role) -> list[tuple[bool, str]]:
    """(whether it is what `role` gives, its content) of each side; nothing if there is text before the first."""
    matches = list(_SIDE.finditer(text))
    if not matches or text[: matches[0].start()].strip():
        return []
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return [
        (match[1].lower() == role if match[1] else match[2].lower() == "give", text[match.end() : end])
        for match, end in zip(matches, ends, strict=True)
    ]


def parse_bundle(text: str, resources: Sequence[str]) -> Bundle | Invalid:
    """Read amounts by resource: `X 5, Y: 2`, or `nothing`."""
    content = text.strip(" \t\r\n|,;")
    if content.lower() in ("", "nothing", "none"):
        return Bundle()
    amounts: dict[str, int] = {}
    for item in _BETWEEN.split(content):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            return Invalid("amounts are whole numbers from 0, as in: X 5, Y 2")
        name, amount = (match[1], match[2]) if match[1] else (match[4], match[3])
        resource = _resource(name, resources)
        if resource is None:
            return Invalid("unknown resource")
        if resource in amounts:
            return Invalid("one resource is named twice")
        amounts[resource] = int(amount)
    return Bundle.of(amounts)


def _resource(name: str, resources: Sequence[str]) -> str | None:
    return next((resource for resource in resources if resource.lower() == name.lower()), None)


def _parse_json(text: str, game: Game, role: Role) -> Move:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # `{` ten thousand times is a reply, too
        return Move(Invalid("not JSON"))
    action = data.get("action")
    if not isinstance(action, str):
        return Move(Invalid("JSON without an action"))
    message, reason = (value if isinstance(value := data.get(name), str) else "" for name in ("message", "reason"))
    if "give" in data or "get" in data:
        return Move(_json_trade(action, data, game, role), message, reason)
    return Move(parse_action(action, game, role), message, reason)


def _json_trade(action: str, data: Mapping[str, Any], game: Game, role: Role) -> Act:
    if action.strip().lower() not in PROPOSING:
        return Invalid("a trade without the action offer")
    sides = []
    for name in ("give", "get"):
        bundle = _json_bundle(data.get(name), game.resources)
        if bundle is None:
            return Invalid(f"{name!r} is no object of whole amounts from 0 by resource")
        sides.append(bundle)
    return Propose(trade_of(role, *sides))


def _json_bundle(value: Any, resources: Sequence[str]) -> Bundle | None:
    if not isinstance(value, dict):
        return None
    amounts: dict[str, int] = {}
    for name, amount in value.items():
        resource = _resource(name, resources)
        if resource is None or resource in amounts or type(amount) is not int or not 0 <= amount < 10**MAX_DIGITS:
            return None
        amounts[resource] = amount
    return Bundle.of(amounts)


def _parse_tags(text: str, game: Game, role: Role) -> Move:
    parts = sections(text)
    if isinstance(parts, Invalid):
        return Move(parts)
    message, reason = parts.get("message", ""), parts.get("reason", "")
    answer = parts.get(ANSWER, "NONE").rstrip(" .!?").lower()
    trade = parts.get(TRADE, "NONE")
    offered = trade.rstrip(" .!?").lower() not in ("none", "")
    if ANSWER not in parts and TRADE not in parts:
        return Move(Invalid("neither an answer nor a trade"), message, reason)
    if answer in ("accept", "reject"):
        note = "a trade beside the answer was ignored" if offered else ""
        return Move(WORDS[answer], message, reason, note)
    if answer not in ("none", "wait", "", *PROPOSING):
        return Move(Invalid("the answer is none of ACCEPT, REJECT, NONE"), message, reason)
    return Move(parse_trade(trade, game, role) if offered else Wait(), message, reason)


def sections(text: str) -> dict[str, str] | Invalid:
    """Tag to content, of the outermost tags: one that is quoted inside another is text."""
    parts: dict[str, str] = {}
    lowered, position = text.lower(), 0
    if len(lowered) != len(text):  # a few letters of other scripts grow; positions must stay comparable
        return Invalid("characters that change their length in lower case")
    while match := _OPENING.search(text, position):
        name = match[1].lower()
        end = lowered.find(f"</{name}>", match.end())
        if end < 0:
            return Invalid("a tag is not closed")
        if name in parts:
            return Invalid("a tag comes twice")
        parts[name] = text[match.end() : end].strip()
        position = end + len(name) + 3
    return parts
