"""The program, its metric, and the whole loop: each role learns its own turns of the games it won, and nothing else."""

import json
from collections import Counter

import dspy
import pytest

from programs.negotiation import FROZEN, Exchange, GameError, Sell, build, examples, metric, tasks
from programs.negotiation.curator import GameCurator
from programs.negotiation.demonstrations import GAMES, POSITIONS, demonstrations
from programs.negotiation.engine import State, step
from programs.negotiation.log import replay
from programs.negotiation.player import Play
from programs.negotiation.program import HELD_OUT_BOTS, PRACTICE_BOTS
from programs.negotiation.values import Invalid
from sirius_dspy import Collect, PlainAdapter, ProviderTrainer, SiriuS, evaluate
from sirius_dspy.errors import DatasetError, PromptTooLongError
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, ScriptedTrainer, ToyLM, chat_reply

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
SELL = Sell().to_dict()


def match(red="agent", blue="agent", game=SELL, seed=0):
    return dspy.Example(game=game, red=red, blue=blue, seed=seed).with_inputs("game", "red", "blue", "seed")


def program_with(skill):
    program = build()
    program.set_lm(ToyLM(skill=skill))
    return program


def run(program, example):
    with dspy.context(adapter=CHAT):
        prediction = program(**example.inputs())
    return prediction, metric(example, prediction)


def acts(text, reason="", message=""):
    return chat_reply(reason=reason, message=message, action=text)


def seller(prompt):
    return "You are RED" in prompt.field("rules")


def haggle(prompt):
    """RED asks for 55, which it wins by; BLUE accepts whatever is there."""
    return acts("PROPOSE 55", "high", "a fine X") if seller(prompt) else acts("ACCEPT", "good enough")


def test_one_match():
    prediction, score = run(program_with(haggle), match())
    assert prediction.status == "deal"
    assert prediction.raw == {"red": 15, "blue": 5}
    assert prediction.sirius == {"red": 5, "blue": -5}
    assert prediction.invalid == {"red": 0, "blue": 0}
    assert replay(json.loads(json.dumps(prediction.log))).status.by == "blue"
    assert score.rewards == {"red": 1.0, "blue": 0.0, "base_red": 0.0, "base_blue": 0.0}
    assert score.score == 0.5


def test_an_agent_sees_its_own_side_only():
    lm = ScriptedLM(haggle)
    program = build()
    program.set_lm(lm)
    run(program, match())
    red, blue = lm.requests
    assert "costs you 40" in red.field("rules")
    assert "worth 60 ZUP to you" in blue.field("rules")
    assert "60" not in red.text
    assert "40" not in blue.text
    assert blue.field("history") == 'RED: offer 55 and said "a fine X"'
    assert "high" not in blue.text
    assert "accept (that is: 55)" in blue.field("moves")


def test_agents_may_play_without_a_word():
    program = build(talk=False)
    lm = ScriptedLM(lambda prompt: "PROPOSE 55" if "Nothing yet" in prompt.user else "ACCEPT")
    program.set_lm(lm)
    example = match()
    with dspy.context(adapter=PlainAdapter()):
        prediction = program(**example.inputs())
    assert prediction.raw == {"red": 15, "blue": 5}
    assert [turn["told"] for turn in prediction.log["turns"]] == ["", ""]


def test_what_cannot_be_read_is_an_invalid_move_and_no_error():
    def babble(prompt):
        return "I do not know what fields are" if seller(prompt) else acts("ACCEPT")

    prediction, score = run(program_with(babble), match())
    assert (prediction.status, prediction.by) == ("forfeit", "red")
    assert prediction.invalid == {"red": 3, "blue": 2}
    assert score.score == 0.0


def test_a_reply_in_tags_without_fields_is_read():
    tags = "<player answer> ACCEPT </player answer> <newly proposed trade> NONE </newly proposed trade>"
    prediction, _ = run(program_with(lambda p: acts("PROPOSE 55") if seller(p) else tags), match())
    assert prediction.status == "deal"


def test_a_winner_that_slipped_is_not_rewarded():
    def slips_first(prompt):
        if not seller(prompt):
            return acts("ACCEPT") if "accept" in prompt.field("moves") else acts("PROPOSE 1")
        return acts("mumble") if prompt.field("moves").startswith("Turn 1 ") else acts("PROPOSE 55")

    prediction, score = run(program_with(slips_first), match())
    assert prediction.sirius["red"] > 0
    assert prediction.invalid["red"] == 1
    assert score.rewards["red"] == 0.0


def test_a_draw_and_a_void_game_are_no_success():
    even = run(program_with(lambda p: acts("PROPOSE 50") if seller(p) else acts("ACCEPT")), match())[1]
    assert even.score == 0.0
    arena = match(game=Sell(rules="arena").to_dict())
    prediction, void = run(program_with(lambda p: acts("ACCEPT")), arena)
    assert (prediction.status, prediction.sirius, void.score) == ("void", None, 0.0)


