"""The generated tasks in which work divides: what all of them promise, and what is particular to each."""

import asyncio
import importlib
import os
import subprocess
import sys
from dataclasses import replace

import dspy
import pytest

from programs import hops, ledger, plan_and_calculate, tracking
from programs.plan_and_calculate import ExpressionError, calculate
from sirius_dspy import PlainAdapter
from sirius_dspy.demo.steps import GoldStep
from sirius_dspy.errors import DatasetError
from sirius_dspy.experiment import Experiment, Recipe, Task
from sirius_dspy.running.record import record
from sirius_dspy.testing import ScriptedLM, ToyLM
from tests import ROOT

TRACKING = (tracking.crown, tracking.boxes, tracking.rooms, tracking.calendar)
LEDGERS = (ledger.entries, ledger.shells)
HOPS = (hops.two_hops, hops.two_hops_things, hops.three_hops)
PLANS = (plan_and_calculate.legs, plan_and_calculate.prices)
TASKS = (*TRACKING, *LEDGERS, *HOPS, *PLANS)
FORMS = ({}, {"single": True}, {"single": True, "reasoning": True})
SPLITS = ("train", "validation", "test")
SIZES = (2, 3, 4, 5)

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
each_form = pytest.mark.parametrize("form", FORMS, ids=["team", "single", "single with reasoning"])
each_size = pytest.mark.parametrize("agents", SIZES)


@pytest.fixture(autouse=True)
def plain_adapter(dspy_defaults):
    dspy.configure(adapter=PlainAdapter())


def follow(task, examples, form):
    """A model that gives the right output of each of the gold steps."""
    replies = answers(task, examples, form)
    return ScriptedLM(lambda prompt: replies[prompt.messages[-1][1]])


def answers(task, examples, form):
    """The right reply to the last message of each prompt."""
    adapter = PlainAdapter()
    signatures = {name: predictor.signature for name, predictor in task.build(**form).named_predictors()}
    replies = {}
    for example in examples:
        for step in task.gold_steps(example, **form):
            signature = signatures[step.predictor]
            prompt = adapter.format(signature, [], dict(step.inputs))[-1]["content"]
            replies[prompt] = adapter.format_assistant_message_content(signature, dict(step.outputs))
    return replies


@each_task
@each_form
def test_right_steps_earn_the_reward_and_satisfy_the_oracle(task, form):
    examples, program = task.examples("validation", 8), task.build(**form)
    program.set_lm(follow(task, examples, form))
    for example in examples:
        trajectory = record(program, example.inputs())
        assert task.metric(example, dspy.Prediction(answer=trajectory.prediction["answer"])) == 1.0
        gold = task.gold_steps(example, **form)
        assert [step.predictor for step in trajectory.steps] == [step.predictor for step in gold]
        assert all(task.oracle(example, step) for step in trajectory.steps)
    assert task.metric(examples[0], asyncio.run(program.acall(**examples[0].inputs()))) == 1.0


@each_task
@each_form
def test_the_oracle_refuses_wrong_outputs(task, form):
    for example in task.examples("train", 5):
        for step in task.gold_steps(example, **form):
            field = list(step.outputs)[-1]
            for wrong in ("", "Nobody", f"{step.outputs[field]} or not"):
                assert not task.oracle(example, step._replace(outputs={**step.outputs, field: wrong}))
            assert not task.oracle(example, step._replace(outputs={}))


@each_task
def test_splits_share_no_item_and_seeds_differ(task):
    keys = {split: set() for split in SPLITS}
    for seed in range(2):
        for split in SPLITS:
            found = task.examples(split, 60, seed)
            assert len({example.dspy_key for example in found}) == 60
            keys[split] |= {example.dspy_key for example in found}
    assert not keys["test"] & (keys["train"] | keys["validation"])
    assert not keys["train"] & keys["validation"]
    few, many = task.examples("test", 5, 1), task.examples("test", 20, 1)
    assert [example.toDict() for example in few] == [example.toDict() for example in many[:5]]
    assert [example.toDict() for example in many] != [example.toDict() for example in task.examples("test", 20, 2)]


