"""A budget ends a compile well: with the best program so far, and a call that goes on from there."""

from __future__ import annotations

import logging

import dspy
import pytest

from sirius_dspy import Budget, Collect, CriticAugmenter, ExperienceLibrary, SiriuS
from sirius_dspy.errors import SettingsError
from sirius_dspy.testing import ToyLM
from tests.toy import ADAPTER, exact, examples, optimizer, skill, student


@pytest.fixture(autouse=True)
def adapter():
    dspy.configure(adapter=ADAPTER)


def compile_with(run_dir, budget, **settings):
    return optimizer(run_dir, budget=budget, **settings).compile(student(), trainset=examples(), valset=examples())


def stored(run_dir):
    with ExperienceLibrary(run_dir / "library.sqlite") as library:
        return {run.id for run in library.trajectories()}


def plain(result):
    """What a compile learned, without when, where and by how many tries."""
    left_out = {"run_dir", "library", "seconds", "usage"}
    data = {name: value for name, value in result.to_dict().items() if name not in left_out}
    for entry in data["iterations"]:
        entry["seconds"] = entry["stages"] = None
        entry["metrics"] = {name: value for name, value in entry["metrics"].items() if "seconds" not in name}
        for agent in entry["agents"].values():
            agent["seconds"] = None
    return data


@pytest.mark.parametrize("limit", [1, 10, 30, 60, 100])
def test_a_budget_of_calls_ends_the_compile_and_a_larger_one_resumes_it(limit, tmp_path):
    whole = compile_with(tmp_path / "whole", None).detailed_results
    assert whole.ended == "finished"
    assert whole.usage.calls > 100
    ended = compile_with(tmp_path / "run", Budget(calls=limit)).detailed_results
    assert ended.ended == "budget"
    assert ended.reason
    assert ended.usage.calls <= limit
    assert stored(tmp_path / "run") <= stored(tmp_path / "whole")
    again = compile_with(tmp_path / "run", None)
    assert plain(again.detailed_results) == plain(whole)
    assert stored(tmp_path / "run") == stored(tmp_path / "whole")


def test_the_program_that_a_budget_leaves_is_the_best_so_far(tmp_path):
    whole = compile_with(tmp_path / "whole", None).detailed_results
    first = whole.iterations[1]
    calls = sum(usage.calls for entry in whole.iterations[:2] for usage in entry.stages.values())
    compiled = compile_with(tmp_path / "run", Budget(calls=calls + 3))
    assert compiled.detailed_results.ended == "budget"
    assert compiled.detailed_results.best_iteration == 1
    assert {name: predictor.lm.model for name, predictor in compiled.named_predictors()} == {
        "doubler": first.lms["doubler"],
        "writer.predict": first.lms["writer.predict"],
    }


def test_a_budget_too_small_for_anything_returns_the_student(tmp_path):
    compiled = compile_with(tmp_path, Budget(calls=1))
    assert compiled.detailed_results.iterations == ()
    assert compiled.detailed_results.best_score is None
    assert compiled(number=2).answer == "ans:4"


@pytest.mark.parametrize("budget", [Budget(tokens=1000), Budget(usd=0.001, prices={"toy": (1.0, 1.0)})])
def test_tokens_and_dollars_are_limits_as_well(budget, tmp_path):
    result = compile_with(tmp_path, budget).detailed_results
    assert result.ended == "budget"
    assert result.usage.prompt_tokens + result.usage.completion_tokens <= 1100


def test_a_stage_that_reaches_its_limit_ends_and_the_compile_goes_on(tmp_path):
    budget = Budget(stages={"repair": Budget(calls=8)})
    result = compile_with(tmp_path, budget, iterations=1).detailed_results
    assert result.ended == "finished"
    assert 0 < result.iterations[1].stages["repair"].calls <= 8
    assert result.iterations[1].repair.tried < 4


def test_half_of_a_budget_and_four_fifths_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sirius_dspy"):
        compile_with(tmp_path, Budget(calls=100))
    shares = [int(record.args[0]) for record in caplog.records if "of its budget" in record.message]
    assert [share >= 50 for share in shares] == [True, True]
    assert shares[0] < 80 <= shares[1]


def test_a_limit_in_dollars_needs_prices_before_anything_is_paid_for(tmp_path):
    program = student()
    with pytest.raises(SettingsError, match=r"nobody knows the price of \['toy.*prices="):
        optimizer(tmp_path / "run", budget=Budget(usd=1.0)).compile(program, trainset=examples(), valset=examples())
    assert program.doubler.lm.calls == 0