@pytest.mark.parametrize(("red", "blue", "winner"), [("agent", "accepter", "red"), ("accepter", "agent", None)])
def test_only_agents_are_rewarded(red, blue, winner):
    _, score = run(program_with(haggle), match(red, blue))
    assert score.rewards == {role: float(role == winner) for role in ("red", "blue", *FROZEN)}
    assert score.score == float(winner is not None)


def test_the_frozen_twin_plays_with_its_own_weights():
    program = program_with(haggle)
    greedy = ScriptedLM(lambda prompt: acts("PROPOSE 90"), model="scripted/base")
    program.base_red.lm = greedy
    prediction, score = run(program, match("base", "agent"))
    assert prediction.raw == {"red": 50, "blue": -30}
    assert greedy.calls == 1
    assert score.rewards["base_red"] == 0.0


def test_games_that_cannot_be_played():
    program = program_with(haggle)
    with pytest.raises(GameError, match=r"'agnet'.*'accepter'"):
        program(**match("agnet").inputs())
    with pytest.raises(GameError, match="'poker'"):
        program(**match(game={"game": "poker"}).inputs())
    prediction = program(**match("fair", "fair").inputs())
    with pytest.raises(GameError, match="without an agent"):
        metric(match("fair", "fair"), prediction)


def test_failures_of_the_lm_are_not_the_players():
    def too_long(prompt):
        raise PromptTooLongError("800 tokens, expected at most 512")

    with dspy.context(adapter=CHAT):
        trajectory = Rollouts(metric).run_one(program_with(too_long), Task(match()))
    assert trajectory.failure is not None


# Examples


@pytest.mark.parametrize("game", ["exchange", "ultimatum", "sell"])
def test_splits_share_no_game(game):
    found = {split: examples(split, 90, game=game) for split in ("train", "validation", "test")}
    configs = {split: {json.dumps(e.game, sort_keys=True) for e in items} for split, items in found.items()}
    assert not configs["train"] & (configs["test"] | configs["validation"])
    assert not configs["test"] & configs["validation"]
    opponents = {split: {name for e in items for name in (e.red, e.blue)} for split, items in found.items()}
    assert opponents["train"] == opponents["validation"] == {"agent", "base", *PRACTICE_BOTS}
    assert opponents["test"] == opponents["train"] | set(HELD_OUT_BOTS)
    assert all("agent" in (e.red, e.blue) for items in found.values() for e in items)
    assert not any(e.red == e.blue for e in found["test"])


def test_examples_are_the_papers_games():
    assert examples("train", 1)[0].game == Exchange().to_dict()
    held_out = examples("test", 1)[0].game
    assert (held_out["red"], held_out["blue"]) == ({"X": 35, "Y": 15}, {"X": 15, "Y": 35})
    assert examples("test", 1, game="ultimatum")[0].game["pot"] == 1000
    sale = examples("test", 1, game="sell")[0].game
    assert (sale["cost"], sale["willingness"]) == (30, 70)


def test_examples_are_balanced_seeded_and_prefixes():
    many = examples("train", 22, seed=1)
    assert Counter(e.red == "agent" for e in many) == Counter(e.blue == "agent" for e in many)
    assert [e.toDict() for e in many[:5]] == [e.toDict() for e in examples("train", 5, seed=1)]
    assert len({e.seed for e in many} | {e.seed for e in examples("train", 22, seed=2)}) == 44


@pytest.mark.parametrize("arguments", [("dev", 5), ("train", 0), ("train", 5, 0, "poker")])
def test_examples_that_cannot_be_served(arguments):
    with pytest.raises(DatasetError, match="expected"):
        examples(*arguments)


@pytest.mark.parametrize("game", ["exchange", "ultimatum", "sell"])
def test_demonstrations_are_valid_moves_of_games_that_no_split_has(game):
    shown = demonstrations(game)
    assert set(shown) == {"red", "blue", *FROZEN}
    played = {json.dumps(e.game) for split in ("train", "validation", "test") for e in examples(split, 90, game=game)}
    assert json.dumps(GAMES[game].to_dict()) not in played
    for role in ("red", "blue"):
        assert {demo.action.split()[0] for demo in shown[role]} == {"offer", "accept"}
        for demo, moves in zip(shown[role], POSITIONS[game][role], strict=True):
            assert set(demo.inputs().keys()) == set(Play.input_fields)
            assert set(demo.labels().keys()) == set(Play.output_fields)
            assert f"You are {role.upper()}" in demo.rules
            state = State(GAMES[game])
            for move in moves:
                state = step(state, move)
            assert not any(isinstance(turn.act, Invalid) for turn in state.log)
            assert state.log[-1].role == role


def test_there_are_no_demonstrations_of_other_games():
    with pytest.raises(GameError, match="'poker'"):
        demonstrations("poker")


# The loop


def luck(prompt):
    """RED asks for 45, and where it is sampled for 55 every other time; BLUE accepts."""
    if seller(prompt):
        return acts("PROPOSE 55" if prompt.temperature == 1.0 and prompt.seed % 2 else "PROPOSE 45")
    return acts("ACCEPT", message="thanks")