def test_items_are_the_same_in_every_process():
    script = (
        "from tests.test_step_tasks import TASKS\n"
        "print([example.toDict() for task in TASKS for example in task.examples('train', 5, 3)])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    expected = [example.toDict() for task in TASKS for example in task.examples("train", 5, 3)]
    assert done.stdout.strip() == str(expected)


@each_task
@each_form
def test_demonstrations_fit_the_predictors_and_are_right(task, form):
    shown = task.demonstrations(**form)
    predictors = dict(task.build(**form).named_predictors())
    assert set(shown) == set(predictors)
    for name, demos in shown.items():
        assert len(demos) >= 12
        for demo in demos:
            assert set(demo.inputs().keys()) == set(predictors[name].signature.input_fields)
            assert set(demo.labels().keys()) == set(predictors[name].signature.output_fields)
            step = GoldStep(name, dict(demo.inputs()), dict(demo.labels()))
            assert task.oracle(dspy.Example(answer=answer_of(demo)), step)
    assert set(task.demonstrations(**form, size=3)) == set(predictors)


def answer_of(demo):
    """The answer of the run that a demonstration comes from, as far as an oracle needs it."""
    return demo.answer if "answer" in demo else str(calculate(demo.get("expression", "0")))


@pytest.mark.parametrize("task", [*TRACKING, *LEDGERS, *HOPS], ids=lambda task: task.name)
def test_shown_runs_are_what_the_generator_would_say(task):
    for run in task.shown:
        example = run.example if task in TRACKING else run.example(getattr(task, "ledger", task).question)
        gold = task.gold_steps(example)
        assert gold[-1].outputs["answer"] == example.answer
        shown = task.demonstrations()
        for step in gold:
            assert dspy.Example(**step.inputs, **step.outputs).with_inputs(*step.inputs) in shown[step.predictor]


@each_task
def test_the_baseline_is_that_of_an_agent_that_does_not_read(task):
    longer = {"events": 5} if task in TRACKING else {"parts": 5} if task in LEDGERS else {}
    examples = task.examples("test", 100, **longer)
    answers = [example.answer for example in examples]
    assert max(map(answers.count, answers)) / 100 <= task.majority_baseline(examples) < 0.5


@each_task
def test_inputs_are_plain_texts_and_lists_of_them(task):
    for example in task.examples("train", 3):
        for value in dict(example.inputs()).values():
            assert type(value) is str or {type(part) for part in value} == {str}


# Team sizes


@pytest.mark.parametrize("task", TRACKING, ids=lambda task: task.name)
@each_size
def test_teams_of_each_size_follow_a_story(task, agents):
    program = task.build(agents=agents)
    names = [name for name, _ in program.named_predictors()]
    assert len(names) == agents
    test_right_steps_earn_the_reward_and_satisfy_the_oracle(task, {"agents": agents})
    test_the_oracle_refuses_wrong_outputs(task, {"agents": agents})
    test_demonstrations_fit_the_predictors_and_are_right(task, {"agents": agents})
    steps = [step.predictor for step in task.gold_steps(task.examples("test", 1, events=2)[0], agents=agents)]
    assert steps == [*names[:-1], *names[:-1], names[-1]]


def test_three_agents_are_the_usual_team():
    crown, example = tracking.crown, tracking.crown.examples("train", 1)[0]
    assert list(crown.build().dump_state()) == ["reader", "tracker", "reporter"]
    assert crown.build(agents=3).dump_state() == crown.build().dump_state()
    assert crown.gold_steps(example, agents=3) == crown.gold_steps(example)
    assert crown.demonstrations(agents=3) == crown.demonstrations()


@pytest.mark.parametrize(
    ("inputs", "right", "wrong"),
    [
        ({"holder": "Anna", "part": "Then Anna swaps hands with Omar. Lena waves."}, "Omar", "Anna"),
        ({"holder": "Omar", "names": "Anna, Omar"}, "Anna", "Omar"),
        ({"holder": "Lena", "names": "Anna, Omar"}, "Lena", "Omar"),
        ({"holder": "Lena", "names": "Anna"}, "Lena", "Anna"),
        ({"holder": "Omar", "names": "Anna, Omar", "moves": "yes"}, "Anna", "Omar"),
        ({"holder": "Omar", "names": "Anna, Omar", "moves": "No."}, "Omar", "Anna"),
    ],
    ids=str,
)
def test_trackers_of_all_teams_are_judged_by_their_own_inputs(inputs, right, wrong):
    step, example = GoldStep("tracker", inputs, {"new_holder": right}), dspy.Example(answer="Bruno")
    assert tracking.crown.oracle(example, step)
    assert not tracking.crown.oracle(example, step._replace(outputs={"new_holder": wrong}))


def test_namers_and_checkers_are_judged_by_their_own_inputs():
    def is_right(predictor, inputs, **outputs):
        return tracking.crown.oracle(dspy.Example(answer="Bruno"), GoldStep(predictor, inputs, outputs))

    event = {"event": "Anna swaps hands with Omar."}
    assert is_right("namer", event, names="anna, Omar.")
    assert not is_right("namer", event, names="Omar, Anna")
    assert not is_right("namer", {"event": "They laugh."}, names="They, laugh")
    for holder, moves in (("Anna", "yes"), ("Omar", "Yes."), ("Lena", "no")):
        assert is_right("checker", {"holder": holder, "names": "Anna, Omar"}, moves=moves)
        assert not is_right("checker", {"holder": holder, "names": "Anna, Omar"}, moves="maybe")
    assert not is_right("checker", {"holder": "Lena", "names": "Anna, Omar"}, moves="yes")


@pytest.mark.parametrize("agents", [1, 6, "2"])
def test_other_sizes_are_refused(agents):
    for refuse in (tracking.crown.build, tracking.crown.demonstrations):
        with pytest.raises(DatasetError, match=r"`agents` is .*, expected one of \[2, 3, 4, 5\]"):
            refuse(agents=agents)


def test_a_recipe_may_set_the_size_of_its_team():
    recipe = Recipe.from_file(ROOT / "recipes" / "laptop_team_sizes.toml")
    task = Task.of(replace(recipe, task=replace(recipe.task, build={"agents": 4})), files={})
    team = task.build()
    assert list(task.demonstrations(team)) == ["reader", "namer", "tracker", "reporter"]
    assert set(task.demonstrations(team)["tracker"][0]) == {"holder", "names", "new_holder"}
    assert "namer" not in task.demonstrations(task.build(agents=3), {"agents": 3})
    assert recipe.single is not None
    alone = task.single(recipe.single)
    assert list(task.single_demonstrations(alone, recipe.single)) == ["solver"]


@pytest.mark.parametrize("agents", [2, 5])
def test_the_recipe_of_sizes_trains_each_agent(tmp_path, agents):
    recipe = Recipe.from_file(ROOT / "recipes" / "laptop_team_sizes.toml")
    small = replace(recipe, num_threads=4, sizes=replace(recipe.sizes, train=3, validation=2, test=2))
    split = Task.of(small, files={}).split(0)
    right = answers(tracking.crown, [*split.train, *split.validation, *split.test], {"agents": agents})
    methods = [f"{agents} agents with demonstrations", f"SiriuS with {agents} agents"]
    found = Experiment(small, name="sizes").run(
        tmp_path, lm=ToyLM(skill=lambda prompt: right[prompt.messages[-1][1]]), methods=methods, seeds=[0]
    )
    shown, trained = found.cells
    assert shown.accuracy == trained.accuracy == 1.0
    names = [name for name, _ in tracking.crown.build(agents=agents).named_predictors()]
    assert all(rows[name] > 0 for rows in trained.details["rows"] for name in names)


# Dials


def test_lengths_may_differ_by_split():
    events = {"train": (1, 2), "validation": 3, "test": [5, 10]}
    lengths = {
        split: {len(example.parts) for example in tracking.crown.examples(split, 30, events=events)} for split in SPLITS
    }
    assert lengths == {"train": {1, 2}, "validation": {3}, "test": {5, 10}}


def test_settings_do_not_move_items_to_another_split():
    short = {example.dspy_key for example in tracking.crown.examples("test", 200, events=1)}
    mixed = {example.dspy_key for example in tracking.crown.examples("train", 400, seed=4, events=(1, 2), holders=5)}
    assert not short & mixed


@pytest.mark.parametrize("events", [0, (), (1, 0), (1.5,), True, {"test": 3}, "3"], ids=str)
def test_nonsense_lengths_are_refused(events):
    with pytest.raises(DatasetError, match=r"`events` is .* expected integers from 1"):
        tracking.crown.examples("train", 5, events=events)


@pytest.mark.parametrize(
    ("task", "settings", "name"),
    [
        (tracking.crown, {"holders": 2}, "holders"),
        (tracking.calendar, {"holders": 8}, "holders"),
        (hops.two_hops, {"chains": 0}, "chains"),
        (hops.three_hops, {"chains": 9}, "chains"),
        (ledger.entries, {"parts": 0}, "parts"),
        (ledger.shells, {"sentences": 0}, "sentences"),
        (plan_and_calculate.legs, {"kinds": 7}, "kinds"),
        (plan_and_calculate.prices, {"most": 1}, "most"),
    ],
    ids=lambda value: value.name if value in TASKS else str(value),
)
def test_nonsense_dials_are_refused(task, settings, name):
    with pytest.raises(DatasetError, match=f"`{name}` is .*expected"):
        task.examples("train", 5, **settings)


@each_task
def test_a_team_has_no_reasoning_field(task):
    example = task.examples("train", 1)[0]
    for refuse in (task.build, task.demonstrations, lambda **form: task.gold_steps(example, **form)):
        with pytest.raises(DatasetError, match="`reasoning` is set without `single`"):
            refuse(reasoning=True)


# Tracking


@pytest.mark.parametrize(
    ("holder", "event", "right"),
    [
        ("Anna", "Anna swaps hands with Omar.", "Omar"),
        ("Omar", "Anna swaps hands with Omar.", "Anna"),
        ("Lena", "Anna swaps hands with Omar.", "Lena"),
        ("Lena", "They laugh.", "Lena"),
    ],
)
def test_a_tracker_is_judged_by_its_own_inputs(holder, event, right):
    step = GoldStep("tracker", {"holder": holder, "event": event}, {"new_holder": right})
    assert tracking.crown.oracle(dspy.Example(answer="Bruno"), step)
    assert not tracking.crown.oracle(dspy.Example(answer="Bruno"), step._replace(outputs={"new_holder": "Bruno"}))


def test_boxes_are_emptied_one_way():
    world = tracking.boxes.world
    event = world.read("The red box is emptied into the blue box.")
    assert [world.move(holder, event) for holder in ("red box", "blue box", "pink box")] == [
        "blue box",
        "blue box",
        "pink box",
    ]


def test_a_part_without_an_event_is_no_story():
    example = dspy.Example(start="Anna", parts=["They laugh."], question="Who has the crown at the end?", answer="Anna")
    with pytest.raises(DatasetError, match=r"'They laugh\.' has no event"):
        tracking.crown.gold_steps(example)


# Hops and ledgers


def test_a_text_without_the_fact_is_no_item():
    example = dspy.Example(context="Omar lives in Lima.", question=hops.two_hops.question.format(subject="Anna"))
    with pytest.raises(DatasetError, match="A fact is missing"):
        hops.two_hops.gold_steps(example)


def test_a_long_text_goes_beyond_a_context_window():
    example = ledger.entries.examples("test", 1, parts=320, sentences=10)[0]
    story = ledger.entries.gold_steps(example, single=True)[0].inputs["story"]
    assert len(story.split()) + story.count(".") > 8192  # words and full stops are tokens, at least
    assert len(ledger.entries.gold_steps(example)) == 321


# Plans


@pytest.mark.parametrize(
    ("expression", "value"), [("3 * 4 + 2", 14), (" 2 * (5 - 7) ", -4), ("-3 + 3", 0), ("7", 7), ("0 * 9", 0)]
)
def test_the_calculator_is_exact(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", "legs", "3 * x", "9 ** 9", "3 / 2", "1.5", "3 * 4 = 12", "__import__('os')", "1e9", "'a' * 9", "007"),
        *("1" * 10, "1+" * 200 + "1", "(" * 150, "1and 2", "3 (4)", "3 *", "1, 2", "\n"),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_the_calculator_refuses_everything_else(expression):
    with pytest.raises(ExpressionError, match="expected"):
        calculate(expression)


def test_a_plan_that_cannot_be_calculated_is_a_wrong_answer():
    program, example = plan_and_calculate.prices.build(), plan_and_calculate.prices.examples("train", 1)[0]
    program.set_lm(ScriptedLM(lambda prompt: prompt.field("result") or "I do not know."))
    assert program(**example.inputs()).answer == "unknown"
    assert plan_and_calculate.prices.metric(example, dspy.Prediction(answer="unknown")) == 0.0


def test_the_single_agent_may_have_the_calculator():
    task, form = plan_and_calculate.legs, {"single": True, "calculator": True}
    examples, program = task.examples("test", 5), task.build(**form)
    program.set_lm(follow(task, examples, form))
    assert [task.metric(example, program(**example.inputs())) for example in examples] == [1.0] * 5
    assert set(task.demonstrations(**form)) == {"solver"}
    for wrong in ({"calculator": True}, {"single": True, "reasoning": True, "calculator": True}):
        with pytest.raises(DatasetError, match="`calculator` is for the single agent"):
            task.build(**wrong)


def test_things_of_unknown_worth_are_refused():
    with pytest.raises(DatasetError, match=r"worth of 'unicorn'.*unknown"):
        plan_and_calculate.legs.gold_steps(dspy.Example(question="How many legs do 2 unicorns have?", answer="8"))


# Recipes


STUDIED = ["tracking", "rooms", "boxes", "hops", "ledger", "plan"]


@pytest.mark.parametrize("name", STUDIED)
def test_recipes_fine_tune_one_model_for_all_agents_where_a_program_loops(name):
    recipe = Recipe.from_file(ROOT / "recipes" / f"laptop_{name}.toml")
    module, _, attribute = recipe.task.path.partition(":")
    steps = getattr(importlib.import_module(module), attribute).gold_steps
    runs = [
        [step.predictor for step in steps(example)] for example in Task.of(recipe, limit=12, files={}).split(0).train
    ]
    loops = any(len(set(run)) < len(run) for run in runs)
    assert [method for method in recipe.methods if method.startswith("BootstrapFinetune")] == [
        "BootstrapFinetune shared" if loops else "BootstrapFinetune"
    ]


@pytest.mark.parametrize("name", STUDIED)
def test_recipes_show_a_single_agent_reasoning(name):
    recipe = Recipe.from_file(ROOT / "recipes" / f"laptop_{name}.toml")
    task = Task.of(recipe, limit=3, files={})
    shown = task.single_demonstrations(task.single(recipe.reasoning), recipe.reasoning)
    assert "reasoning" in shown["solver"][0]
    program = task.build()
    assert set(task.demonstrations(program)) == {agent for agent, _ in program.named_predictors()}
    assert len(task.split(0).test) == 3
