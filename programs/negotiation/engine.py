"""One move after the other: pure functions from state to state, which never raise on what a player wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace

from programs.negotiation.arena import read_arena
from programs.negotiation.errors import GameError
from programs.negotiation.game import Game
from programs.negotiation.parse import read
from programs.negotiation.values import (
    OPEN,
    ROLES,
    Accept,
    Act,
    Invalid,
    Kind,
    Payoffs,
    Propose,
    Reject,
    Reply,
    Role,
    Status,
    Trade,
    Turn,
    Wait,
)

NOT_EXECUTABLE = "not executable"
"""The one reason for a trade that somebody cannot pay, so that it does not tell who."""


@dataclass(frozen=True)
class State:
    """A game under way, or finished.

    Attributes:
        t: The coming move, from 1; once the game is over, the last one.
        standing: The trade that can be accepted now: what the opponent proposed in the move before.
        proposed: Valid proposals so far, of RED and BLUE.
        strikes: Invalid moves so far, of RED and BLUE.
        log: All turns.
    """

    game: Game
    t: int = 1
    standing: Trade | None = None
    proposed: tuple[int, int] = (0, 0)
    strikes: tuple[int, int] = (0, 0)
    status: Status = OPEN
    log: tuple[Turn, ...] = ()

    @property
    def to_move(self) -> Role:
        """RED has the odd moves."""
        return ROLES[(self.t - 1) % 2]

    @property
    def over(self) -> bool:
        """Whether the game has ended."""
        return self.status.kind != "open"

    @property
    def payoffs(self) -> Payoffs | None:
        """What both got; `None` of a game that is void.

        Raises:
            GameError: The game is not over.
        """
        if not self.over:
            raise GameError(f"The game is open at move {self.t} of {self.game.turns}; play it to its end first.")
        return None if self.status.kind == "void" else self.game.payoffs(self.status)


def open_kinds(state: State) -> tuple[Kind, ...]:
    """The moves that the rules allow now, not counting whether a proposal can be executed."""
    possible = {"accept": state.standing is not None, "propose": not _is_capped(state)}
    return tuple(kind for kind in state.game.kinds(state.t) if possible.get(kind, True))


def legal(state: State, act: Act) -> Act:
    """The act itself where the rules allow it, else `Invalid` with the reason."""
    if isinstance(act, Invalid):
        return act
    if state.game.is_arena:
        return act if act != Accept() or state.standing is not None else Invalid("nothing to accept")
    if isinstance(act, Accept) and state.standing is None:
        return Invalid("nothing to accept")
    if isinstance(act, Propose) and _is_capped(state):
        return Invalid(f"no proposals left: each may make {state.game.cap}")
    kind = type(act).__name__.lower()
    if kind not in state.game.kinds(state.t):
        return Invalid(f"{kind} is no move now")
    return _legal_trade(state.game, act) if isinstance(act, Propose) else act


def step(state: State, reply: Reply | str) -> State:
    """Play one move of the player whose turn it is.

    Args:
        state: An open game.
        reply: Any text, or an action with message and reason beside it.

    Raises:
        GameError: The game is over. No text is ever an error.
    """
    if state.over:
        raise GameError(f"The game ended as {state.status.kind!r} at move {state.t}; start another one.")
    given = Reply(reply) if isinstance(reply, str) else reply
    role = state.to_move
    move = read_arena(given, state.game, role) if state.game.is_arena else read(given, state.game, role)
    act = legal(state, move.act)
    if state.game.is_arena and state.t == 1 and isinstance(act, Reject):
        act = Invalid("nothing to reject")
    turn = Turn(state.t, role, given, act, move.message, move.reason, move.note)
    return _advance(_apply(replace(state, log=(*state.log, turn)), act))


def _apply(state: State, act: Act) -> State:
    role = state.to_move
    match act:
        case Propose(trade):
            return replace(state, standing=trade, proposed=_count(state.proposed, role))
        case Accept():
            return replace(state, status=Status("deal", role, state.standing))
        case Reject():
            return replace(state, status=Status("rejected", role))
        case Wait():
            return replace(state, standing=None)
        case Invalid(reason):
            return _struck(state, role, reason)


def _struck(state: State, role: Role, reason: str) -> State:
    if state.game.is_arena:
        return replace(state, status=Status("void", role, reason=reason))
    strikes = _count(state.strikes, role)
    lost = strikes[ROLES.index(role)] > state.game.max_strikes
    return replace(state, standing=None, strikes=strikes, status=Status("forfeit", role) if lost else state.status)


def _advance(state: State) -> State:
    if state.over:
        return state
    if state.t == state.game.turns:
        return replace(state, status=Status("timeout"))
    return replace(state, t=state.t + 1)


def _legal_trade(game: Game, act: Propose) -> Act:
    if problem := game.problem(act.trade):
        return Invalid(problem)
    return act if game.executable(act.trade) else Invalid(NOT_EXECUTABLE)


def _is_capped(state: State) -> bool:
    cap = state.game.cap
    return not state.game.is_arena and cap is not None and state.proposed[ROLES.index(state.to_move)] >= cap


def _count(counts: tuple[int, int], role: Role) -> tuple[int, int]:
    return (counts[0] + (role == "red"), counts[1] + (role == "blue"))
