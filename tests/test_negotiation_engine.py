"""Every row of the games' specification, in strict and in arena mode, and what the logs promise."""

import json
from dataclasses import replace

import pytest

from programs.negotiation.configs import game_from, symmetric_exchange
from programs.negotiation.engine import State, legal, step
from programs.negotiation.errors import GameError, GameLogError
from programs.negotiation.exchange import Exchange
from programs.negotiation.log import replay, to_log
from programs.negotiation.parse import parse
from programs.negotiation.sell import Sell
from programs.negotiation.ultimatum import Ultimatum
from programs.negotiation.values import Accept, Bundle, Invalid, Propose, Reject, Reply, Trade, Wait


def tags(answer="NONE", trade="NONE", resources=None, reason="", message=""):
    own = "" if resources is None else f"<my resources> {resources} </my resources>\n"
    return (
        f"{own}<reason> {reason} </reason>\n<player answer> {answer} </player answer>\n<message> {message} </message>\n"
        f"<newly proposed trade> {trade} </newly proposed trade>"
    )


def trade(red, blue):
    return tags(trade=f"Player RED Gives {red} | Player BLUE Gives {blue}")


def price(number):
    return trade("X: 1", f"ZUP: {number}")


def share(dollars):
    return trade(f"Dollars: {dollars}", "Dollars: 0")


ACCEPT, REJECT, WAIT = tags("ACCEPT"), tags("REJECT"), tags()
EVEN = trade("X: 10", "Y: 10")


def play(game, *texts):
    """Play the texts, and go on waiting until the game ends or, in games without waiting, as far as texts go."""
    state = State(game)
    for text in texts:
        state = step(state, text)
    return state


def played_out(game, *texts, then=WAIT):
    state = play(game, *texts)
    while not state.over:
        state = step(state, then)
    return state


def arena(game):
    return replace(game, rules="arena")


def held(state):
    return tuple(tuple(state.game.holdings(role, state.status).to_dict().values()) for role in ("red", "blue"))


def invalid_roles(state):
    return [turn.role for turn in state.log if isinstance(turn.act, Invalid)]


def reasons(state):
    return [turn.act.reason for turn in state.log if isinstance(turn.act, Invalid)]


EXCHANGE, ULTIMATUM, SELL = Exchange(), Ultimatum(), Sell()
BOTH = [EXCHANGE, arena(EXCHANGE)]


# Resource exchange


@pytest.mark.parametrize("game", BOTH)
def test_e1_an_even_trade_is_a_draw(game):
    state = play(game, EVEN, ACCEPT)
    assert (state.status.kind, state.status.by) == ("deal", "blue")
    assert held(state) == ((15, 15), (15, 15))
    assert state.payoffs.raw == state.payoffs.sirius == (0, 0)


@pytest.mark.parametrize("game", BOTH)
def test_e2_what_one_wins_the_other_loses(game):
    assert play(game, trade("X: 10", "Y: 12"), ACCEPT).payoffs.raw == (2, -2)


def test_e3_more_than_red_holds():
    moves = trade("X: 1000", "Y: 1"), ACCEPT
    state = play(EXCHANGE, *moves)
    assert not state.over
    assert invalid_roles(state) == ["red", "blue"]
    assert reasons(state) == ["not executable", "nothing to accept"]
    original = play(arena(EXCHANGE), *moves)
    assert original.game.holdings("red", original.status)["X"] == -975


def test_e4_negative_amounts():
    moves = trade("X: -10", "Y: 10"), ACCEPT
    assert invalid_roles(play(EXCHANGE, *moves)) == ["red", "blue"]
    assert held(play(arena(EXCHANGE), *moves)) == ((35, 15), (-5, 15))


def test_e5_unknown_resource():
    moves = trade("Z: 3", "Y: 10"), ACCEPT
    assert reasons(play(EXCHANGE, *moves))[0] == "unknown resource"
    original = play(arena(EXCHANGE), *moves)
    assert original.game.holdings("red", original.status)["Z"] == -3


def test_e6_more_than_blue_holds_has_the_same_reason():
    moves = trade("X: 10", "Y: 26"), ACCEPT
    assert reasons(play(EXCHANGE, *moves)) == ["not executable", "nothing to accept"]
    assert play(arena(EXCHANGE), *moves).status.kind == "deal"


