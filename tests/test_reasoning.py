import asyncio
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import dspy
import pytest

from programs import needle_haystack, reasoning
from sirius_dspy import PlainAdapter
from sirius_dspy.demo import generated
from sirius_dspy.errors import DatasetError, MissingDependencyError
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.repair.prompts import Critique
from sirius_dspy.running.record import record
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM
from tests import ROOT

TASKS = (reasoning.family_relationships, reasoning.chain_sum, reasoning.leg_counting, reasoning.simple_equations)
SPLITS = ("train", "validation", "test")

task_by_name = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
team_or_single = pytest.mark.parametrize("single", [False, True], ids=["team", "single"])


@pytest.fixture(autouse=True)
def plain_adapter(dspy_defaults):
    dspy.configure(adapter=PlainAdapter())


def knowing(examples):
    """A model that knows the answers and nothing about formats: its replies are bare."""
    answers = {example.question: example.answer for example in examples}
    return ScriptedLM(lambda prompt: answers[prompt.field("question")])


@task_by_name
@team_or_single
def test_every_program_runs_end_to_end(task, single):
    program, examples = task.build(single), task.examples("test", 6)
    lm = knowing(examples)
    program.set_lm(lm)
    assert [task.metric(e, program(**e.inputs())) for e in examples] == [1.0] * 6
    assert task.metric(examples[0], asyncio.run(program.acall(**examples[0].inputs()))) == 1.0
    assert lm.calls == 7 * (1 if single else len(program.wirings))


@task_by_name
def test_agents_see_what_the_paper_lets_them_see(task):
    program, example = task.build(), task.examples("train", 1)[0]
    lm = ScriptedLM(lambda prompt: f"step {prompt.messages[-1][1].count('step')}")
    program.set_lm(lm)
    steps = record(program, example.inputs()).steps
    assert [step.predictor for step in steps] == list(program.wirings)
    assert steps[0].inputs == dict(example.inputs())
    last = steps[-1].inputs
    assert last["question"] == example.question
    assert "context" not in last
    assert set(last.values()) >= {value for step in steps[:-1] for value in step.outputs.values()}


@task_by_name
def test_splits_never_share_a_question(task):
    keys = {split: set() for split in SPLITS}
    questions = {split: set() for split in SPLITS}
    for seed in range(2):
        for split in SPLITS:
            found = task.examples(split, 60, seed)
            assert len({e.dspy_key for e in found}) == 60
            keys[split] |= {e.dspy_key for e in found}
            questions[split] |= {str(e.inputs()) for e in found}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not keys[one] & keys[other]
        assert not questions[one] & questions[other]


def test_twins_are_one_question():
    sums = {re.sub(r"[ =]", "", e.question) for e in reasoning.chain_sum.examples("train", 400)}
    swapped = {"+".join(reversed(text.split("+"))) for text in sums if "+" in text}
    assert {text for text in swapped & sums if text != "+".join(reversed(text.split("+")))} == set()
    equations = [e.question.rpartition(": ")[2] for e in reasoning.simple_equations.examples("train", 100)]
    equations = [equation.rpartition("equation ")[2] for equation in equations]
    assert len({re.sub("[a-z]", "x", equation) for equation in equations}) == 100
    legs = [
        e.question.partition("have ")[2].strip("?").split(", ") for e in reasoning.leg_counting.examples("test", 300)
    ]
    assert len({tuple(sorted(animals)) for animals in legs}) == 300


@task_by_name
def test_seeds_differ_and_sizes_are_prefixes(task):
    few, many = task.examples("test", 5, 1), task.examples("test", 20, 1)
    assert [e.toDict() for e in few] == [e.toDict() for e in many[:5]]
    assert [e.toDict() for e in many] != [e.toDict() for e in task.examples("test", 20, 2)]


