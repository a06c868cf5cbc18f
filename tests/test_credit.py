"""Credit by replay: values on a program whose true ones are known, and what a compile does with them."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dspy
import pytest

from sirius_dspy import (
    Budget,
    Collect,
    Credit,
    CriticAugmenter,
    Patience,
    measure_precision,
    open_library,
    read_credits,
)
from sirius_dspy.credit.credit import LUCKY, NO_DIFFERENCE
from sirius_dspy.credit.values import StepCredit, follows
from sirius_dspy.errors import UnfinishedError
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.recording import Sampling
from sirius_dspy.running.rerun import rerun
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from sirius_dspy.tracking.events import Tracker
from tests import ROOT
from tests.toy import ADAPTER, KilledAt, compiled_by, examples, optimizer, student, without_time


@pytest.fixture(autouse=True)
def adapter():
    dspy.configure(adapter=ADAPTER)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)


class Chain(dspy.Module):
    """Adds one, then one again: the answer is right if both steps are, or if two errors cancel."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("start: int -> middle: int")
        self.second = dspy.Predict("middle: int -> end: int")

    def forward(self, start):
        return self.second(middle=self.first(start=start).middle)


def draw(prompt, *parts):
    """A number from 0 to 1 that the sample and the prompt decide."""
    return random.Random(f"{prompt.seed}/{prompt.user}/{parts}").random()


def adding(first_right, second_right):
    """Each step adds one with its probability, and otherwise nothing, or two."""

    def skill(prompt):
        if prompt.asks_for("middle"):
            return chat_reply(middle=int(prompt.field("start")) + (1 if draw(prompt) < first_right else 0))
        return chat_reply(end=int(prompt.field("middle")) + (1 if draw(prompt) < second_right else 2))

    return skill


def sums(number):
    return [dspy.Example(start=n, end=n + 2).with_inputs("start") for n in range(0, 10 * number, 10)]


def is_sum(example, prediction, trace=None):
    return prediction.end == example.end


def chain(first_right=0.7, second_right=0.8):
    program = Chain()
    program.set_lm(ToyLM(skill=adding(first_right, second_right), temperature=1.0))
    return program


def compiled_chain(tmp_path, program, number=4, **settings):
    options = {"iterations": 1, "collect": Collect(samples=3), "augmenter": None, "gate": None, **settings}
    made = optimizer(tmp_path, **options)
    made.metric = is_sum
    return made.compile(program, trainset=sums(number), valset=sums(2))


def credits_of(compiled, threshold=1.0):
    results = compiled.detailed_results
    with open_library(results.run_dir) as library:
        found = read_credits(library, results.run, 1, threshold=threshold, agents=results.agents)
        return [(library.get(credit.trajectory), credit) for credit in found]


def test_estimates_converge_to_the_true_values(tmp_path):
    compiled = compiled_chain(
        tmp_path, chain(), credit=Credit(alternatives=30, continuations=30, drop=False, max_runs=4)
    )
    success = 0.7 * 0.8 + 0.3 * 0.2  # of a whole run: both right, or both wrong in ways that cancel
    for run, credit in credits_of(compiled):
        start, middle = run.steps[0].inputs["start"], run.steps[0].outputs["middle"]
        is_right = middle == start + 1
        given = 0.8 if is_right else 0.2  # how often what follows makes it right
        truth = given - success if credit.position == 0 else 1.0 - given
        assert credit.credit == pytest.approx(truth, abs=0.3)


def test_a_lucky_chain_of_two_errors_gives_no_row(tmp_path):
    compiled = compiled_chain(tmp_path, chain(0.6, 0.7), 8, credit=Credit(alternatives=16, continuations=16))
    credits = credits_of(compiled)
    lucky = {run.id for run, _ in credits if run.steps[0].outputs["middle"] == run.steps[0].inputs["start"]}
    assert lucky
    assert all(credit.credit < 0 for run, credit in credits if run.id in lucky and credit.position == 0)
    dropped = compiled.detailed_results.iterations[1].agents
    assert dropped["first"].dropped[NO_DIFFERENCE] >= len(lucky)
    assert dropped["second"].dropped[LUCKY] >= len(lucky)


