"""Tables that never drop a game, and never call a pairing without winners a loss."""

import json

import dspy
import pytest

from programs.negotiation import Exchange, GameError, Sell, Ultimatum, build
from programs.negotiation.tournament import tournament
from sirius_dspy.errors import PromptTooLongError, RolloutError
from sirius_dspy.stats import wilson_interval
from sirius_dspy.testing import ScriptedLM, chat_reply

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)


@pytest.fixture(autouse=True)
def adapter():
    with dspy.context(adapter=CHAT):
        yield


def player(*actions, model="scripted/lm"):
    """A program that proposes its first action as long as nothing is offered, and answers with the second."""
    propose, answer = actions
    program = build()
    program.set_lm(
        ScriptedLM(lambda p: chat_reply(action=answer if "accept" in p.field("moves") else propose), model=model)
    )
    return program


def test_both_seats_of_every_pairing_are_played():
    table = tournament({"dear": player("PROPOSE 58", "ACCEPT"), "bot": "fair"}, Sell(), 3)
    assert [(p.red, p.blue) for p in table.pairings] == [
        ("dear", "dear"), ("dear", "bot"), ("bot", "dear"), ("bot", "bot"),
    ]  # fmt: skip
    assert all(pairing.started == 3 for pairing in table.pairings)


def test_cross_play_takes_each_seat_from_its_own_program():
    dear, cheap = player("PROPOSE 58", "ACCEPT", model="lm/dear"), player("PROPOSE 45", "ACCEPT", model="lm/cheap")
    table = tournament({"dear": dear, "cheap": cheap}, Sell(), 2)
    assert (table.of("dear", "cheap").price, table.of("cheap", "dear").price) == (58, 45)
    game = table.of("dear", "cheap").games[0]
    assert game.lms == {"red": "lm/dear", "blue": "lm/cheap"}
    assert [name for name, _ in dear.named_predictors()] == ["red", "blue", "base_red", "base_blue"]
    assert table.of("dear", "cheap").wins("red") == 2
    assert table.of("cheap", "dear").wins("red") == 0


def test_win_rates_are_over_decisive_games_and_null_where_there_are_none():
    table = tournament({"fair": "fair", "accepter": "accepter", "never": "never"}, Exchange(), 20)
    draws = table.of("fair", "fair")
    assert (draws.draws, draws.rate("deal").value) == (20, 1.0)
    assert draws.win_rate("red") is None
    assert draws.to_dict()["win_rate"] == {"red": None, "blue": None}
    wins = table.of("never", "accepter")
    assert (wins.wins("red"), wins.win_rate("red").value, wins.win_rate("blue").value) == (20, 1.0, 0.0)
    assert wins.win_rate("red")[1:] == wilson_interval(20, 20)
    assert wins.payoff("red").value == 15
    assert wins.traded == 35
    assert table.of("never", "fair").traded is None


def test_the_published_fault_of_normalising_in_place_is_not_made():
    """Wins of .3 and .3 are .5 and .5 of the decisive games, not .5 and .375."""
    table = tournament({"random": "random"}, Exchange(), 60, seed=5)
    pairing = table.of("random", "random")
    red, blue = pairing.wins("red"), pairing.wins("blue")
    assert 0 < pairing.draws < 60
    assert pairing.win_rate("red").value == red / (red + blue)
    assert pairing.win_rate("red").value + pairing.win_rate("blue").value == pytest.approx(1)
    assert red + blue + pairing.draws == 60


def test_equal_seeds_give_equal_tables():
    def table(seed):
        return tournament({"random": "random"}, Exchange(), 20, seed).to_dict()

    assert table(1) == table(1) != table(2)


def test_everything_that_was_started_is_counted():
    table = tournament({"mute": player("?", "?"), "fair": "fair", "never": "never"}, Ultimatum(), 4)
    mute = table.of("mute", "fair")
    assert mute.count("forfeit", "red") == mute.started == 4
    assert mute.count("forfeit", "blue") == 0
    assert (mute.invalid("red"), mute.invalid("blue")) == (1.0, 0.0)
    assert mute.payoff("red").value == mute.payoff("blue").value == -50
    assert mute.payoff("red", "raw").value == 0
    assert table.of("fair", "never").rate("rejected").value == 1.0


def test_runs_that_fail_are_games_without_a_deal():
    broken = build()

    def fail(prompt):
        raise PromptTooLongError("800 tokens, expected at most 512")

    broken.set_lm(ScriptedLM(fail))
    pairing = tournament({"broken": broken, "fair": "fair"}, Ultimatum(), 3).of("broken", "fair")
    assert pairing.count("failed") == 3
    assert pairing.payoff("red").value == -50
    assert pairing.draws == 3
    assert pairing.invalid("red") is None


def test_void_games_of_arena_mode_are_counted_and_have_no_payoff():
    pairing = tournament({"mute": player("?", "?")}, Sell(rules="arena"), 3).of("mute", "mute")
    assert (pairing.count("void"), pairing.payoff("red"), pairing.draws) == (3, None, 3)
    assert pairing.win_rate("red") is None


def test_the_temperature_reaches_the_lms_and_samples_differ():
    lm = ScriptedLM(lambda p: chat_reply(action="PROPOSE 55"))
    program = build()
    program.set_lm(lm)
    tournament({"agent": program, "accepter": "accepter"}, Sell(), 5, temperature=0.7)
    first_moves = [p for p in lm.requests if p.field("history") == "Nothing yet."]
    assert {p.temperature for p in lm.requests} == {0.7}
    assert len({p.seed for p in first_moves}) == len(first_moves) == 10


def test_tables_are_readable():
    table = tournament({"dear": player("PROPOSE 58", "ACCEPT"), "never": "never"}, Sell(), 3)
    assert json.loads(json.dumps(table.to_dict())) == table.to_dict()
    lines = table.to_markdown().splitlines()
    assert len(lines) == 2 + 2 * 4
    assert lines[2].startswith("| dear | RED | dear | 3 | 1.00 [0.44, 1.00] | 1.00 [0.44, 1.00] of 3 | 3-0-0 | 8.00 [")
    assert "| - of 0 |" in lines[-1]


@pytest.mark.parametrize(
    ("players", "games", "message"),
    [({}, 3, "0 players"), ({"fair": "fair"}, 0, "0 games"), ({"x": "fairest"}, 1, r"'x' is 'fairest'.*'boulware'")],
)
def test_tournaments_that_cannot_be_held(players, games, message):
    with pytest.raises(GameError, match=message):
        tournament(players, Exchange(), games)


def test_a_pairing_that_was_not_played():
    with pytest.raises(GameError, match=r"'fair' against 'never' was not played"):
        tournament({"fair": "fair"}, Exchange(), 1).of("fair", "never")


def test_an_lm_without_credit_ends_the_tournament():
    program = build()
    program.set_lm(ScriptedLM([dspy.LMAuthError("no key")] * 9))
    with pytest.raises(RolloutError, match="no key"):
        tournament({"agent": program}, Exchange(), 2)