@pytest.mark.parametrize(
    "moves",
    [(ACCEPT,), (WAIT, ACCEPT), (EVEN, WAIT, WAIT, ACCEPT)],
    ids=["e7 at once", "e8 after waiting", "e9 a stale offer"],
)
def test_e7_to_e9_nothing_to_accept(moves):
    state = play(EXCHANGE, *moves)
    assert not state.over
    assert reasons(state) == ["nothing to accept"]
    assert play(arena(EXCHANGE), *moves).status.kind == "void"


@pytest.mark.parametrize("game", BOTH)
def test_e10_accept_beside_a_trade_of_ones_own(game):
    state = play(game, EVEN, tags("ACCEPT", "Player RED Gives X: 25 | Player BLUE Gives Y: 1"))
    assert state.status.trade == Trade(Bundle.of({"X": 10}), Bundle.of({"Y": 10}))
    assert "ignored" in state.log[-1].note
    assert state.log[0].note == ""


@pytest.mark.parametrize("game", BOTH)
def test_e11_nobody_accepts(game):
    state = played_out(game, *[EVEN] * 6)
    assert (state.status.kind, state.payoffs.raw, len(state.log)) == ("timeout", (0, 0), 8)


def test_e12_a_fourth_proposal():
    moves = [EVEN, WAIT] * 3 + [EVEN, ACCEPT]
    state = play(EXCHANGE, *moves)
    assert reasons(state) == ["no proposals left: each may make 3", "nothing to accept"]
    assert state.status.kind == "timeout"
    assert play(arena(EXCHANGE), *moves).status.kind == "deal"


@pytest.mark.parametrize("word", ["Accept", "accept."])
def test_e13_other_spellings(word):
    assert play(EXCHANGE, EVEN, tags(word)).status.kind == "deal"
    assert play(EXCHANGE, EVEN, word).status.kind == "deal"
    assert played_out(arena(EXCHANGE), EVEN, tags(word)).status.kind == "timeout"
    assert play(arena(EXCHANGE), EVEN, word).status.kind == "deal"  # our grammar is none of the original's


def test_e14_none_in_lower_case():
    assert play(EXCHANGE, tags(trade="None")).log[0].act == Wait()
    assert play(arena(EXCHANGE), tags(trade="None")).status.kind == "void"


@pytest.mark.parametrize(("echo", "arena_kind"), [("X: 99, Y: 1", "deal"), ("X: 25, Y: 5.", "void")])
def test_e15_the_echo_of_own_resources(echo, arena_kind):
    offer = tags(trade="Player RED Gives X: 10 | Player BLUE Gives Y: 10", resources=echo)
    assert held(play(EXCHANGE, offer, ACCEPT)) == ((15, 15), (15, 15))
    state = State(arena(EXCHANGE))
    for text in (offer, ACCEPT):
        state = state if state.over else step(state, text)
    assert state.status.kind == arena_kind


@pytest.mark.parametrize("game", BOTH)
def test_e16_sides_in_the_other_order(game):
    turned = tags(trade="Player BLUE Gives Y: 10 | Player RED Gives X: 10")
    assert play(game, turned).log[0].act == play(game, EVEN).log[0].act


def test_e16_in_the_typed_grammar():
    assert play(EXCHANGE, "PROPOSE get Y 8 give X 5").standing == play(EXCHANGE, "propose give X 5 get Y 8.").standing


def test_e17_fractions():
    assert invalid_roles(play(EXCHANGE, trade("X: 2.5", "Y: 1"))) == ["red"]
    assert play(arena(EXCHANGE), trade("X: 2.5", "Y: 1")).status.kind == "void"


@pytest.mark.parametrize("nothing", ["", "nothing", "Y: 0"])
def test_e18_a_gift(nothing):
    state = play(EXCHANGE, trade("X: 2", nothing), ACCEPT)
    assert state.payoffs.raw == (-2, 2)
    assert play(arena(EXCHANGE), trade("X: 2", "")).status.kind == "void"


def test_e19_all_zero_or_empty():
    for text in (trade("X: 0", "Y: 0"), trade("", ""), "PROPOSE give nothing get nothing"):
        assert reasons(play(EXCHANGE, text)) == ["both sides are empty"]
    assert held(play(arena(EXCHANGE), trade("X: 0", "Y: 0"), ACCEPT)) == ((25, 5), (5, 25))
    assert play(arena(EXCHANGE), trade("", "")).status.kind == "void"


@pytest.mark.parametrize("text", ["", "I would like some Y, please. ACCEPT is a nice word.", "   \n"])
def test_e20_free_text(text):
    assert invalid_roles(play(EXCHANGE, text)) == ["red"]
    assert play(arena(EXCHANGE), text).status.kind == "void"