def test_precision_against_an_oracle(tmp_path):
    compiled = compiled_chain(tmp_path, chain(0.6, 0.7), 8, credit=Credit(alternatives=16, continuations=16))
    results = compiled.detailed_results

    def oracle(example, step):
        return step.predictor == "first" and step.outputs["middle"] == example.start + 1

    first = [credit for _, credit in credits_of(compiled) if credit.predictor == "first"]
    with open_library(results.run_dir) as library:
        found = measure_precision(first, library, oracle)
        none = measure_precision([], library, oracle)
    assert found.steps == len(first) > found.right > 0
    assert found.precision > 0.9
    assert found.recall > 0.9
    assert (none.precision, none.recall) == (None, None)


# What is asked again


def recorded(program, number=0):
    rollouts = Rollouts(is_sum, num_threads=1, first_kwargs={"temperature": 1.0})
    return rollouts.run_one(program, Task(sums(number + 1)[number]))


def test_a_rerun_holds_the_step_and_asks_again_what_follows():
    program = chain()
    run = recorded(program)
    calls = program.first.lm.calls
    held = rerun(program, {"start": 0}, run, 0, Sampling("a"))
    assert [step.source for step in held.steps] == ["recorded", "live"]
    assert held.edited == 0
    assert program.first.lm.calls == calls + 1
    last = rerun(program, {"start": 0}, run, 1, Sampling("a"))
    assert [step.source for step in last.steps] == ["recorded", "recorded"]
    anew = rerun(program, {"start": 0}, run, 0, Sampling("a"), {"temperature": 0.5})
    assert [step.source for step in anew.steps] == ["live", "live"]


def test_a_rerun_of_a_step_that_did_not_parse_holds_its_error():
    program = Chain()
    program.set_lm(ScriptedLM(["no number", chat_reply(middle=1), chat_reply(end=2)]))
    run = recorded(program)
    assert run.failure is not None
    held = rerun(program, {"start": 0}, run, 0, Sampling("a"))
    assert held.failure is not None
    anew = rerun(program, {"start": 0}, run, 0, Sampling("a"), {"temperature": 0.5})
    assert anew.prediction.end == 2


# Clean no-ops


class Single(dspy.Module):
    def __init__(self):
        super().__init__()
        self.only = dspy.Predict("start: int -> end: int")

    def forward(self, start):
        return self.only(start=start)


def test_the_credit_of_the_only_step_is_its_success_less_that_of_other_answers(tmp_path):
    program = Single()
    program.set_lm(
        ToyLM(skill=lambda prompt: chat_reply(end=int(prompt.field("start")) + (2 if draw(prompt) < 0.5 else 3)))
    )
    compiled = compiled_chain(tmp_path, program, 6, credit=Credit(alternatives=30, max_runs=3))
    found = credits_of(compiled)
    assert len(found) == 3
    assert all(credit.value == 1.0 and credit.held >= 1 for _, credit in found)
    assert all(credit.credit == pytest.approx(0.5, abs=0.3) for _, credit in found)


def test_an_agent_that_always_says_the_same_keeps_its_rows(tmp_path):
    compiled = compiled_chain(tmp_path, chain(1.0, 1.0), credit=Credit())
    assert {credit.credit for _, credit in credits_of(compiled)} == {0.0}
    assert {credit.different for _, credit in credits_of(compiled)} == {0}
    agents = compiled.detailed_results.iterations[1].agents
    assert {agent.rows for agent in agents.values()} == {4}
    assert compiled.detailed_results.iterations[1].credits["first"].mean == 0.0


class Wandering(Chain):
    """Its second question depends on the clock of the test."""

    turns = 0

    def forward(self, start):
        type(self).turns += 1
        return self.second(middle=self.first(start=start + 1000 * self.turns).middle - 1000 * self.turns)


