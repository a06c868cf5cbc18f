"""A warm start: agents are fine-tuned on their demonstrations before the program collects."""

import enum
import json

import dspy
import pydantic
import pytest

from sirius_dspy import Collect, Curator, SiriuS, open_library
from sirius_dspy.errors import SettingsError
from sirius_dspy.testing import ToyLM, chat_reply
from tests import toy

pytestmark = pytest.mark.usefixtures("chat_adapter")

ODD = [dspy.Example(number=number, doubled=str(2 * number)) for number in (1, 3, 5)]
DEMOS = {"doubler": ODD}


def collecting(**settings):
    return Collect(**{"samples": 1, "demos": DEMOS, "warm_start": True, **settings})


def completions(path):
    return [json.loads(line)["messages"][-1]["content"] for line in path.read_text().splitlines()]


def compile_warm(tmp_path, *, valset=None, **settings):
    options = {"iterations": 1, "augmenter": None, "collect": collecting(), **settings}
    program = toy.student()
    examples = toy.examples()
    compiled = toy.optimizer(tmp_path, **options).compile(program, trainset=examples, valset=valset or examples)
    return compiled, program


def test_the_program_that_collects_has_learned_the_demonstrations(tmp_path):
    compiled, program = compile_warm(tmp_path)
    start, first = compiled.detailed_results.iterations[:2]
    assert start.promoted == {"doubler": True}
    assert [trial.agents for trial in start.trials] == [(), ("doubler",)]
    assert start.trials[0].standing.mean() == 0.5  # even numbers only
    assert start.score == 7 / 8  # all but 7, which no demonstration shows
    assert start.lms["doubler"] != program.doubler.lm.model
    assert first.metrics["collect/success_rate"] == 7 / 8
    assert program.doubler.lm.model == toy.student().doubler.lm.model


def test_they_are_runs_of_their_own_in_the_library_and_rows_of_every_iteration(tmp_path):
    compiled, _ = compile_warm(tmp_path)
    with open_library(tmp_path) as library:
        shown = list(library.trajectories(origin="demonstration"))
        assert [run.steps[0].outputs for run in shown] == [{"doubled": "2"}, {"doubled": "6"}, {"doubled": "10"}]
        assert all(run.iteration == 0 and len(run.steps) == 1 for run in shown)
    assert compiled.detailed_results.iterations[0].agents["doubler"].rows == 3
    warm = completions(tmp_path / "training/iteration-0/doubler.jsonl")
    later = completions(tmp_path / "training/iteration-1/doubler.jsonl")
    assert set(warm) < set(later)


def test_their_rows_can_be_left_to_the_warm_start(tmp_path):
    compiled, _ = compile_warm(tmp_path, collect=collecting(keep_demos=False), curator=Curator(max_rows=1))
    assert compiled.detailed_results.iterations[1].agents["doubler"].rows == 1


def test_no_prompt_shows_them_any_more(tmp_path):
    compile_warm(tmp_path)
    with open_library(tmp_path) as library:
        assert {step.num_demos for run in library.trajectories(origin="rollout") for step in run.steps} == {0}


def test_the_gate_decides_about_them(tmp_path):
    wrong = {"doubler": [dspy.Example(number=number, doubled="wrong") for number in (0, 2, 4)]}
    compiled, program = compile_warm(tmp_path, collect=collecting(demos=wrong))
    start = compiled.detailed_results.iterations[0]
    assert start.promoted == {"doubler": False}
    assert start.score == 0.5
    assert start.lms["doubler"] == program.doubler.lm.model


def test_a_finished_one_is_not_repeated(tmp_path):
    compiled, _ = compile_warm(tmp_path)
    again, program = compile_warm(tmp_path)
    assert program.doubler.lm.calls == 0
    assert toy.without_time(again.detailed_results) == toy.without_time(compiled.detailed_results)


def test_the_plan_counts_it():
    optimizer = SiriuS(toy.exact, iterations=1, augmenter=None, collect=collecting())
    plan = optimizer.plan(toy.student(), trainset=toy.examples(), valset=toy.examples())
    assert [(stage.iteration, stage.stage) for stage in plan.stages][:4] == [
        (0, "evaluate"),
        (0, "train"),
        (0, "evaluate"),
        (1, "collect"),
    ]


def test_it_needs_demonstrations():
    with pytest.raises(SettingsError, match="no demonstrations to fine-tune on"):
        SiriuS(toy.exact, collect=Collect(warm_start=True)).plan(
            toy.student(), trainset=toy.examples(), valset=toy.examples()
        )


def test_it_needs_whole_demonstrations():
    partial = {"writer.predict": [dspy.Example(doubled="2", answer="ans:2")]}
    with pytest.raises(SettingsError, match=r"demos\['writer.predict'\]\[0\] has no \['reasoning'\]"):
        SiriuS(toy.exact, collect=collecting(demos=partial)).plan(
            toy.student(), trainset=toy.examples(), valset=toy.examples()
        )


class Color(enum.Enum):
    RED = "red"


class Page(pydantic.BaseModel):
    title: str
    number: int = 1


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (str, 4, "4"),
        (str, "four\n", "four"),
        (int, "4", "4"),
        (Color, "red", "red"),
        (list[str], ("a", "b"), '["a", "b"]'),
        (Page, Page(title="a"), '{"title": "a", "number": 1}'),
        (Page, {"title": "a"}, '{"title": "a", "number": 1}'),
    ],
)
def test_a_demonstration_is_trained_on_as_an_lm_would_have_replied(tmp_path, kind, value, text):
    program = dspy.Predict(dspy.Signature("number: int -> answer").with_updated_fields("answer", kind))
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer=text)))
    demos = {"self": [dspy.Example(number=9, answer=value)]}
    optimizer = toy.optimizer(tmp_path, iterations=1, augmenter=None, collect=collecting(demos=demos))
    optimizer.metric = lambda example, prediction, trace=None: 1.0
    optimizer.compile(program, trainset=toy.examples(range(2)), valset=toy.examples(range(2)))
    (reply,) = completions(tmp_path / "training/iteration-0/self.jsonl")
    assert reply.startswith(f"[[ ## answer ## ]]\n{text}\n")


@pytest.mark.parametrize(("kind", "value"), [(int, "four"), (Color, "green"), (str, "a\n[[ ## answer ## ]]\nb")])
def test_a_demonstration_that_no_reply_can_have_is_refused_before_any_call(kind, value):
    program = dspy.Predict(dspy.Signature("number: int -> answer").with_updated_fields("answer", kind))
    program.set_lm(ToyLM())
    demos = {
        "self": [dspy.Example(number=8, answer="4" if kind is int else "red"), dspy.Example(number=9, answer=value)]
    }
    with pytest.raises(SettingsError, match=r"demos\['self'\]\[1\] has the outputs answer=.*cannot be trained on"):
        SiriuS(toy.exact, collect=collecting(demos=demos)).plan(program, trainset=toy.examples(), valset=toy.examples())


def test_a_conversation_may_be_demonstrated(tmp_path):
    program = dspy.Predict("history: dspy.History, number: int -> answer")
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="yes")))
    said = dspy.History(messages=[{"number": 1, "answer": "no"}])
    examples = [dspy.Example(history=said, number=n, answer="yes").with_inputs("history", "number") for n in (2, 3)]
    demos = {"self": [dspy.Example(history=said, number=9, answer="yes")]}
    optimizer = toy.optimizer(tmp_path, iterations=1, augmenter=None, collect=collecting(demos=demos))
    optimizer.compile(program, trainset=examples, valset=examples)
    row = json.loads((tmp_path / "training/iteration-0/self.jsonl").read_text())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