def test_e21_the_third_invalid_move_forfeits():
    state = play(EXCHANGE, "?", WAIT, "?", WAIT, "?")
    assert (state.status.kind, state.status.by) == ("forfeit", "red")
    assert state.strikes == (3, 0)
    assert state.payoffs.raw == state.payoffs.sirius == (0, 0)
    assert play(replace(EXCHANGE, max_strikes=0), "?").status.kind == "forfeit"


def test_e22_tags_quoted_in_the_reason():
    quoting = tags(reason="should I say <player answer> ACCEPT </player answer> here?")
    assert play(EXCHANGE, EVEN, quoting).log[-1].act == Wait()
    assert play(arena(EXCHANGE), EVEN, quoting).status.kind == "deal"


# Ultimatum

ULTIMATA = [ULTIMATUM, arena(ULTIMATUM)]


@pytest.mark.parametrize("game", ULTIMATA)
def test_u1_a_split(game):
    state = play(game, share(40), ACCEPT)
    assert (state.payoffs.raw, state.payoffs.sirius) == ((60, 40), (10, -10))


def test_u2_a_rejection():
    state = play(ULTIMATUM, share(40), REJECT)
    assert (state.status.kind, state.status.by) == ("rejected", "blue")
    assert (state.payoffs.raw, state.payoffs.sirius) == ((0, 0), (-50, -50))
    assert play(arena(ULTIMATUM), share(40), REJECT).payoffs.raw == (100, 0)


def test_u3_both_propose_to_the_end():
    state = play(ULTIMATUM, *[share(40)] * 8)
    assert (state.status.kind, invalid_roles(state)) == ("timeout", ["blue"])
    assert state.payoffs.sirius == (-50, -50)
    assert play(arena(ULTIMATUM), *[share(40)] * 8).payoffs.raw == (100, 0)


def test_u4_more_than_the_pot():
    assert reasons(play(ULTIMATUM, share(150))) == ["not executable"]
    assert play(arena(ULTIMATUM), share(150), ACCEPT).payoffs.raw == (-50, 150)


@pytest.mark.parametrize("answer", [ACCEPT, REJECT])
def test_u5_nothing_to_answer(answer):
    assert invalid_roles(play(ULTIMATUM, answer)) == ["red"]
    assert play(arena(ULTIMATUM), answer).status.kind == "void"


@pytest.mark.parametrize("game", ULTIMATA)
def test_u6_blue_may_propose(game):
    assert play(game, share(10), share(60), ACCEPT).payoffs.raw == (40, 60)


@pytest.mark.parametrize("game", ULTIMATA)
def test_u7_nothing_for_blue(game):
    state = play(game, share(0), ACCEPT)
    assert (state.status.kind, state.payoffs.raw) == ("deal", (100, 0))


def test_u8_an_odd_number_of_turns():
    game = replace(ULTIMATUM, turns=7)
    state = play(game, *[share(40)] * 7)
    assert (state.status.kind, invalid_roles(state), state.payoffs.raw) == ("timeout", ["red"], (0, 0))
    original = play(arena(game), *[share(40)] * 7)
    assert (original.status.kind, original.payoffs.raw) == ("timeout", (100, 0))


def test_u9_blue_has_nothing_to_give():
    offer = trade("Dollars: 40", "Dollars: 5")
    assert invalid_roles(play(ULTIMATUM, offer)) == ["red"]
    assert play(arena(ULTIMATUM), offer, ACCEPT).payoffs.raw == (65, 35)


def test_u10_a_thousands_comma_is_never_one():
    game = replace(ULTIMATUM, pot=1000)
    for text in (share("1,000"), "PROPOSE 1,000", "PROPOSE give Dollars 1,000 get nothing"):
        state = play(game, text)
        assert invalid_roles(state) == ["red"]
        assert state.standing is None
    assert play(arena(game), share("1,000")).status.kind == "void"
    assert play(game, "PROPOSE 1000").standing == game.offer(1000)


# Sell & buy

SALES = [SELL, arena(SELL)]


@pytest.mark.parametrize(
    ("number", "raw", "sirius"),
    [(55, (15, 5), (5, -5)), (30, (-10, 30), (-20, 20)), (70, (30, -10), (20, -20))],
    ids=["s1", "s3 below cost", "s4 above willingness"],
)
@pytest.mark.parametrize("game", SALES)
def test_s1_s3_s4_a_price(game, number, raw, sirius):
    state = play(game, price(number), ACCEPT)
    assert (state.payoffs.raw, state.payoffs.sirius) == (raw, sirius)


