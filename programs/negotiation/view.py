"""What one player may know: the rules, its own facts and turns, and what the opponent said and did in public."""

from __future__ import annotations

from dataclasses import dataclass

from programs.negotiation.engine import State, open_kinds
from programs.negotiation.game import Game
from programs.negotiation.parse import to_text, trade_text
from programs.negotiation.values import ROLES, Act, Bundle, Invalid, Kind, Role, Trade


@dataclass(frozen=True)
class Seen:
    """An earlier turn as this player may see it.

    Attributes:
        act: An opponent's invalid move comes without its reason, which could tell what the opponent holds.
        reason: Only of one's own turns.
    """

    t: int
    role: Role
    act: Act
    message: str
    reason: str = ""


@dataclass(frozen=True)
class View:
    """The position of the player whose turn it is.

    Attributes:
        standing: What can be accepted.
        kinds: The moves there are now.
        proposals_left: `None` for no limit.
        rules: In words.
        facts: What only this player knows, in words.
    """

    game: str
    role: Role
    t: int
    turns: int
    holdings: Bundle
    standing: Trade | None
    kinds: tuple[Kind, ...]
    proposals_left: int | None
    rules: str
    facts: str
    history: tuple[Seen, ...]


@dataclass(frozen=True)
class Briefing:
    """A position in words, as an LM gets it; other engines can make one, too."""

    rules: str
    history: str
    moves: str


def view_of(state: State) -> View:
    """What the player to move may know."""
    game, role = state.game, state.to_move
    made = state.proposed[ROLES.index(role)]
    history = []
    for turn in state.log:
        is_own = turn.role == role
        act = turn.act if is_own or not isinstance(turn.act, Invalid) else Invalid("")
        history.append(Seen(turn.t, turn.role, act, turn.message, turn.reason if is_own else ""))
    return View(
        game=game.name,
        role=role,
        t=state.t,
        turns=game.turns,
        holdings=game.start(role),
        standing=state.standing,
        kinds=open_kinds(state),
        proposals_left=None if game.cap is None else max(0, game.cap - made),
        rules=game.describe(role),
        facts=game.facts(role),
        history=tuple(history),
    )


def briefing(view: View, game: Game) -> Briefing:
    """The view in words, in which all trades are told from the player's side and as it would write them."""
    lines = [_line(seen, view.role, game) for seen in view.history]
    return Briefing(
        rules=f"{view.rules} {view.facts}".strip(),
        history="\n".join(lines) or "Nothing yet.",
        moves=f"Turn {view.t} of {view.turns}.{_left(view)} {_moves(view, game)}",
    )


def _line(seen: Seen, role: Role, game: Game) -> str:
    who = "You" if seen.role == role else seen.role.upper()
    did = to_text(seen.act, game, role)
    if isinstance(seen.act, Invalid):
        did = f"no valid move ({seen.act.reason})" if seen.act.reason else "no valid move"
    said = f' and said "{_one_line(seen.message)}"' if seen.message.strip() else ""
    thought = f' (you thought "{_one_line(seen.reason)}")' if seen.reason.strip() else ""
    return f"{who}: {did}{said}{thought}"


def _one_line(text: str) -> str:
    """A line of its own could pass for another turn."""
    return " ".join(text.split())


def _left(view: View) -> str:
    return "" if view.proposals_left is None else f" Offers left: {view.proposals_left}."


def _moves(view: View, game: Game) -> str:
    """A line each, proposals last: what follows a move in the prompt, small LMs write after it."""
    words = []
    if "accept" in view.kinds and view.standing is not None:
        words.append(f"accept (that is: {trade_text(view.standing, game, view.role)})")
    words += [kind for kind in view.kinds if kind in ("reject", "wait")]
    if "propose" in view.kinds:
        words.append(_form(view, game))
    return "Your moves:\n" + "\n".join(words)


def _form(view: View, game: Game) -> str:
    """How to write a proposal; in the exchange an even trade, so that copying it earns nothing."""
    if game.offer(0) is not None:
        return "offer and a number"
    most, *rest = sorted(game.resources, key=lambda resource: -view.holdings[resource])
    return f"offer give {most} 3 get {rest[0]} 3"
