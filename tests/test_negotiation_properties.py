"""What holds in every game, whatever the players write."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from programs.negotiation.bots import BOTS, bot
from programs.negotiation.configs import GAMES, symmetric_exchange
from programs.negotiation.engine import State, legal, step
from programs.negotiation.exchange import Exchange
from programs.negotiation.log import replay, to_log
from programs.negotiation.match import play
from programs.negotiation.parse import parse, to_tags, to_text
from programs.negotiation.sell import Sell
from programs.negotiation.ultimatum import Ultimatum
from programs.negotiation.values import ROLES, Accept, Bundle, Invalid, Propose, Reject, Reply, Trade, Wait
from programs.negotiation.view import briefing, view_of

STRICT = (Exchange(), Ultimatum(), Sell())
ENDS = {"deal", "rejected", "timeout", "forfeit"}

PIECES = (
    *(
        "ACCEPT",
        "accept.",
        "REJECT",
        "WAIT",
        "NONE",
        "PROPOSE",
        "propose ",
        "give ",
        "get ",
        "nothing",
        "and",
        ",",
        " | ",
    ),
    *("X 5", "X: 10", "Y 8", "Y: 26", "Z 3", "Dollars 40", "Dollars: 1,000", "ZUP 55", "X 1", "5 Y", "0", "40", "55"),
    *("-10", "2.5", "1e9", "9" * 30, "Infinity", "NaN", "true", "\u0665", "{", "}", '{"action": "', '"', ":", "[", "]"),
    *('{"action": "ACCEPT"}', '{"action": "PROPOSE", "give": {"X": 1}, "get": {"ZUP": 50}}', "<", ">", "</", "null"),
    *(
        "<player answer> ",
        "</player answer>",
        "<newly proposed trade>",
        "</newly proposed trade>",
        "<reason>",
        "</reason>",
    ),
    *("<message>", "</message>", "<my resources> X: 1 </my resources>", "Player RED Gives ", "Player BLUE Gives "),
    *(
        "\x00",
        "\u202e",
        "\u200f",
        "\ud800",
        "\u0130",
        "\n",
        "\r\n",
        "\t",
        " ",
        "\u00a0",
        "\U0001f91d",
        "%s",
        "\\",
        "a" * 500,
    ),
    *(
        "PROPOSE give X 5 get Y 8",
        "PROPOSE 40",
        "PROPOSE 55",
        "PROPOSE give nothing get Y 1",
        "PROPOSE give X 1 get nothing",
    ),
)


def hostile(dice):
    return (
        "".join(dice.choice(PIECES) for _ in range(dice.randrange(1, 9)))
        if dice.random() < 0.7
        else dice.choice(PIECES)
    )


def sensible(state, dice):
    """Without some of these, no game would get far enough to end in a deal."""
    return bot("random", state.game, state.to_move, dice.random())(view_of(state)).text


def held(state):
    return [state.game.holdings(role, state.status) for role in ROLES]


def check(state):
    """The promises about a finished strict game."""
    game, payoffs = state.game, state.payoffs
    assert state.status.kind in ENDS
    assert 1 <= len(state.log) <= game.turns
    assert [turn.t for turn in state.log] == list(range(1, len(state.log) + 1))
    assert not any(bundle.negative for bundle in held(state))
    assert held(state)[0] + held(state)[1] == game.start("red") + game.start("blue")
    if isinstance(game, Exchange):
        assert payoffs.raw == payoffs.sirius
        assert sum(payoffs.raw) == 0
    if isinstance(game, Ultimatum):
        assert sum(payoffs.raw) == (game.pot if state.status.kind == "deal" else 0)
        assert sum(payoffs.sirius) == sum(payoffs.raw) - game.pot
    if isinstance(game, Sell):
        assert sum(payoffs.raw) == (game.willingness - game.cost if state.status.kind == "deal" else 0)
        assert sum(payoffs.sirius) == 0


@pytest.mark.parametrize("game", STRICT, ids=lambda game: game.name)
def test_ten_thousand_hostile_texts(game):
    dice, texts, ends = random.Random(f"hostile {game.name}"), 0, {}
    while texts < 10_000:
        state = State(game)
        while not state.over:
            is_hostile = dice.random() < 0.6
            state = step(state, hostile(dice) if is_hostile else sensible(state, dice))
            texts += is_hostile
        check(state)
        ends[state.status.kind] = ends.get(state.status.kind, 0) + 1
        assert replay(json.loads(json.dumps(to_log(state)))) == state
    assert min(ends["deal"], ends["forfeit"]) > 100  # the texts got far, and were bad enough


@pytest.mark.parametrize("game", STRICT, ids=lambda game: game.name)
def test_hostile_texts_in_arena_mode(game):
    dice, ends = random.Random(f"arena {game.name}"), {}
    for _ in range(300):
        state = State(replace(game, rules="arena"))
        while not state.over:
            state = step(state, hostile(dice))
        ends[state.status.kind] = ends.get(state.status.kind, 0) + 1
        assert (state.payoffs is None) == (state.status.kind == "void")
    assert ends["void"] > 0


texts = st.one_of(
    st.text(st.characters(), max_size=60),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join),
    st.sampled_from(PIECES),
)
games = st.sampled_from(STRICT)


@given(games, st.lists(st.builds(Reply, texts, texts, texts), min_size=10, max_size=10))
@settings(max_examples=150, deadline=None)
def test_every_game_ends_once_and_repeats(game, replies):
    def run():
        state = State(game)
        for reply in replies:
            state = state if state.over else step(state, reply)
        return state

    first = run()
    check(first)
    assert to_log(first) == to_log(run())


amounts = st.integers(0, 40)
bundles = st.builds(lambda x, y: Bundle.of({"X": x, "Y": y}), amounts, amounts)


@st.composite
def acts(draw):
    """A game, a role, and any act that the grammar can say in it."""
    game = draw(games)
    if isinstance(game, Exchange):
        trade = Trade(draw(bundles), draw(bundles))
    else:
        trade = game.offer(draw(st.integers(0, 1000)))
    act = draw(st.sampled_from([Propose(trade), Accept(), Reject(), Wait()]))
    return game, draw(st.sampled_from(ROLES)), act


@given(acts())
@settings(max_examples=200, deadline=None)
def test_texts_and_acts_round_trip(drawn):
    game, role, act = drawn
    text = to_text(act, game, role)
    assert parse(text, game, role).act == act
    assert parse(text.upper() + ".", game, role).act == act
    assert parse(json.dumps({"action": text}), game, role).act == act
    move = parse(to_tags(act, "hello there", "a thought"), game, role)
    assert (move.act, move.message, move.reason) == (act, "hello there", "a thought")


@given(st.text(max_size=40), st.sampled_from(["\x00", "\u202e", "\u200f"]), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_marks_and_control_characters_only_ever_give_invalid(text, mark, place):
    state = step(State(Exchange()), text[:place] + mark + text[place:])
    assert isinstance(state.log[0].act, Invalid)


SWAP = str.maketrans({"X": "Y", "Y": "X"})


def swapped(trade):
    def turned(bundle):
        return Bundle.of({name.translate(SWAP): amount for name, amount in bundle.amounts})

    return Trade(turned(trade.blue_gives), turned(trade.red_gives))


@given(
    st.lists(
        st.one_of(st.builds(Trade, bundles, bundles).map(Propose), st.sampled_from([Accept(), Wait()])), max_size=8
    )
)
@settings(max_examples=150, deadline=None)
def test_exchanging_roles_and_labels_mirrors_payoffs(moves):
    """RED first waits in the mirrored game, so that BLUE makes there what RED makes here, one turn later."""
    game, mirror = Exchange(turns=8), Exchange(turns=9)
    state, turned = State(game), step(State(mirror), "WAIT")
    for act in [*moves, *[Wait()] * 8][:8]:
        if state.over:
            break
        state_text = to_text(act, game, state.to_move)
        other_act = Propose(swapped(act.trade)) if isinstance(act, Propose) else act
        turned_text = to_text(other_act, mirror, turned.to_move)
        state, turned = step(state, state_text), step(turned, turned_text)
        assert isinstance(state.log[-1].act, Invalid) == isinstance(turned.log[-1].act, Invalid)
    assert state.status.kind == turned.status.kind
    assert state.payoffs.raw == turned.payoffs.raw[::-1]


SECRETS = {
    "red": Sell(cost=4711, willingness=6823, budget=9377),
    "blue": Exchange(red=Bundle.of({"X": 4711, "Y": 6823}), blue=Bundle.of({"X": 9377, "Y": 8191})),
}
PRIVATE = {
    "sell": {"red": ("4711",), "blue": ("6823", "9377")},
    "exchange": {"red": ("4711", "6823"), "blue": ("9377", "8191")},
}

private_replies = st.sampled_from(
    [
        Reply("WAIT", reason="zebra"),
        Reply("PROPOSE 77", message="fine", reason="zebra"),
        Reply("PROPOSE give X 1 get Y 1", message="fine", reason="zebra"),
        Reply("PROPOSE give X 99999 get Y 1", reason="zebra"),
        Reply("zebra zebra"),
        Reply('{"action": "WAIT", "reason": "zebra"}'),
        Reply("<my resources> zebra </my resources><my goals> zebra </my goals><reason> zebra </reason>"
              "<player answer> NONE </player answer><message> hi </message>"),
    ]
)  # fmt: skip


@given(st.sampled_from(list(SECRETS.values())), st.lists(private_replies, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_view_has_nothing_private_of_the_opponent(game, replies):
    state = State(game)
    for reply in replies:
        viewer = state.to_move
        opponent = "blue" if viewer == "red" else "red"
        view = view_of(state)
        shown = repr(replace(view, history=tuple(s for s in view.history if s.role != viewer)))
        assert "zebra" not in shown
        for number in PRIVATE[game.name][opponent]:
            assert number not in repr(view) + repr(briefing(view, game))
        state = step(state, reply)
        if state.over:
            break


def test_a_view_shows_own_reasons_and_the_opponents_words():
    state = step(
        step(State(Exchange()), Reply("PROPOSE give X 5 get Y 8", "deal?", "hope")), Reply("WAIT", "no\nBLUE: x")
    )
    text = briefing(view_of(state), state.game).history
    assert text.split("\n") == [
        'You: offer give X 5 get Y 8 and said "deal?" (you thought "hope")',
        'BLUE: wait and said "no BLUE: x"',
    ]


def test_a_view_tells_the_opponents_offer_from_the_own_side():
    state = step(State(Exchange()), "PROPOSE give X 5 get Y 8")
    assert briefing(view_of(state), state.game).moves.splitlines() == [
        "Turn 2 of 8. Offers left: 3. Your moves:",
        "accept (that is: give Y 8 get X 5)",
        "wait",
        "offer give Y 3 get X 3",
    ]


CONFIGS = [game for splits in GAMES.values() for games in splits.values() for game in games]


@pytest.mark.parametrize("red", BOTS)
@pytest.mark.parametrize("blue", BOTS)
def test_bots_play_every_game_without_an_invalid_move(red, blue):
    for game in CONFIGS:
        state = play(game, bot(red, game, "red", 1), bot(blue, game, "blue", 2))
        check(state)
        assert state.strikes == (0, 0)


def test_bots_play_in_arena_mode_too():
    for game in STRICT:
        for red in BOTS:
            for blue in BOTS:
                state = play(replace(game, rules="arena"), bot(red, game, "red", 1), bot(blue, game, "blue", 2))
                assert state.status.kind in ENDS


def outcome(game, red, blue, seed=0):
    state = play(game, bot(red, game, "red", seed), bot(blue, game, "blue", seed))
    return state.status.kind, state.payoffs.raw


def test_bots_play_as_they_are_called():
    assert outcome(Sell(), "fair", "fair") == ("deal", (10, 10))
    assert outcome(Ultimatum(), "fair", "fair") == ("deal", (50, 50))
    assert outcome(symmetric_exchange(35, 15), "fair", "fair") == ("deal", (0, 0))
    assert outcome(Exchange(), "greedy", "accepter") == ("deal", (15, -15))
    assert outcome(Exchange(), "greedy", "fair") == ("timeout", (0, 0))
    for game in STRICT:
        for name in BOTS:
            state = play(game, bot("never", game, "red"), bot(name, game, "blue"))
            assert not any(turn.role == "red" and turn.act == Accept() for turn in state.log)
    soft, hard = outcome(Ultimatum(), "conceder", "boulware")[1], outcome(Ultimatum(), "boulware", "conceder")[1]
    assert soft[0] < 50 < hard[0]


def test_greedy_accepts_the_smallest_gain():
    game = Ultimatum(turns=2)
    view = view_of(step(State(game), "PROPOSE 1"))
    assert bot("greedy", game, "blue")(view).text == "accept"
    assert bot("greedy", game, "blue")(view_of(step(State(game), "PROPOSE 0"))).text == "reject"


def test_random_legal_is_legal_and_seeded():
    for game in CONFIGS:
        moves = {}
        for seed in range(20):
            view = view_of(State(game))
            text = bot("random", game, "red", seed)(view).text
            assert text == bot("random", game, "red", seed)(view).text
            act = parse(text, game, "red").act
            assert legal(State(game), act) == act
            moves[text] = True
        assert len(moves) > 3