def test_s2_a_rejection_ends_the_game():
    state = play(SELL, price(55), REJECT)
    assert (state.status.kind, len(state.log), state.payoffs.sirius) == ("rejected", 2, (0, 0))
    assert play(arena(SELL), price(55), REJECT, price(55), ACCEPT).payoffs.raw == (15, 5)


def test_s5_more_than_the_budget():
    assert reasons(play(SELL, price(500))) == ["not executable"]
    original = play(arena(SELL), price(500), ACCEPT)
    assert original.payoffs.raw == (460, -440)
    assert original.game.holdings("blue", original.status)["ZUP"] == -400


def test_s6_money_for_nothing():
    moves = trade("X: 0", "ZUP: 50"), ACCEPT
    assert invalid_roles(play(SELL, *moves)) == ["red", "blue"]
    assert play(arena(SELL), *moves).payoffs.raw == (50, -50)


def test_s7_nothing_to_accept():
    assert invalid_roles(play(SELL, ACCEPT)) == ["red"]
    assert play(arena(SELL), ACCEPT).status.kind == "void"


def test_s8_unknown_goods():
    assert invalid_roles(play(SELL, trade("Z: 1", "ZUP: 50"))) == ["red"]
    assert play(arena(SELL), trade("Z: 1", "ZUP: 50")).status.kind == "void"


@pytest.mark.parametrize("game", SALES)
def test_s9_the_buyer_proposes(game):
    state = play(game, price(90), price(45), ACCEPT)
    assert (state.payoffs.raw, state.payoffs.sirius) == ((5, 15), (-5, 5))


def test_s10_a_fifth_proposal():
    moves = [price(90 - n) for n in range(8)] + [price(50), ACCEPT]
    state = play(SELL, *moves)
    assert reasons(state) == ["no proposals left: each may make 4", "nothing to accept"]
    assert play(arena(SELL), *moves).status.kind == "deal"


def test_the_shorter_sale_of_the_released_code():
    state = play(Sell(turns=8, cap=3), *[price(90)] * 7)
    assert reasons(state) == ["no proposals left: each may make 3"]


# Grammar


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("ACCEPT", Accept()),
        (" wait. ", Wait()),
        ("Reject!", Reject()),
        ("PROPOSE give X 5, Y 1 get Y 8", Propose(Trade(Bundle.of({"X": 5, "Y": 1}), Bundle.of({"Y": 8})))),
        ("Offer give X 5, Y 1 get Y 8.", Propose(Trade(Bundle.of({"X": 5, "Y": 1}), Bundle.of({"Y": 8})))),
        ("propose give 5 x and 1 y get y: 8", Propose(Trade(Bundle.of({"X": 5, "Y": 1}), Bundle.of({"Y": 8})))),
        ('{"action": "accept"}', Accept()),
        (
            '{"action": "PROPOSE", "give": {"X": 5}, "get": {"Y": 8}}',
            Propose(Trade(Bundle.of({"X": 5}), Bundle.of({"Y": 8}))),
        ),
        ('{"action": "PROPOSE give X 5 get Y 8"}', Propose(Trade(Bundle.of({"X": 5}), Bundle.of({"Y": 8})))),
    ],
)
def test_texts_that_are_read(text, act):
    assert parse(text, EXCHANGE, "red").act == act


@pytest.mark.parametrize(
    "text",
    [
        "PROPOSE",
        "PROPOSE 5",
        "PROPOSE give X 5",
        "PROPOSE give X 5 give Y 8",
        "PROPOSE please give X 5 get Y 8",
        "PROPOSE give X 5, X 6 get Y 8",
        "PROPOSE give X five get Y 8",
        "PROPOSE give X 12345678901 get Y 8",
        "PROPOSE give X \u0665 get Y 8",
        "ACCEPT PROPOSE give X 5 get Y 8",
        "ACCEPT it",
        "{",
        "[]",
        "{}",
        '{"action": 5}',
        '{"action": "WAIT", "give": {"X": 5}, "get": {"Y": 8}}',
        '{"action": "PROPOSE", "give": {"X": true}, "get": {"Y": 8}}',
        '{"action": "PROPOSE", "give": {"X": 1.0}, "get": {"Y": 8}}',
        '{"action": "PROPOSE", "give": {"X": -1}, "get": {"Y": 8}}',
        '{"action": "PROPOSE", "give": ["X"], "get": {"Y": 8}}',
        '{"a":' * 3000,
        "<player answer> ACCEPT",
        "<player answer> ACCEPT </player answer><player answer> NONE </player answer>",
        "<player answer> perhaps </player answer>",
        "<message> hello </message>",
        "ACCEPT\x00",
        "\u202eACCEPT",
        "ACCEPT" + " " * 1_000_000,
    ],
)
def test_texts_that_are_no_move(text):
    state = step(step(State(EXCHANGE), EVEN), text)
    assert isinstance(state.log[-1].act, Invalid)
    assert state.standing is None
    assert (state.t, state.strikes) == (3, (0, 1))