def test_a_limit_in_dollars_needs_the_price_of_a_critic_and_of_a_teacher_too(tmp_path):
    program, unknown = student(), ToyLM(model="openai/unknown", skill=skill)
    teacher = program.deepcopy()
    teacher.set_lm(unknown)
    budget = Budget(usd=1.0, prices={program.doubler.lm.model: (1.0, 1.0)})
    for settings, given in (({"augmenter": CriticAugmenter(critic=unknown)}, None), ({}, teacher)):
        with pytest.raises(SettingsError, match=r"nobody knows the price of \['openai/unknown'\]"):
            optimizer(tmp_path / "run", budget=budget, **settings).compile(
                program, teacher=given, trainset=examples(), valset=examples()
            )
    assert program.doubler.lm.calls == unknown.calls == 0


def test_a_compile_ends_where_a_judge_without_a_price_makes_its_cost_unknown(tmp_path):
    judge = ToyLM(model="openai/unknown", skill=skill)

    def judged(example, prediction, trace=None):
        judge("[[ ## text ## ]]\nx\n\n[[ ## rewritten ## ]]")
        return exact(example, prediction)

    program = student()
    prices = {program.doubler.lm.model: (1.0, 1.0)}
    result = SiriuS(judged, run_dir=tmp_path / "run", budget=Budget(usd=1.0, prices=prices), num_threads=1).compile(
        program, trainset=examples(), valset=examples()
    )
    assert result.detailed_results.ended == "budget"
    assert "nobody knows the price of ['openai/unknown']" in result.detailed_results.reason
    assert program.doubler.lm.calls < len(examples())


def test_what_was_spent_counts_what_servers_answered(tmp_path):
    program = student()
    result = optimizer(tmp_path).compile(program, trainset=examples(), valset=examples()).detailed_results
    stages = [usage for entry in result.iterations for usage in entry.stages.values()]
    assert sum(usage.calls for usage in stages) == result.usage.calls
    first = result.iterations[1]
    assert sum(agent.usage.calls for agent in first.agents.values()) == first.usage.calls > 0


def test_an_interrupted_compile_has_spent_what_it_spent(tmp_path):
    """The account outlives the process, so that a limit holds for all calls of one compile together."""
    first = compile_with(tmp_path, Budget(calls=30)).detailed_results
    second = compile_with(tmp_path, Budget(calls=60)).detailed_results
    assert first.usage.calls < second.usage.calls <= 60
    (tmp_path / "stages" / "spending.json").unlink()  # as after a kill: the library still knows most of it
    third = compile_with(tmp_path, Budget(calls=60)).detailed_results
    assert third.usage.calls <= 60
    assert third.ended == "budget"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(calls=0), "`calls`"),
        (Budget(tokens=1.5), "`tokens`"),
        (Budget(usd=-1), "`usd`"),
        (Budget(seconds=0), "`seconds`"),
        (Budget(stages={"train": Budget(calls=1)}), r"`stages`.*\['train'\]"),
        (Budget(stages={"repair": 3}), "`stages`"),
        (Budget(stages={"repair": Budget(calls=True)}), "`calls`"),
        (Budget(stages={"repair": Budget(stages={"repair": Budget(calls=1)})}), "takes limits only"),
        (Budget(prices={"toy": 1.0}), "`prices`"),
    ],
)
def test_limits_of_the_wrong_kind_are_refused(budget, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        compile_with(tmp_path, budget)


def test_answers_from_a_cache_cost_nothing(tmp_path):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    for name in ("one", "two"):
        program = student()
        program.set_lm(ToyLM(skill=skill, cache=True))
        settings = {"collect": Collect(samples=1), "iterations": 1, "augmenter": None}
        made = optimizer(tmp_path / name, budget=Budget(calls=500), **settings)
        result = made.compile(program, trainset=examples(), valset=examples()).detailed_results
    assert result.usage.calls < 20


def test_a_resumed_compile_has_no_results_until_it_ends_again(tmp_path, monkeypatch):
    compile_with(tmp_path, Budget(calls=5))
    assert (tmp_path / "stages" / "results.json").exists()

    def broken(example, prediction, trace=None):
        raise KeyboardInterrupt

    made = optimizer(tmp_path, accept_changes=["metric"])
    made.metric = broken
    with pytest.raises(KeyboardInterrupt):
        made.compile(student(), trainset=examples(), valset=examples())
    assert not (tmp_path / "stages" / "results.json").exists()