def test_items_are_the_same_in_every_process():
    script = (
        "from programs import reasoning as r\n"
        "tasks = (r.family_relationships, r.chain_sum, r.leg_counting, r.simple_equations)\n"
        "print([e.toDict() for task in tasks for e in task.examples('train', 5, 3)])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([e.toDict() for task in TASKS for e in task.examples("train", 5, 3)])


def test_the_demo_task_kept_its_items():
    found = [e.toDict() | {"key": e.dspy_key} for s in SPLITS for e in needle_haystack.examples(s, 40, seed=3)]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == "b16581d7f3e5bfd6"


@pytest.mark.parametrize(
    ("task", "item", "inputs"),
    [
        (
            reasoning.family_relationships,
            {
                "question": "John is married to Isabella. They have a child called Edward.\n\nWhat relation is John to "
                "Edward? Answer with a single word.",
                "answer": "father",
            },
            {
                "context": "John is married to Isabella. They have a child called Edward.",
                "question": "What relation is John to Edward?",
            },
        ),
        (
            reasoning.chain_sum,
            {
                "question": "State the final answer to the following arithmetic problem: 99 - 28 =",
                "answer": "71",
                "metadata": {"expression": "99 - 28"},
            },
            {"question": "99 - 28 ="},
        ),
        (
            reasoning.leg_counting,
            {
                "question": "Your task is to count how many legs there are in total when given a list of animals.\n\n"
                "Now, how many legs are there in total if you have 3 sheeps?\n",
                "answer": "12",
                "metadata": {"animals": {"sheep": 3}},
            },
            {"question": "How many legs are there in total if you have 3 sheeps?"},
        ),
        (
            reasoning.simple_equations,
            {
                "question": "Determine the value of b that satisfies: b + 3 = 11",
                "answer": "8",
                "metadata": {"equation": "b + 3 = 11"},
            },
            {"question": "Determine the value of b that satisfies: b + 3 = 11"},
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_known_items(task, item, inputs):
    example = task.read(item)
    assert dict(example.inputs()) == inputs
    assert dict(example.labels()) == {"answer": item["answer"]}
    assert task.metric(example, dspy.Prediction(answer=f" {item['answer']}.")) == 1.0


@task_by_name
@pytest.mark.parametrize(
    "reply",
    [
        "",
        "...",
        "father or son or wife",
        "son, father, wife, husband, mother",
        "8 or 12 or 71",
        "8 12 71",
        "1e400",
        "9**9**9",
        "0x8",
        "x" * 100_000,
        "8" * 100_000,
        "__import__('os')",
        "8, 12, 71",
        "not 8",
        None,
        8,
        ["8"],
    ],
    ids=lambda reply: repr(reply)[:20],
)
def test_hostile_replies_score_nothing(task, reply):
    for example in task.examples("test", 10):
        assert task.metric(example, dspy.Prediction(answer=reply)) == 0.0


@task_by_name
def test_repeating_the_question_scores_nothing(task):
    for example in task.examples("train", 200):
        for text in (example.question, example.question.rpartition(": ")[2], f"Answer: {example.question}"):
            assert task.metric(example, dspy.Prediction(answer=text)) == 0.0


def test_gold_of_family_is_a_word_the_generator_gives_the_right_way_round():
    answers = {e.answer for e in reasoning.family_relationships.examples("train", 300)}
    assert answers == {"son", "husband", "wife", "father", "mother"}


def test_gold_of_sums_and_equations_is_right():
    for example in reasoning.chain_sum.examples("test", 50):
        first, operator, second, _ = example.question.split()
        assert int(example.answer) == int(first) + (1 if operator == "+" else -1) * int(second)
    for example in reasoning.simple_equations.examples("test", 30):
        left, right = re.search(r"([-+\w ]+) = (-?\d+)$", example.question).groups()
        terms = re.sub(r"\b[a-z]\b", example.answer, left.rpartition("equation ")[2].strip()).split()
        assert int(terms[0]) + (1 if terms[1] == "+" else -1) * int(terms[2]) == int(right)


@task_by_name
@team_or_single
def test_demonstrations_fit_the_predictors_and_are_right(task, single):
    shown = task.demonstrations(single)
    predictors = dict(task.build(single).named_predictors())
    assert set(shown) == set(predictors)
    for name, demos in shown.items():
        assert len(demos) == 4
        for demo in demos:
            assert set(demo.inputs().keys()) == set(predictors[name].signature.input_fields)
            assert set(demo.labels().keys()) == set(predictors[name].signature.output_fields)
    for run in task.runs:
        assert task.metric(dspy.Example(**run), dspy.Prediction(answer=run["answer"])) == 1.0
        assert task.metric(dspy.Example(**run), dspy.Prediction(answer=run["alone"])) == 1.0
        if "working" in run:
            left, _, right = run["working"].partition(" = ")
            total = sum(
                (-1 if sign == "-" else 1) * int(number) * int(times or 1)
                for sign, number, times in re.findall(r"([-+]?) ?(\d+)(?: \* (\d+))?", left)
            )
            assert str(total) == right == run["answer"]


@pytest.mark.parametrize("task", [reasoning.chain_sum, reasoning.simple_equations], ids=lambda task: task.name)
def test_what_is_demonstrated_is_in_no_split(task):
    shown = {run["key"] for run in task.runs}
    blind = dataclasses.replace(task, runs=())
    small = {"max_digits": 1} if task is reasoning.chain_sum else {"max_value": 9}
    settings = {**task.settings, **small}

    def keys_of(task):
        task = dataclasses.replace(task, settings=settings)
        return {e.dspy_key for split in SPLITS for e in task.examples(split, 30)}

    assert shown & keys_of(blind)  # the generator does make them
    assert not shown & keys_of(task)


def test_names_and_animals_of_the_demonstrations_cannot_be_generated():
    from reasoning_gym.arithmetic.leg_counting import ANIMALS
    from reasoning_gym.graphs.family_relationships import FamilyRelationshipsConfig

    config = FamilyRelationshipsConfig()
    for run in reasoning.family_relationships.runs:
        assert not set(re.findall(r"[A-Z]\w+", run["context"])) & {*config.male_names, *config.female_names}
    for run in reasoning.leg_counting.runs:
        assert not [animal for animal in ANIMALS if re.search(rf"\b{animal}s?\b", run["question"])]


@task_by_name
def test_majority_baseline_is_that_of_the_examples(task):
    examples = task.examples("test", 50)
    answers = [e.answer for e in examples]
    assert task.majority_baseline(examples) == max(map(answers.count, answers)) / 50


@pytest.mark.parametrize("arguments", [("dev", 5, 0), ("train", 0, 0), ("train", 5, -1)])
def test_refuses_what_it_cannot_serve(arguments):
    with pytest.raises(DatasetError, match="expected"):
        reasoning.chain_sum.examples(*arguments)


def test_a_task_with_few_questions_says_how_many_it_has(monkeypatch):
    monkeypatch.setattr(generated, "_PATIENCE", 2000)
    few = dataclasses.replace(reasoning.chain_sum, settings={**reasoning.chain_sum.settings, "max_digits": 1})
    with pytest.raises(DatasetError, match=r"has (3|4)\d questions, not 500. Request fewer"):
        few.examples("test", 500)


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingDependencyError, match=r"`chain_sum`.*pip install 'sirius-dspy\[local\]'"):
        reasoning.chain_sum.examples("train", 1)


# Repairs


def test_demonstrations_of_repairs_fit_what_is_asked_and_mend_what_is_wrong():
    task = reasoning.chain_sum
    demos = task.repair_demonstrations()
    critique = set(Critique.input_fields) | set(Critique.output_fields)
    assert {frozenset(demo.keys()) for demo in demos.critique} == {frozenset(critique)}
    assert {frozenset(demo.keys()) for demo in demos.rephrase} == {frozenset({"task", "text", "rewritten"})}
    assert list(demos.regenerate) == ["calculator"]
    for told, asked in zip(demos.critique, demos.regenerate["calculator"], strict=True):
        expression, _, right = asked.working.partition(" = ")
        assert eval(expression) == int(right) == int(told.correct_answer)
        assert told.agent_answer.startswith(f"{expression} = ")
        assert told.agent_answer != asked.working
        assert f"[calculator]\n{told.agent_answer}" in told.team
        assert told.feedback == asked.feedback
    CriticAugmenter(demos=demos).check(task.build())


def test_a_task_without_demonstrations_of_repairs_says_so():
    with pytest.raises(DatasetError, match="no demonstrations of repairs for 'leg_counting'"):
        reasoning.leg_counting.repair_demonstrations()


def test_a_calculator_that_follows_the_demonstrated_advice_is_repaired():
    def play(prompt):
        if prompt.asks_for("feedback"):
            return "7 + 9 is 16."
        if prompt.field("feedback") is not None:
            return "7 + 9 = 16"
        if prompt.field("text") is not None:
            return prompt.field("text")
        if prompt.field("working") is not None:
            return prompt.field("working").partition("= ")[2]
        return "7 + 9 = 17" if prompt.field("facts") is not None else "Add them."

    example = dspy.Example(question="7 + 9 =", answer="16", dspy_key="x").with_inputs("question")
    program = reasoning.chain_sum.build()
    program.set_lm(ScriptedLM(play))
    rollouts = Rollouts(reasoning.chain_sum.metric, run="r", seed=0)
    failed = rollouts.run_one(program, Task(example))
    context = RepairContext(program, rollouts, 1.0, frozenset({"calculator"}))
    demos = reasoning.chain_sum.repair_demonstrations()
    verdicts = {}
    for answering in ((), ("calculator",)):
        augmenter = CriticAugmenter(show_earlier=False, demos=demos, guard=LeakGuard(answering=answering))
        found = augmenter.repair(failed, example, context)
        verdicts[answering] = [attempt.verdict for attempt in found.repair.attempts]
    assert verdicts == {(): ["leaked"], ("calculator",): ["repaired"]}
