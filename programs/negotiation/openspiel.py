"""The same players at OpenSpiel's `bargaining`: proof that what they learnt is not tied to our own engine.

Two players divide a pool of three kinds of items that each values privately, so that the pool is worth 10 to both. They
make offers in turn until one agrees, or ten offers were made; without agreement both get 0. It is general-sum.

References:
    OpenSpiel (arXiv:1908.09453), game `bargaining`, after Lewis et al., Deal or No Deal? (arXiv:1706.05125).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from programs.negotiation.errors import GameError
from programs.negotiation.parse import PROPOSING, parse_bundle, split_sides, split_word, unreadable
from programs.negotiation.player import ask
from programs.negotiation.program import NegotiationGame
from programs.negotiation.values import ROLES, Bundle, Invalid, Reply, Role, other
from programs.negotiation.view import Briefing
from sirius_dspy.errors import MissingDependencyError

AGREE = 120
"""OpenSpiel's action; all smaller ones are offers."""

INSTANCES = 1000
TURNS = 10
MAX_STRIKES = 2

Entrant = NegotiationGame | str
"""A program, which plays a seat with its predictor of that role, or `search` or `random`."""


@dataclass(frozen=True)
class Offer:
    """A move on the table.

    Attributes:
        keeps: What the player who made it wants to have; the rest is for the other one.
        valid: An invalid move demands everything.
    """

    role: Role
    keeps: Bundle
    message: str = ""
    valid: bool = True


@dataclass(frozen=True)
class Position:
    """What a player may know, and the state that search looks into.

    Attributes:
        values: What one item of each kind is worth to this player.
        offers: All moves so far.
        state: A `pyspiel.State`; it is not changed.
    """

    role: Role
    pool: Bundle
    values: Bundle
    offers: tuple[Offer, ...]
    state: Any


@dataclass(frozen=True)
class Bargain:
    """A finished game.

    Attributes:
        instance: Which of OpenSpiel's 1000.
        history: OpenSpiel's actions in order, the instance first; applying them again gives the state again.
        payoffs: 0 to 10 each, of RED and BLUE.
        invalid: Invalid moves, of RED and BLUE.
        forfeited: Who made too many of them; then both get 0, as without agreement.
    """

    instance: int
    history: tuple[int, ...]
    payoffs: tuple[float, float]
    invalid: tuple[int, int]
    forfeited: Role | None = None

    @property
    def agreed(self) -> bool:
        """Whether one agreed to the other's offer."""
        return self.history[-1] == AGREE


Bargainer = Callable[[Position], Reply]
"""Whoever makes moves."""


def bargain(red: Entrant, blue: Entrant, instance: int, seed: int = 0) -> Bargain:
    """Play one game.

    An invalid move is a strike and stands for demanding the whole pool, since the game has no pass and that offer gives
    nothing away; one strike more than our own games forgive forfeits.

    Args:
        red: Moves first.
        blue: Moves second.
        instance: 0 to 999: which pool and values. Train on some, test on others.
        seed: Of random play. Search takes it, too, but OpenSpiel 2.0.2 does not repeat itself with it: what it played
            is in the history.

    Raises:
        GameError: There is no such instance or player.
        MissingDependencyError: OpenSpiel is not installed.
    """
    if type(instance) is not int or not 0 <= instance < INSTANCES:
        raise GameError(f"Instance {instance!r} of OpenSpiel's bargaining, expected a whole number from 0 to 999.")
    spiel = _pyspiel()
    players = (_bargainer(red, "red", seed, spiel), _bargainer(blue, "blue", seed, spiel))
    state = spiel.load_game("bargaining").new_initial_state()
    state.apply_action_with_legality_check(instance)
    offers: list[Offer] = []
    invalid = [0, 0]
    while not state.is_terminal():
        player = state.current_player()
        position = position_of(state, tuple(offers))
        reply = players[player](position)
        action = read_action(reply, position)
        if isinstance(action, Invalid):
            invalid[player] += 1
            if invalid[player] > MAX_STRIKES:
                return Bargain(instance, tuple(state.history()), (0.0, 0.0), (invalid[0], invalid[1]), ROLES[player])
            offers.append(Offer(position.role, position.pool, valid=False))
            action = _legal_offers(position)[position.pool]
        elif action != AGREE:
            keeps = {number: keeps for keeps, number in _legal_offers(position).items()}[action]
            offers.append(Offer(position.role, keeps, reply.message))
        state.apply_action_with_legality_check(action)
    first, second = state.returns()
    return Bargain(instance, tuple(state.history()), (first, second), (invalid[0], invalid[1]))


