"""A plan says what a compile will do and cost, without asking any LM."""

from __future__ import annotations

import json

import dspy
import pytest

from sirius_dspy import Budget, Collect, CriticAugmenter, ExperienceLibrary, LadderAugmenter, Plan
from sirius_dspy.errors import DatasetError, SettingsError
from sirius_dspy.testing import Prompt, ScriptedTrainer, ToyLM, chat_reply
from tests.toy import ADAPTER, examples, optimizer, student


@pytest.fixture(autouse=True)
def adapter():
    dspy.configure(adapter=ADAPTER)


def spent(result):
    """(iteration, stage) to LM calls and tokens."""
    return {
        (entry.iteration, stage): (usage.calls, usage.prompt_tokens + usage.completion_tokens)
        for entry in result.iterations
        for stage, usage in entry.stages.items()
        if usage.calls
    }


def test_a_plan_asks_no_lm_and_writes_nothing(tmp_path):
    program = student()
    plan = optimizer(tmp_path / "run").plan(program, trainset=examples(), valset=examples())
    assert isinstance(plan, Plan)
    assert str(plan)
    assert program.doubler.lm.calls == 0
    assert not (tmp_path / "run").exists()


def test_a_plan_names_agents_lms_and_stages(tmp_path):
    plan = optimizer(tmp_path, frozen=["doubler"], iterations=1).plan(student(), trainset=examples(), valset=examples())
    assert list(plan.agents) == ["doubler", "writer.predict"]
    assert list(plan.trained) == ["writer.predict"]
    assert plan.lms["doubler"] == student().doubler.lm.model
    assert [(stage.iteration, stage.stage) for stage in plan.stages] == [
        (0, "evaluate"),
        (1, "collect"),
        (1, "repair"),
        (1, "train"),
        (1, "evaluate"),
    ]
    assert plan.stages[1].units.likely == 16
    assert plan.stages[3].units.likely == 1
    shown = str(plan)
    assert "8 training examples" in shown
    assert "writer.predict" in shown


def test_ranges_without_earlier_runs_hold_the_truth(tmp_path):
    made = optimizer(tmp_path)
    plan = made.plan(student(), trainset=examples(), valset=examples())
    assert plan.stages[0].calls.likely == 16
    result = made.compile(student(), trainset=examples(), valset=examples()).detailed_results
    planned = {(stage.iteration, stage.stage): stage for stage in plan.stages}
    for place, (calls, tokens) in spent(result).items():
        assert planned[place].calls.low <= calls <= planned[place].calls.high
        assert planned[place].tokens.low <= tokens <= planned[place].tokens.high


def check_estimate(make, program, trainset, valset, tmp_path):
    """Compile once with one seed; the plan for another seed must be right within a fifth."""
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        make(tmp_path / "first", seed=1, library=library).compile(program(), trainset=trainset, valset=valset)
        again = make(tmp_path / "second", seed=2, library=library)
        plan = again.plan(program(), trainset=trainset, valset=valset)
        result = again.compile(program(), trainset=trainset, valset=valset).detailed_results
    calls, tokens = result.usage.calls, result.usage.prompt_tokens + result.usage.completion_tokens
    assert plan.total["calls"].likely == pytest.approx(calls, rel=0.2)
    assert plan.total["tokens"].likely == pytest.approx(tokens, rel=0.2)


def test_earlier_runs_make_the_plan_right_within_a_fifth(tmp_path):
    check_estimate(optimizer, student, examples(), examples(), tmp_path)


def test_runs_that_confirmed_earlier_repairs_are_planned_too(tmp_path):
    settings = {"iterations": 1, "augmenter": LadderAugmenter([CriticAugmenter()])}
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        made = optimizer(tmp_path / "first", library=library, **settings)
        result = made.compile(student(), trainset=examples(), valset=examples()).detailed_results
        again = optimizer(tmp_path / "second", library=library, **settings)
        plan = again.plan(student(), trainset=examples(), valset=examples())
    stages = {(stage.iteration, stage.stage): stage for stage in plan.stages}
    assert stages[1, "repair"].calls.likely == pytest.approx(spent(result)[1, "repair"][0])


class Relay(dspy.Module):
    """Three agents, of which the second is asked until it is sure."""

    def __init__(self):
        super().__init__()
        self.reader = dspy.Predict("number: int -> digits")
        self.worker = dspy.Predict("digits, turn: int -> value")
        self.writer = dspy.Predict("value -> answer")

    def forward(self, number):
        digits = self.reader(number=number).digits
        for turn in range(number % 3 + 1):
            value = self.worker(digits=digits, turn=turn).value
        return self.writer(value=value)


def relay_skill(prompt: Prompt) -> str:
    if prompt.asks_for("rewritten"):
        return chat_reply(rewritten=prompt.field("text"))
    if prompt.asks_for("digits"):
        return chat_reply(digits=f"d{prompt.field('number')}")
    if prompt.asks_for("value"):
        number = int(prompt.field("digits").strip("d"))
        return chat_reply(value=number if prompt.field("feedback") or number % 2 else "unsure")
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="name the number")
    return chat_reply(answer=prompt.field("value"))


def test_a_program_with_a_loop_is_known_from_its_earlier_runs(tmp_path):
    def metric(example, prediction, trace=None):
        return prediction.answer == str(example.number)

    def make(run_dir, **settings):
        made = optimizer(run_dir, iterations=1, augmenter=CriticAugmenter(), **settings)
        made.metric = metric
        return made

    def program():
        relay = Relay()
        relay.set_lm(ToyLM(skill=relay_skill))
        return relay

    data = [dspy.Example(number=number).with_inputs("number") for number in range(24)]
    check_estimate(make, program, data[:16], data[16:], tmp_path)


def test_money_is_planned_where_prices_are_known(tmp_path):
    priced = optimizer(tmp_path, budget=Budget(calls=10_000, prices={"toy": (1.0, 2.0)}))
    plan = priced.plan(student(), trainset=examples(), valset=examples())
    assert plan.total["usd"].likely > 0
    assert optimizer(tmp_path).plan(student(), trainset=examples(), valset=examples()).total["usd"] is None


def test_a_plan_is_json(tmp_path):
    plan = optimizer(tmp_path).plan(student(), trainset=examples(), valset=examples())
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["agents"] == {"doubler": ["doubler"], "writer.predict": ["writer.predict"]}
    assert len(data["stages"]) == len(plan.stages)


def test_sampling_until_solved_is_planned_as_a_range(tmp_path):
    made = optimizer(tmp_path, collect=Collect(samples=3, until_solved=True))
    units = made.plan(student(), trainset=examples(), valset=examples()).stages[1].units
    assert (units.low, units.high) == (8, 24)


def test_a_plan_refuses_what_compile_refuses(tmp_path):
    with pytest.raises(DatasetError):
        optimizer(tmp_path).plan(student(), trainset=[], valset=examples())
    with pytest.raises(SettingsError, match="`trainer`"):
        optimizer(tmp_path, trainer="lora").plan(student(), trainset=examples(), valset=examples())
    trainer = ScriptedTrainer({})
    with pytest.raises(ValueError, match="no LM for agent"):
        optimizer(tmp_path, trainer=trainer).plan(student(), trainset=examples(), valset=examples())