def test_a_program_whose_replay_diverges_has_no_credit_and_keeps_its_rows(tmp_path):
    program = Wandering()
    program.set_lm(ToyLM(skill=adding(1.0, 1.0)))
    compiled = compiled_chain(tmp_path, program, credit=Credit())
    entry = compiled.detailed_results.iterations[1]
    assert credits_of(compiled) == []
    assert entry.credits == {}
    assert entry.stages.get("credit") is None
    assert all(agent.rows for agent in entry.agents.values())


# Uses


def credit(position, value, baseline, different=4):
    return StepCredit("t", position, "p", value, baseline, 1, 4, different)


def test_what_a_step_is_worth_as_a_row():
    run = recorded(chain())
    worth = Credit().appraise
    assert worth(run, 0, {0: credit(0, 1.0, 0.5)}) == ("", 1.0)
    assert worth(run, 0, {0: credit(0, 1.0, 1.0)}).refused == NO_DIFFERENCE
    assert worth(run, 0, {0: credit(0, 1.0, 1.0, different=1)}) == ("", 1.0)
    assert worth(run, 0, {0: credit(0, 0.0, 0.0)}) == ("", 1.0)
    assert worth(run, 1, {0: credit(0, 0.0, 0.5), 1: credit(1, 1.0, 0.0)}).refused == LUCKY
    assert worth(run, 1, {}) == ("", 1.0)
    weighed = Credit(drop=False, weigh=True).appraise
    assert weighed(run, 0, {0: credit(0, 1.0, 0.5)}).weight == 1.5
    assert weighed(run, 0, {0: credit(0, 0.0, 1.0)}).weight == 0.1
    assert Credit(threshold=-0.5).appraise(run, 0, {0: credit(0, 0.5, 0.75)}) == ("", 1.0)


def test_repairs_begin_where_alternatives_gain_most():
    run = recorded(chain())
    context = RepairContext(chain(), Rollouts(is_sum), 1.0, frozenset())
    assert context.order(run) == [0, 1]
    assert replace(context, gains={run.id: {1: 0.5, 0: -0.1}}).order(run) == [1, 0]
    assert replace(context, gains={run.id: {0: -0.2}}).order(run) == [1, 0]


def test_a_compile_repairs_the_step_whose_alternatives_gain_most(tmp_path):
    class Order(Tracker):
        tried = None

        def on_repaired(self, event):
            self.tried = [attempt.predictor for attempt in event.repair.attempts]

    def skill(prompt):
        if prompt.asks_for("feedback"):
            return chat_reply(feedback="add one")
        if prompt.asks_for("middle"):
            return chat_reply(middle=int(prompt.field("start")) + 1)
        is_first = draw(prompt) < 0.6 and not prompt.field("feedback")
        return chat_reply(end=int(prompt.field("middle")) + (2 if is_first else 1))

    program = Chain()
    program.set_lm(ToyLM(skill=skill))
    seen = Order()
    compiled_chain(
        tmp_path,
        program,
        number=6,
        collect=Collect(samples=1),
        credit=Credit(alternatives=12),
        augmenter=CriticAugmenter(show_earlier=False),
        tracker=seen,
    )
    assert seen.tried == ["second"]


def test_reruns_are_stored_counted_and_never_trained_on(tmp_path):
    compiled = compiled_chain(tmp_path, chain(), credit=Credit(drop=False))
    results = compiled.detailed_results
    with open_library(results.run_dir) as library:
        reruns = list(library.trajectories(origin="credit"))
        assert library.verify() == []
        assert list(library.pairs(threshold=1.0)) == []
        parents = {id: library.get(id) for id in {run.parent for run in reruns}}
    assert all(parents[run.parent].origin == "rollout" for run in reruns)
    assert results.iterations[1].stages["credit"].calls == sum(run.usage.calls for run in reruns) > 0
    steps = [(run, place) for run in parents.values() for place in range(2)]
    assert len(reruns) == sum(4 + follows(run, place) for run, place in steps)
    sources = (tmp_path / "training" / "iteration-1" / "first.sources.jsonl").read_text()
    assert not any(run.id in sources for run in reruns)
    entry = results.iterations[1].credits["first"]
    assert entry.steps == len(parents)
    assert results.iterations[1].metrics["credit/first"] == entry.mean


