"""The players in OpenSpiel's `bargaining`; most of it is skipped where OpenSpiel is not installed."""

import sys

import dspy
import pytest

from programs.negotiation import GameError, build
from programs.negotiation.openspiel import AGREE, bargain
from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.testing import ScriptedLM, chat_reply


def test_without_openspiel_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sirius-dspy\[openspiel\]'"):
        bargain("random", "random", 0)


@pytest.mark.parametrize("instance", [-1, 1000, 1.0, True])
def test_there_are_a_thousand_instances(instance):
    with pytest.raises(GameError, match="from 0 to 999"):
        bargain("random", "random", instance)


@pytest.fixture
def pyspiel():
    return pytest.importorskip("pyspiel")


def player(*actions):
    """A program whose LM makes these moves, the last one for ever, and the LM."""
    moves = iter(actions)
    lm = ScriptedLM(lambda p: chat_reply(reason="secret", message="hi", action=next(moves, actions[-1])))
    program = build()
    program.set_lm(lm)
    return program, lm


@pytest.fixture(autouse=True)
def adapter():
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        yield


# Instance 3 has Book 1, Hat 4, Basketball 1; RED values a Book 9, a Basketball 1; BLUE a Book and a Hat 2.


def test_an_offer_names_what_the_proposer_gets(pyspiel):
    (red, lm), (blue, other) = player("PROPOSE get Book 1"), player("ACCEPT")
    game = bargain(red, blue, 3)
    assert (game.payoffs, game.invalid, game.agreed, game.forfeited) == ((9, 8), (0, 0), True, None)
    assert "Book 9" in lm.requests[0].field("rules")
    assert "Hat 2" in other.requests[0].field("rules")
    assert "Book 9" not in other.requests[0].text
    assert other.requests[0].field("history") == 'RED: offer get Basketball 1, Hat 4 and said "hi"'
    assert "secret" not in other.requests[0].field("history")


def test_the_history_is_openspiels(pyspiel):
    game = bargain("search", "random", 17, seed=1)
    state = pyspiel.load_game("bargaining").new_initial_state()
    for action in game.history:
        state.apply_action_with_legality_check(action)
    assert state.is_terminal()
    assert tuple(state.returns()) == game.payoffs
    assert bargain("random", "random", 17, seed=1) == bargain("random", "random", 17, seed=1)
    assert len({bargain("random", "random", 17, seed=n).history for n in range(5)}) > 1


@pytest.mark.parametrize(
    "text",
    [
        *("ACCEPT", "", "WAIT", "PROPOSE", "PROPOSE Book 1", "PROPOSE get Book 2", "PROPOSE get Car 1", "PROPOSE 5"),
        *("PROPOSE give Book 1", "PROPOSE give Book 1 get Hat 4", "PROPOSE get Hat 1,000", "PROPOSE get Hat -1"),
        *("\x00PROPOSE get Book 1", "PROPOSE get" + " " * 100_000 + "Book 1"),
    ],
)
def test_an_invalid_move_demands_everything(pyspiel, text):
    game = bargain(player(text, "ACCEPT")[0], player("PROPOSE get Hat 4")[0], 3)
    assert game.invalid == (1, 0)
    assert (game.payoffs, game.agreed) == ((10, 8), True)


def test_an_invalid_demand_gives_nothing_away(pyspiel):
    game = bargain(player("?")[0], player("ACCEPT")[0], 3)
    assert (game.payoffs, game.invalid) == ((10, 0), (1, 0))


def test_the_third_invalid_move_forfeits(pyspiel):
    game = bargain(player("?")[0], player("PROPOSE get Hat 4")[0], 3)
    assert (game.payoffs, game.invalid, game.forfeited, game.agreed) == ((0, 0), (3, 0), "red", False)


def test_ten_turns_without_agreement_are_worth_nothing(pyspiel):
    stubborn = "PROPOSE get Book 1, Hat 4, Basketball 1"
    game = bargain(player(stubborn)[0], player(stubborn)[0], 3)
    assert (game.payoffs, game.agreed, len(game.history)) == ((0, 0), False, 11)
    assert AGREE not in game.history


def test_unknown_players(pyspiel):
    with pytest.raises(GameError, match="'deep blue'"):
        bargain("deep blue", "random", 0)