def test_hostile_text_beside_the_action_counts_as_well():
    for reply in (
        Reply("WAIT", message="\x07"),
        Reply("WAIT", reason="\u202e"),
        Reply("WAIT", message="x" * 1_000_000),
    ):
        assert invalid_roles(step(State(EXCHANGE), reply)) == ["red"]


def test_blue_gives_and_gets_from_its_own_side():
    state = play(EXCHANGE, "WAIT", "PROPOSE give Y 8 get X 5")
    assert state.standing == Trade(Bundle.of({"X": 5}), Bundle.of({"Y": 8}))


def test_acts_are_checked_as_texts_are():
    assert isinstance(legal(State(EXCHANGE), Reject()), Invalid)
    assert isinstance(legal(State(ULTIMATUM), Wait()), Invalid)
    assert isinstance(legal(State(EXCHANGE), Propose(Trade(Bundle.of({"X": -1}), Bundle()))), Invalid)
    assert isinstance(legal(State(EXCHANGE), Propose(Trade(Bundle.of({"Z": 1}), Bundle()))), Invalid)


def test_an_ended_game_takes_no_more_moves():
    with pytest.raises(GameError, match=r"'deal'.*start another"):
        step(play(EXCHANGE, EVEN, ACCEPT), WAIT)
    with pytest.raises(GameError, match="open at move 2 of 8"):
        _ = play(EXCHANGE, EVEN).payoffs


def test_a_void_game_has_no_payoffs():
    assert play(arena(EXCHANGE), ACCEPT).payoffs is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Exchange(turns=1),
        lambda: Exchange(cap=0),
        lambda: Exchange(rules="lax"),
        lambda: Exchange(red=Bundle.of({"Z": 1})),
        lambda: Exchange(red=Bundle.of({"X": -1})),
        lambda: Ultimatum(pot=0),
        lambda: Ultimatum(pot=True),
        lambda: Sell(cost=-1),
        lambda: Sell(max_strikes=-1),
        lambda: game_from({"game": "poker"}),
        lambda: game_from({"game": "sell", "price": 3}),
        lambda: game_from({"game": "exchange"}),
        lambda: game_from({}),
    ],
)
def test_games_that_are_none(make):
    with pytest.raises(GameError, match=r"expected|Pass what"):
        make()


# Logs

GAME = play(EXCHANGE, "?", Reply(EVEN, message="hello"), Reply("ACCEPT", reason="fair"))


def test_a_log_is_json_and_gives_the_game_back():
    log = json.loads(json.dumps(to_log(GAME)))
    assert replay(log) == GAME
    assert to_log(replay(log)) == log


@pytest.mark.parametrize("game", [symmetric_exchange(35, 15), Ultimatum(pot=7), arena(Sell(cost=1))])
def test_games_survive_json(game):
    assert game_from(json.loads(json.dumps(game.to_dict()))) == game


def damaged(**changes):
    return {**json.loads(json.dumps(to_log(GAME))), **changes}


TURNS = to_log(GAME)["turns"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (to_log(play(EXCHANGE, EVEN)), r"unfinished: it stops after 1 moves, and its result is missing"),
        ({key: value for key, value in to_log(GAME).items() if key != "turns"}, "`turns` is missing"),
        ({key: value for key, value in to_log(GAME).items() if key != "status"}, "`status` is missing"),
        (damaged(turns=TURNS[:2]), "moves are missing or changed"),
        (damaged(turns=[*TURNS, TURNS[0]]), "goes on at move 4 after its end"),
        (damaged(turns=[{**TURNS[0], "text": "WAIT"}, *TURNS[1:]]), "Move 1 of the game log"),
        (damaged(turns=[{"t": 1}]), "expected an object with the texts"),
        (damaged(turns=["WAIT"]), "expected an object with the texts"),
        (damaged(format=2), "format 2, expected 1"),
        (damaged(game={"game": "poker"}), "`game` is damaged.*'poker'"),
        ([], "`game` is missing"),
    ],
)
def test_a_log_that_is_no_game(log, message):
    with pytest.raises(GameLogError, match=message):
        replay(log)