def test_a_limit_on_the_stage_ends_it_early_and_the_compile_goes_on(tmp_path):
    budget = Budget(stages={"credit": Budget(calls=9)})
    compiled = compiled_chain(tmp_path, chain(), credit=Credit(drop=False), budget=budget, num_threads=1)
    results = compiled.detailed_results
    assert results.ended == "finished"
    assert 0 < results.iterations[1].stages["credit"].calls <= 9


def test_max_runs_values_one_run_of_each_example_first(tmp_path):
    compiled = compiled_chain(tmp_path, chain(1.0, 1.0), credit=Credit(max_runs=4))
    assert len({run.example_key for run, _ in credits_of(compiled)}) == 4


# Plan and resume


def test_a_plan_holds_what_credit_takes(tmp_path):
    settings = {"credit": Credit(), "iterations": 1}
    plan = optimizer(tmp_path, **settings).plan(student(), trainset=examples(), valset=examples())
    stage = next(stage for stage in plan.stages if stage.stage == "credit")
    spent = compiled_by(tmp_path, **settings).detailed_results.iterations[1].stages["credit"]
    assert stage.calls.low <= spent.calls <= stage.calls.high
    assert stage.tokens.low <= spent.prompt_tokens + spent.completion_tokens <= stage.tokens.high
    assert stage.units.likely > 0


def test_a_finished_compile_asks_nothing_again(tmp_path):
    first = compiled_by(tmp_path, credit=Credit())
    program = student()
    again = compiled_by(tmp_path, program, credit=Credit())
    assert program.doubler.lm.calls == 0
    assert without_time(again.detailed_results) == without_time(first.detailed_results)


class FailsOnce:
    """Fails for good at one call of the credit stage, and then never again."""

    def __init__(self):
        self.left = None

    def __call__(self, prompt):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("down")
        return adding(0.7, 0.8)(prompt)


def test_reruns_that_ended_are_not_paid_again(tmp_path):
    class Arm(Tracker):
        def on_stage_started(self, event):
            if event.stage == "credit" and skill.left is None:
                skill.left = 12

    skill = FailsOnce()
    program = Chain()
    program.set_lm(ToyLM(skill=skill, temperature=1.0))
    settings = {"credit": Credit(), "num_threads": 1}
    with pytest.raises(UnfinishedError):
        compiled_chain(tmp_path / "a", program, tracker=Arm(), patience=Patience(retries=0), **settings)
    before = program.first.lm.calls
    resumed = compiled_chain(tmp_path / "a", program, **settings)
    calls = program.first.lm.calls - before
    whole = compiled_chain(tmp_path / "b", chain(), **settings)
    assert resumed.detailed_results.iterations[1].credits == whole.detailed_results.iterations[1].credits
    assert calls < whole.detailed_results.usage.calls - 10


def killed(run_dir, number):
    program = "import sys; from tests.test_credit import compile_and_die; compile_and_die(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(run_dir), str(number)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120).returncode


def compile_and_die(run_dir, number):
    dspy.configure(adapter=ADAPTER)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    compiled_chain(Path(run_dir), chain(), credit=Credit(), tracker=KilledAt(int(number)))


def test_a_compile_that_was_killed_while_valuing_gives_the_same_result(tmp_path):
    assert killed(tmp_path / "run", 30) == -9
    with open_library(tmp_path / "run") as library:
        kept = library.count(origin="credit")
    assert kept > 0
    resumed = compiled_chain(tmp_path / "run", chain(), credit=Credit())
    whole = compiled_chain(tmp_path / "other", chain(), credit=Credit())
    ours, theirs = (result.detailed_results.iterations[1] for result in (resumed, whole))
    assert ours.credits == theirs.credits
    assert ours.lms == theirs.lms