def trained_rows(request):
    return [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in request.rows]


def compile_with(trainer, tmp_path, trainset, **settings):
    with dspy.context(adapter=CHAT):
        return SiriuS(
            metric,
            trainer=trainer,
            augmenter=None,
            gate=None,
            run_dir=tmp_path,
            **{"iterations": 1, "collect": Collect(samples=6), "frozen": FROZEN, "num_threads": 4, **settings},
        ).compile(program_with(luck), trainset=trainset, valset=[match("agent", "accepter")])


def test_each_role_is_trained_on_its_own_winning_turns(tmp_path):
    trainer = ScriptedTrainer(lambda request: ToyLM(f"toy/{request.agent}", skill=luck))
    trainset = [match(seed=n) for n in range(4)] + [match("base", "agent"), match("agent", "base")]
    compile_with(trainer, tmp_path, trainset)
    rows = {request.agent: trained_rows(request) for request in trainer.requests}
    assert set(rows) == {"red", "blue"}
    assert all(rows.values())
    assert all("You are RED" in prompt and "PROPOSE 55" in reply for prompt, reply in rows["red"])
    assert all("You are BLUE" in prompt and "that is: 45" in prompt for prompt, reply in rows["blue"])
    assert {"base_red", "base_blue"}.isdisjoint(trainer.checked)


def test_a_frozen_base_is_not_trained_even_where_it_is_not_declared(tmp_path):
    trainer = ScriptedTrainer(lambda request: ToyLM(f"toy/{request.agent}", skill=luck))
    compile_with(trainer, tmp_path, [match("base", "agent"), match("agent", "base")], frozen=())
    assert {request.agent for request in trainer.requests} <= {"red", "blue"}


def test_what_was_learnt_is_played(tmp_path):
    trained = compile_with(ProviderTrainer(), tmp_path, [match(seed=n) for n in range(4)])
    before, _ = run(program_with(luck), match(seed=99))
    after, score = run(trained, match(seed=99))
    assert (before.raw["red"], after.raw["red"]) == (5, 15)  # greedy, the untrained seller asks for 45
    assert score.rewards["red"] == 1.0
    assert trained.base_red.lm.model == "toy/base"


def dear(prompt):
    """A price that wins, and a reason that makes each row another."""
    return acts(f"PROPOSE {51 + prompt.seed % 40}", str(prompt.seed)) if seller(prompt) else acts("ACCEPT")


def test_the_curator_caps_pairings_and_outcomes(tmp_path):
    with dspy.context(adapter=CHAT):
        tasks = [Task(match("agent", "accepter", seed=n), sample=n) for n in range(20)]
        tasks += [Task(match("agent", "base", seed=n), sample=n) for n in range(20)]
        rollouts = Rollouts(metric, lm_kwargs={"temperature": 1.0})
        games = [game for _, game in rollouts.run_all(program_with(dear), tasks)]
        agents = {"red": ("red",), "blue": ("blue",)}
        curate = GameCurator(max_games=5).curate
        sets = curate(build(), games, agents, threshold=1.0, seed=3)
        again = curate(build(), reversed(games), agents, threshold=1.0, seed=3)
    assert len(sets["red"].rows) == 10
    assert sets["blue"].rows == ()
    assert sets == again
    opponents = {game.id: game.prediction["players"]["blue"] for game in games}
    assert Counter(opponents[row.trajectory] for row in sets["red"].rows) == {"accepter": 5, "base": 5}


# As the task of an experiment


def test_a_game_task_has_everything_that_an_experiment_asks_for():
    assert tasks.sell.build(talk=False).talk is False
    shown = tasks.sell.demonstrations()
    assert set(shown) == {"red", "blue", *FROZEN}
    assert {example.game["game"] for example in tasks.sell.examples("test", 6)} == {"sell"}


def test_the_report_counts_deals_and_the_moves_of_the_roles_under_test():
    program = program_with(lambda prompt: acts("what?") if seller(prompt) else acts("ACCEPT"))
    played = [match(), match("agent", "accepter"), match("accepter", "agent")]
    with dspy.context(adapter=CHAT):
        found = tasks.report(evaluate(program, played, tasks.sell.metric).trajectories)
    # as RED the agent forfeits with its third invalid move; as BLUE it accepts the bot's offer
    assert (found.total, found.deals) == (3, 1)
    assert found.invalid == 2 * 3 + blue_slips(program, played)
    assert found.deal_rate == 1 / 3
    assert found.invalid_rate == found.invalid / found.moves


def blue_slips(program, played):
    """Invalid moves of BLUE where an agent plays it, from the logs."""
    with dspy.context(adapter=CHAT):
        return sum(program(**example.inputs()).invalid["blue"] for example in played if example.blue == "agent")


def test_a_report_of_nothing_is_no_error():
    found = tasks.report([])
    assert (found.total, found.deal_rate, found.invalid_rate) == (0, 0.0, 0.0)