def position_of(state: Any, offers: tuple[Offer, ...]) -> Position:
    """What the player to move may know."""
    player = state.current_player()
    lines = dict(line.split(": ", 1) for line in state.information_state_string(player).splitlines()[:2])
    return Position(ROLES[player], _bundle(lines["Pool"]), _bundle(lines["My values"]), offers, state)


def read_action(reply: Reply, position: Position) -> int | Invalid:
    """OpenSpiel's action for a reply: accept, or offer with what the player wants to get, as `offer get Hat 2`."""
    if (problem := unreadable(reply)) is not None:
        return problem
    word, rest = split_word(reply.text)
    if word == "accept" and not rest:
        return AGREE if AGREE in position.state.legal_actions() else Invalid("nothing to accept")
    if word not in PROPOSING:
        return Invalid("not a move: write accept, or offer get and what you want")
    sides = split_sides(rest, position.role)
    if [gives for gives, _ in sides] != [False]:
        return Invalid("an offer names what you get, and nothing else")
    keeps = parse_bundle(sides[0][1], [name for name, _ in position.pool.amounts])
    if isinstance(keeps, Invalid):
        return keeps
    return _legal_offers(position).get(keeps, Invalid("more than there is"))


def briefing(position: Position) -> Briefing:
    """The position in words, in the fields that our own games have."""
    role, opponent = position.role, other(position.role).upper()
    accept = f"accept (you get {position.pool - position.offers[-1].keeps}), " if position.offers else ""
    return Briefing(
        rules=(
            f"You are {role.upper()}. You and {opponent} divide: {position.pool}. One of each is worth to you: "
            f"{position.values}. Your score is the worth of what you get; without a deal both get 0. offer get says "
            f"what you want, and {opponent} gets the rest. There are {TURNS} turns."
        ),
        history="\n".join(_line(offer, position) for offer in position.offers) or "Nothing yet.",
        moves=f"Turn {len(position.offers) + 1} of {TURNS}. Moves: {accept}offer get {position.pool}.",
    )


def _line(offer: Offer, position: Position) -> str:
    who = "You" if offer.role == position.role else offer.role.upper()
    gets = offer.keeps if offer.role == position.role else position.pool - offer.keeps
    did = f"offer get {gets}" if offer.valid else "no valid move, which demands everything"
    said = " ".join(offer.message.split())
    return f'{who}: {did} and said "{said}"' if said else f"{who}: {did}"


def _bargainer(entrant: Entrant, role: Role, seed: int, spiel: Any) -> Bargainer:
    if isinstance(entrant, NegotiationGame):
        predictor = entrant.red if role == "red" else entrant.blue
        return lambda position: ask(predictor, briefing(position))
    if entrant == "random":
        dice = random.Random(f"{seed}/{role}")
        return lambda position: _reply(dice.choice(position.state.legal_actions()), position)
    if entrant == "search":
        evaluator = spiel.RandomRolloutEvaluator(2, seed)
        most_visited = spiel.ISMCTSFinalPolicyType.MAX_VISIT_COUNT
        search = spiel.ISMCTSBot(seed, evaluator, 2.0, 200, -1, most_visited, False, False)
        return lambda position: _reply(search.step(position.state), position)
    raise GameError(f"Player {entrant!r}, expected a NegotiationGame, 'search' or 'random'.")


def _reply(action: int, position: Position) -> Reply:
    if action == AGREE:
        return Reply("accept")
    keeps = {number: keeps for keeps, number in _legal_offers(position).items()}[action]
    return Reply(f"offer get {keeps}")


def _legal_offers(position: Position) -> dict[Bundle, int]:
    """What the player would keep, to OpenSpiel's action."""
    state, player = position.state, ROLES.index(position.role)
    return {
        _bundle(state.action_to_string(player, action).removeprefix("Offer: ")): action
        for action in state.legal_actions()
        if action < AGREE
    }


def _bundle(text: str) -> Bundle:
    """Amounts as OpenSpiel prints them: `Book: 1, Hat: 0`."""
    return Bundle.of({name: int(amount) for name, amount in (item.split(": ") for item in text.split(", "))})


def _pyspiel() -> Any:
    try:
        import pyspiel  # type: ignore[import-not-found, import-untyped, unused-ignore]  # a binary without stubs
    except ImportError as error:
        raise MissingDependencyError(
            "OpenSpiel's bargaining needs the package open_spiel. Run `pip install 'sirius-dspy[openspiel]'`."
        ) from error
    return pyspiel
