"""Experiments on a small task that can be learnt, through the command and through Python."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dspy
import mlflow
import pytest
from typer.testing import CliRunner

from sirius_dspy import Credit, CriticAugmenter, LocalLM, PreferenceTrainer, ProviderTrainer
from sirius_dspy.baselines import PromptedTeam
from sirius_dspy.cli import app
from sirius_dspy.errors import DatasetError, RunDamagedError, RunMismatchError, SettingsError, UnpreparedProgramError
from sirius_dspy.experiment import (
    Bench,
    Cell,
    Entry,
    Experiment,
    ExperimentError,
    MLflowRuns,
    Outcome,
    Recipe,
    Results,
    Task,
    list_methods,
    render_markdown,
)
from sirius_dspy.stats import wilson_interval
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from sirius_dspy.tracking.events import Tracker, Trackers
from sirius_dspy.trajectory import example_key
from tests import ROOT, toy
from tests.mlflow_help import WARNINGS
from tests.toy import Doubling, exact

pytestmark = pytest.mark.slow

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
NUMBERS = {"train": range(8), "validation": range(4, 12), "test": range(12)}
EVEN, LEARNT = 6, 10  # of the 12 test numbers: what the team can do at first, and after training on 0 to 7

TOML = """
title = "Doubling"
methods = ["single agent", "prompted team", "SiriuS", "SiriuS: no repair"]
seeds = [0, 1]
num_threads = 4
[lm]
model = "tests.test_experiment:make_lm"
[task]
path = "tests.test_experiment:TASK"
parse = "tests.test_experiment:parse"
[single]
build = { single = true }
[sirius]
iterations = 1
samples = 1
"""


# The task


def skill(prompt):
    """That of the toy, and of a single agent that knows even numbers."""
    if prompt.asks_for("answer") and prompt.field("doubled") is None and not prompt.field("feedback"):
        number = int(prompt.field("number"))
        right = number % 2 == 0 or prompt.field("hint")
        return chat_reply(answer=f"ans:{2 * number}" if right else "ans:no idea")
    return toy.skill(prompt)


def build(single=False, loud=False):
    if single:
        return dspy.Predict("number: int -> answer")
    program = Doubling()
    if loud:
        program.doubler.signature = program.doubler.signature.with_instructions("Loudly.")
    return program


def examples(split, size=None, seed=0, path=None):
    """Questions of different splits differ in their key alone, so that learning by heart can help in the test."""
    if path is not None and not Path(path).exists():
        raise DatasetError(f"{str(path)!r} is not there.")
    return [
        dspy.Example(number=number, answer=f"ans:{2 * number}", dspy_key=f"{split}-{number}").with_inputs("number")
        for number in NUMBERS[split]
    ][:size]


def majority_baseline(items):
    return Counter(item.answer for item in items).most_common(1)[0][1] / len(items)


def parse(text):
    return None if "no idea" in text else text


TASK = SimpleNamespace(build=build, examples=examples, metric=exact, majority_baseline=majority_baseline)
LMS = []


def make_lm(**settings):
    LMS.append(ToyLM(skill=skill, **settings))
    return LMS[-1]


@pytest.fixture
def lm():
    return ToyLM(skill=skill)


def experiment(text=TOML, **changes):
    import tomllib

    return Experiment(Recipe.from_table({**tomllib.loads(text), **changes}), name="doubling")


def cells(results):
    return {(cell.method, cell.seed): cell for cell in results.cells}


def test_trained_weights_are_unloaded_after_their_cell(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(ToyLM, "kill", lambda self: killed.append(self.model), raising=False)
    lm = ToyLM(skill=skill)
    found = experiment().run(tmp_path, lm=lm, methods=["prompted team", "SiriuS"], seeds=[0])
    assert not found.failed
    assert killed
    assert lm.model not in killed


# The whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All kinds of methods, two seeds; (results, folder, LM)."""
    lm = ToyLM(skill=skill)
    folder = tmp_path_factory.mktemp("whole")
    methods = [
        "single agent",
        "prompted team",
        "majority vote",
        "STaR",
        "BootstrapFinetune",
        "SiriuS",
        "SiriuS: no repair",
        "SiriuS: untrained doubler",
    ]
    return experiment(methods=methods).run(folder, lm=lm), folder, lm


def test_every_method_is_measured_on_every_seed(whole):
    results, _, _ = whole
    right = {(cell.method, cell.seed): cell.num_right for cell in results.cells}
    expected = {
        "single agent": EVEN,
        "prompted team": EVEN,
        "majority vote": EVEN,
        "STaR": LEARNT,
        "BootstrapFinetune": EVEN,
        "SiriuS": LEARNT,
        "SiriuS: no repair": EVEN,
        "SiriuS: untrained doubler": EVEN,
    }
    assert right == {(method, seed): count for method, count in expected.items() for seed in (0, 1)}
    assert results.failed == ()


def test_the_numbers_of_the_table_follow_from_the_outcomes_on_disk(whole):
    results, folder, _ = whole
    shown = {row["method"]: row for row in results.to_dict()["methods"]}
    stages = [json.loads(path.read_text()) for path in (folder / "stages").iterdir()]
    assert len(stages) == 16
    for method, row in shown.items():
        mine = sorted((stage for stage in stages if stage["method"] == method), key=lambda stage: stage["seed"])
        outcomes = [outcome for stage in mine for outcome in stage["outcomes"]]
        right = sum(outcome["reward"] == 1.0 for outcome in outcomes)
        assert (row["n"], row["right"]) == (24, right)
        assert row["accuracy"] == pytest.approx(right / 24)
        assert row["unparsed"] == sum(
            outcome["failure"] is not None or "no idea" in outcome["answer"] for outcome in outcomes
        )
        assert row["trained"]["calls"] == sum(stage["trained"]["calls"] for stage in mine) / 2
        assert row["wilson"]["1"] == list(wilson_interval(sum(item["right"] for item in mine[1]["outcomes"]), 12))
    right = {
        stage["method"]: {outcome["example"]: outcome["right"] for outcome in stage["outcomes"]}
        for stage in stages
        if stage["seed"] == 0
    }
    gained = sum(right["SiriuS"][key] and not was for key, was in right["prompted team"].items())
    comparison = shown["SiriuS"]["comparison"]
    assert (comparison["gained"], comparison["lost"]) == (gained, 0) == (4, 0)
    assert comparison["p_value"] == pytest.approx(2 * 0.5**4)  # four tosses, all one way
    assert comparison["p_holm"] == pytest.approx(
        min(1.0, 7 * comparison["p_value"])
    )  # seven comparisons, two equal least
    assert comparison["difference"]["value"] == pytest.approx(4 / 12)
    assert shown["prompted team"]["comparison"] is None


def test_lm_calls_are_counted_where_they_were_made(whole):
    results, _, lm = whole
    found = cells(results)
    shared = found["SiriuS", 0].trained.calls
    assert found["SiriuS: untrained doubler", 0].trained.calls == shared > 0
    assert found["prompted team", 0].trained.calls == 0
    assert found["prompted team", 0].tested.calls == 23  # 7 does not get as far as the writer
    assert found["majority vote", 0].tested.calls == 5 * 23
    counted = sum(cell.trained.calls + cell.tested.calls for cell in results.cells)
    twice = sum(found["SiriuS", seed].trained.calls for seed in (0, 1))
    assert lm.calls == counted - twice  # checks made none, and shared work was done once


def test_the_tables_are_on_disk(whole):
    results, folder, _ = whole
    assert (folder / "results.png").stat().st_size > 1000
    assert json.loads((folder / "results.json").read_text())["methods"] == json.loads(
        json.dumps(results.to_dict()["methods"])
    )
    text = (folder / "results.md").read_text()
    assert text.startswith("# Doubling\n")
    assert "| SiriuS | 24 | 20 | 4 | 83.3% |" in text
    assert "| best trivial rule | 12 |" in text
    assert "LM: `toy/base`" in text


def test_a_finished_experiment_makes_no_lm_call(whole):
    results, folder, lm = whole
    before = lm.calls
    again = replace(experiment(), recipe=replace(experiment().recipe, methods=results.recipe.methods)).run(
        folder, lm=lm
    )
    assert lm.calls == before
    assert again.cells == results.cells


# Going on


def test_methods_and_seeds_can_be_added(tmp_path, lm):
    some = experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[1])
    more = experiment().run(tmp_path, lm=lm, methods=["prompted-team", "SINGLE agent"], seeds=[1, 0])
    assert lm.calls == 2 * 23 + 2 * 12
    assert cells(more)["prompted team", 1] == some.cells[0]


def main(folder):
    """Run in a process of its own, and be killed in the middle of a compile."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    experiment(num_threads=1).run(folder, lm=ToyLM(skill=skill), tracker=toy.KilledAt(25))


def test_a_killed_process_is_gone_on_from(tmp_path, lm, uninterrupted):
    code = "import sys; from tests.test_experiment import main; main(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -9
    finished = len(list((tmp_path / "stages").iterdir()))
    assert 0 < finished < 8
    found = plain(experiment(num_threads=1).run(tmp_path, lm=lm))
    assert [cell[:4] for cell in found] == [cell[:4] for cell in uninterrupted[0]]
    assert lm.calls < uninterrupted[1] - finished * 12


class Stop(Tracker):
    def __init__(self, cells):
        self.left = cells

    def on_cell_ended(self, event):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def plain(results):
    """Cells without times."""
    return [
        (cell.method, cell.seed, cell.status, cell.outcomes, cell.trained.calls, cell.tested.calls)
        for cell in results.cells
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    lm = ToyLM(skill=skill)
    return plain(experiment(num_threads=1).run(tmp_path_factory.mktemp("uninterrupted"), lm=lm)), lm.calls


@pytest.mark.parametrize("after", [1, 5, 8])
def test_an_interrupt_between_cells_costs_nothing(tmp_path, lm, uninterrupted, after):
    one = experiment(num_threads=1)
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, lm=lm, tracker=Stop(after))
    assert len(list((tmp_path / "stages").iterdir())) == after
    assert (plain(one.run(tmp_path, lm=lm)), lm.calls) == uninterrupted


class StopInside(Tracker):
    def __init__(self, hook, number):
        self.left = number
        setattr(self, hook, self._count)

    def _count(self, event):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("hook", "number"), [("on_rolled_out", 5), ("on_repaired", 2), ("on_trained", 1)])
def test_an_interrupt_inside_a_cell_is_gone_on_from(tmp_path, lm, uninterrupted, hook, number):
    one = experiment(num_threads=1)
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, lm=lm, tracker=StopInside(hook, number))
    assert 0 < len(list((tmp_path / "stages").iterdir())) < 8
    found = plain(one.run(tmp_path, lm=lm))
    cells, calls = uninterrupted
    in_flight = 2 * 2 + 6  # two runs of the program, or a repair
    assert [cell[:4] for cell in found] == [cell[:4] for cell in cells]
    assert calls <= lm.calls <= calls + in_flight
    assert sum(cell[4] + cell[5] for cell in found) == lm.calls  # and both lives were counted


def test_an_interrupt_inside_a_test_keeps_its_runs(tmp_path):
    def interrupted(prompt):
        if not resumed and prompt.field("number") == "9":
            raise KeyboardInterrupt
        return skill(prompt)

    resumed, lm = [], ToyLM(skill=interrupted)
    one = experiment(num_threads=1, methods=["prompted team"], seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, lm=lm)
    resumed.append(True)
    [cell] = one.run(tmp_path, lm=lm).cells
    assert cell.num_right == EVEN
    assert 23 < lm.calls <= 23 + 4
    assert cell.tested.calls == lm.calls


def test_a_folder_holds_one_experiment(tmp_path, lm):
    experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0])
    with pytest.raises(RunMismatchError, match="`limit`: None -> 5"):
        experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0], limit=5)
    with pytest.raises(RunMismatchError, match=r"`sirius.iterations`: 1 -> 2"):
        experiment(sirius={"iterations": 2}).run(tmp_path, lm=lm, methods=["prompted team"])


# Budgets and failures


@pytest.mark.parametrize("content", ["", "{", "{}", '{"calls": -1}'])
@pytest.mark.parametrize("name", ["experiment.json", "stages/*.json", "work/*/*/spent.json"])
def test_a_damaged_file_is_a_typed_error_and_costs_nothing(tmp_path, lm, name, content):
    small = experiment(methods=["SiriuS"], seeds=[0])
    small.run(tmp_path, lm=lm)
    (path,) = tmp_path.glob(name)
    if "spent" in name:
        next(tmp_path.glob("stages/*.json")).unlink()  # only then does the method go on, and its count with it
    if ("spent" in name, content) == (True, "{}"):
        return  # a count of nothing
    path.write_text(content)
    calls = lm.calls
    with pytest.raises((RunDamagedError, RunMismatchError)):
        small.run(tmp_path, lm=lm)
    assert path.read_text() == content
    assert lm.calls == calls


def test_a_budget_that_ends_before_anything_was_learnt_tests_the_program_as_it_was(tmp_path, lm):
    found = cells(experiment(budget={"calls": 20}).run(tmp_path, lm=lm, methods=["prompted team", "SiriuS", "STaR"]))
    assert {(method, cell.status) for (method, _), cell in found.items()} == {
        ("prompted team", "finished"),
        ("SiriuS", "budget"),
        ("STaR", "budget"),
    }
    cell = found["SiriuS", 1]
    assert (cell.trained.calls, cell.num_right) == (20, EVEN)
    assert "20 LM calls" in cell.error


def test_a_budget_that_ends_later_tests_what_there_was_by_then(tmp_path, lm):
    one = experiment(sirius={"iterations": 1, "samples": 1}).run(tmp_path / "one", lm=lm, methods=["SiriuS"], seeds=[0])
    calls = one.cells[0].trained.calls + 3
    longer = experiment(sirius={"iterations": 2, "samples": 1}, budget={"calls": calls})
    results = longer.run(tmp_path / "two", lm=lm, methods=["SiriuS"], seeds=[0])
    [cell] = results.cells
    assert (cell.status, cell.trained.calls, cell.num_right) == ("budget", calls, LEARNT)
    assert cell.details["best_iteration"] == 1
    assert "| SiriuS * |" in render_markdown(results)


def test_an_interruption_gives_no_second_budget(tmp_path, lm):
    one = experiment(num_threads=1, budget={"calls": 25})
    arguments = {"lm": lm, "methods": ["SiriuS"], "seeds": [0]}
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, **arguments, tracker=StopInside("on_rolled_out", 3))
    [cell] = one.run(tmp_path, **arguments).cells
    assert (cell.status, cell.trained.calls) == ("budget", 25)


def test_a_failed_cell_is_on_record_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "fail_training")  # whatever an error quotes, no key gets on record
    failing = ToyLM(skill=skill, fail_training=True)
    results = experiment().run(tmp_path, lm=failing, methods=["SiriuS", "prompted team"], seeds=[0])
    failed, finished = results.cells
    assert (failed.status, finished.status, results.failed) == ("failed", "finished", (failed,))
    assert failed.error.startswith("TrainingError: ")
    assert "fail_training" not in failed.error
    assert failed.trained.calls > 0
    text = render_markdown(results)
    assert "| SiriuS ! | - |" in text
    assert failed.error in text
    before = failing.calls
    again = experiment().run(tmp_path, lm=failing, methods=["SiriuS", "prompted team"], seeds=[0])
    assert (again.cells[1], failing.calls) == (finished, before)  # tried again, on the runs that there were


def test_a_test_that_an_lm_did_not_let_end_has_no_result_and_goes_on_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr("sirius_dspy.running.patience.LONGEST_WAIT_S", 0.001)
    ill = [True]

    def flaky(prompt):
        if ill[0] and prompt.field("number") == "3":
            raise dspy.lm15.ServerError("overloaded")
        return skill(prompt)

    def run():
        lm = ScriptedLM(flaky, num_retries=0)
        return experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0]).cells[0]

    cell = run()
    assert (cell.status, cell.outcomes) == ("failed", ())
    assert cell.error.startswith("UnfinishedError: ")
    ill[0] = False
    assert (run().status, run().num_right) == ("finished", EVEN)


def test_a_bug_in_a_method_fails_its_cell_alone(tmp_path, lm, caplog):
    class Broken:
        def __init__(self):
            self.calls = 0

        def compile(self, student, *, trainset, valset):
            self.calls += 1
            if self.calls > 1:
                raise KeyError("surprise")
            return student

    broken = Broken()

    def offer(bench):
        return list_methods(bench) | {"broken": Entry(broken, PromptedTeam(), bench.folder / "broken")}

    one = replace(experiment(), offer=offer)
    results = one.run(tmp_path, lm=lm, methods=["broken", "prompted team"], seeds=[0])
    assert [cell.status for cell in results.cells] == ["failed", "finished"]
    assert results.cells[0].error == "KeyError: 'surprise'"
    assert "unexpected error" in caplog.text


# Refusals


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"metods": []}, {}, r"unknown setting 'metods'.*'methods'"),
        ({"sirius": {"iteration": 2}}, {}, r"unknown setting 'sirius.iteration'.*'iterations'"),
        ({"sirius": {"iterations": "2"}}, {}, r"'sirius.iterations' is '2'"),
        ({"sirius": {"train_from": "start"}}, {}, r"'sirius.train_from' is 'start'.*'base' or 'current'"),
        ({"lm": {"model": "openai/x", "api_key": "secret"}}, {}, "environment"),
        ({"task": {"path": "no_such_module"}}, {}, r"'no_such_module'.*cannot be imported"),
        ({"task": {"path": "tests.test_experiment:NOBODY"}}, {}, "NOBODY"),
        ({"task": {"path": "math"}}, {}, r"lacks \['build', 'examples', 'metric'\]"),
        ({"task": {"path": "tests.test_experiment:TASK", "parse": "math:nothing"}}, {}, "task.parse"),
        ({"task": {"path": "tests.test_experiment:TASK", "build": {"colour": 1}}}, {}, r"`build`.*colour"),
        ({"task": {"path": "tests.test_experiment:TASK", "examples": {"colour": 1}}}, {}, r"`examples`.*colour"),
        ({}, {"methods": ["SiriuS", "magic"]}, r"no method 'magic'.*'prompted team'"),
        ({}, {"methods": ["SiriuS: no trepair"]}, r"no method 'SiriuS: no trepair'.*'SiriuS: no repair'"),
        ({}, {"methods": []}, "at least one"),
        ({}, {"methods": ["SiriuS", "sirius"]}, "without duplicates"),
        ({"baseline": "magic"}, {}, r"no method 'magic'"),
        ({}, {"seeds": []}, r"seeds are \[\]"),
        ({}, {"seeds": [0, 0]}, r"seeds are \[0, 0\]"),
        ({}, {"seeds": [-1]}, r"seeds are \[-1\]"),
        ({}, {"limit": 0}, "limit is 0"),
        ({}, {"files": {"path": "x"}}, r"no data file \['path'\]"),
        ({"vote": {"method": "magic"}}, {}, "magic"),
        ({"repair": {"demonstrations": True}}, {}, "repair_demonstrations"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_lm_call(tmp_path, lm, changes, arguments, message):
    with pytest.raises(ExperimentError, match=message):
        experiment(**changes).run(tmp_path / "x", **{"lm": lm, **arguments})
    assert lm.calls == 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "method", "message"),
    [
        ({"sirius": {"iterations": 0}}, "SiriuS", "`iterations` of SiriuS is 0"),
        ({"sirius": {"frozen": ["nobody"]}}, "prompted team", "nobody"),
        ({"vote": {"votes": 0}}, "majority vote", "`votes` of MajorityVote is 0"),
    ],
)
def test_settings_that_a_method_refuses_are_refused_before_any_lm_call(tmp_path, lm, changes, method, message):
    with pytest.raises(UnpreparedProgramError, match=message):
        experiment(**changes).run(tmp_path, lm=lm, methods=["prompted team", method][method == "prompted team" :])
    assert lm.calls == 0


def test_an_lm_that_cannot_be_trained_is_refused_before_any_lm_call(tmp_path):
    lm = ScriptedLM(skill)
    with pytest.raises(UnpreparedProgramError, match="cannot be trained"):
        experiment().run(tmp_path, lm=lm)
    assert lm.calls == 0
    assert experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0]).cells[0].num_right == EVEN


def test_prompt_optimizers_stay_within_the_budget(tmp_path, lm):
    one = experiment(budget={"calls": 60}, prompts={"max_metric_calls": 20})
    [cell] = one.run(tmp_path, lm=lm, methods=["GEPA"], seeds=[0]).cells
    assert (cell.status, cell.num_right) == ("finished", EVEN)  # the toy finds no better instructions
    assert 8 < cell.trained.calls <= 60


def test_prompt_optimizers_need_a_number_of_runs(tmp_path, lm):
    with pytest.raises(SettingsError, match="max_metric_calls"):
        experiment().run(tmp_path, lm=lm, methods=["GEPA"])


def test_splits_that_share_a_question_are_refused(tmp_path, lm):
    def leaking(split, size=None, seed=0):
        return examples("train")[:size]

    one = replace(experiment(), task=SimpleNamespace(build=build, examples=leaking, metric=exact))
    with pytest.raises(ExperimentError, match="8 questions of the test split"):
        one.run(tmp_path, lm=lm)


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text(TOML)
    with pytest.raises(ExperimentError, match=r"no recipe 'yours'.*\['mine'\]"):
        Recipe.from_file("yours")
    assert Experiment.from_file("mine").name == "mine"
    (tmp_path / "broken.toml").write_text("title = ")
    with pytest.raises(ExperimentError, match="is not TOML"):
        Recipe.from_file("broken.toml")


# What a recipe can say


def test_variants_sizes_and_demonstrations(tmp_path, lm):
    shown = {"doubler": [{"number": 40, "doubled": "80"}]}
    one = experiment(
        sizes={"test": 6},
        demonstrations=shown,
        variants={"loud": {"build": {"loud": True}}, "loud SiriuS": {"build": {"loud": True}, "method": "SiriuS"}},
    )
    methods = ["loud", "prompted team with demonstrations", "loud SiriuS"]
    results = one.run(tmp_path, lm=lm, methods=methods, seeds=[0])
    assert [len(cell.outcomes) for cell in results.cells] == [6, 6, 6]
    assert [cell.num_right for cell in results.cells] == [3, 3, 6]
    assert any("Loudly." in prompt.system for prompt in lm.requests)
    assert any("40" in text for prompt in lm.requests for _, text in prompt.messages)


def test_a_single_agent_can_be_a_signature(tmp_path, lm):
    single = {
        "signature": "number: int -> answer",
        "instructions": "Double it.",
        "demonstrations": [{"number": 40, "answer": "80"}],
    }
    one = experiment(single=single)
    results = one.run(tmp_path, lm=lm, methods=["single agent", "single agent with demonstrations"], seeds=[0])
    assert [cell.num_right for cell in results.cells] == [EVEN, EVEN]
    assert {prompt.system.count("Double it.") for prompt in lm.requests} == {1}
    assert len([prompt for prompt in lm.requests if len(prompt.messages) == 3]) == 12


def test_a_critic_that_learns_is_compared_with_the_one_before(tmp_path):
    def answer(prompt):
        """Give advice that helps with smaller numbers, and after training with all."""
        if prompt.asks_for("feedback"):
            helps = "+" in prompt.model or int(prompt.field("task")) < 24
            return chat_reply(feedback="double the number" if helps else "try harder")
        if prompt.asks_for("doubled") and prompt.field("feedback") not in ("", None, "double the number"):
            return chat_reply(doubled="no better idea")
        return skill(prompt)

    def items(split, size=None, seed=0):
        return [
            dspy.Example(**example.toDict(), dspy_key=f"{split}-{example.number}").with_inputs("number")
            for example in toy.examples(range(30 if split == "train" else 4))
        ]

    task = SimpleNamespace(build=build, examples=items, metric=exact)
    recipe = Recipe.from_table(
        {
            "methods": ["SiriuS: learning critic"],
            "baseline": "SiriuS: learning critic",
            "num_threads": 1,
            "sirius": {"iterations": 1, "samples": 1},
            "repair": {"critic": "base"},
        }
    )
    results = Experiment(recipe, name="critics", task=task).run(tmp_path, lm=ToyLM(skill=answer))
    [critic] = results.cells[0].details["critics"]
    assert critic["rows"] >= 10
    assert critic == {**critic, "iteration": 2, "repaired_before": 0, "repaired": critic["tried"], "kept": True}
    [line] = [line for line in (tmp_path / "results.md").read_text().splitlines() if line.endswith(" | yes |")]
    numbers = [str(critic[name]) for name in ("iteration", "rows", "tried", "repaired_before", "repaired")]
    assert line.split(" | ")[2:-1] == numbers


def test_measures_are_asked_of_the_scored_runs(tmp_path, lm):
    task = {"path": "tests.test_experiment:TASK", "report": "tests.test_experiment:count_even", "measures": ["even"]}
    results = experiment(task=task).run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0])
    assert results.cells[0].measures == {"even": 0.5}
    assert "| 50.0% |" in render_markdown(results)


def test_a_report_can_compare_with_the_examples(tmp_path, lm):
    task = {"path": "tests.test_experiment:TASK", "report": "tests.test_experiment:count_twos", "measures": ["twos"]}
    results = experiment(task=task).run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0])
    test = results.cells[0].outcomes
    assert results.cells[0].measures == {"twos": pytest.approx(len(test))}


def count_twos(trajectories, examples):
    """Count the examples whose run is beside them."""
    pairs = zip(trajectories, examples, strict=True)
    return SimpleNamespace(twos=sum(found.example_key == example_key(example) for found, example in pairs))


def count_even(trajectories):
    return SimpleNamespace(even=sum(found.reward for found in trajectories) / len(trajectories))


def test_prices_hold_for_the_recipe_s_own_lm(tmp_path, lm):
    one = experiment(price={"prompt": 2.0, "completion": 10.0})
    arguments = {"methods": ["prompted team"], "seeds": [0]}
    own = one.run(tmp_path / "own", **arguments)
    spent = own.cells[0].tested
    assert own.cost(own.cells[0]) == pytest.approx((2 * spent.prompt_tokens + 10 * spent.completion_tokens) / 1e6)
    other = one.run(tmp_path / "other", lm=lm, **arguments)
    assert other.cost(other.cells[0]) is None


def test_seeds_can_draw_their_own_training_examples(tmp_path, lm):
    asked = []

    def noted(split, size=None, seed=0):
        asked.append((split, seed))
        return examples(split, size)

    one = experiment(data_seed=9, resample_training=True)
    one = replace(one, task=SimpleNamespace(build=build, examples=noted, metric=exact))
    one.run(tmp_path, lm=lm, methods=["prompted team"], seeds=[3, 4])
    assert {seed for split, seed in asked if split == "test"} == {9}
    assert {seed for split, seed in asked if split != "test"} == {3, 4}


class Contest:
    """What `programs.negotiation.tournament` gives, of a game in which the better doubler wins."""

    def __init__(self, players, game, games, seed, *, temperature):
        self.found = {"game": game, "games": games, "seed": seed, "temperature": temperature}
        self.found["players"] = {name: self.play(player) for name, player in players.items()}

    def play(self, player):
        return player if isinstance(player, str) else sum(player(number=n).answer == f"ans:{2 * n}" for n in (1, 2, 3))

    def to_dict(self):
        return [self.found]

    def to_markdown(self):
        return f"| {self.found['players']} |\n"


def rules(table):
    if "rule" not in table:
        raise DatasetError(f"{table!r} is no game.")
    return table["rule"]


CONTEST = {
    "title": "Contest",
    "path": "tests.test_experiment:Contest",
    "read": "tests.test_experiment:rules",
    "bots": ["idle"],
}


def test_programs_of_all_methods_meet_after_training(tmp_path, lm):
    one = experiment(crossplay=[{**CONTEST, "game": {"rule": "first"}, "games": 3, "paper": "| theirs |"}])
    results = one.run(tmp_path, lm=lm, methods=["prompted team", "SiriuS"], seeds=[0, 1])
    assert [(found["title"], found["seed"]) for found in results.crossplay] == [("Contest", 0), ("Contest", 1)]
    [pairing] = results.crossplay[1]["pairings"]
    expected = {"game": "first", "games": 3, "seed": 1, "temperature": None}
    assert pairing == {**expected, "players": {"prompted team": 1, "SiriuS": 3, "idle": "idle"}}
    assert "## Contest, seed 1\n\n| {'prompted team': 1" in render_markdown(results)
    assert "| theirs |" in render_markdown(results)
    before = lm.calls
    again = one.run(tmp_path, lm=lm, methods=["prompted team", "SiriuS"], seeds=[0, 1])
    assert (again.crossplay, lm.calls) == (results.crossplay, before)
    whole = one.run(tmp_path, lm=lm, methods=["prompted team", "SiriuS"], seeds=[0, 1], only_finished=True)
    part = one.run(tmp_path, lm=lm, methods=["prompted team", "STaR"], seeds=[0], only_finished=True)
    assert (whole.crossplay, part.crossplay, lm.calls) == (results.crossplay, (), before)


def test_a_game_that_there_is_not_is_refused_before_any_lm_call(tmp_path, lm):
    with pytest.raises(DatasetError, match="is no game"):
        experiment(crossplay=[{**CONTEST, "game": {}}]).run(tmp_path, lm=lm)
    assert lm.calls == 0


def test_the_recipe_of_the_games_plays_them(tmp_path):
    recipe = Recipe.from_file(next(path for path in RECIPES if path.stem == "paper_fig2"))
    recipe = replace(recipe, crossplay=tuple(replace(table, games=2) for table in recipe.crossplay))
    reply = chat_reply(reason="Fair.", message="Deal?", action="offer give X 1 get Y 1")
    results = Experiment(recipe).run(tmp_path, lm=ScriptedLM(lambda _: reply), methods=["prompted team"], limit=4)
    assert [len(found["pairings"]) for found in results.crossplay] == [1] * 6
    assert {found["pairings"][0]["started"] for found in results.crossplay} == {2}
    assert "| prompted team | RED | prompted team | 2 |" in render_markdown(results)
    assert ".57 | 0.36 |" in render_markdown(results)


# Statistics


def results_of(rights, groups=None):
    """Results whose cells got these questions right: {method: [one row of 0 and 1 per seed]}."""
    found = []
    for method, rows in rights.items():
        for seed, row in enumerate(rows):
            outcomes = tuple(
                Outcome(f"q{n}", groups[n] if groups else f"q{n}", float(right), bool(right), parsed=True)
                for n, right in enumerate(row)
            )
            found.append(Cell(method, seed, "finished", outcomes))
    return Results("made up", Recipe(methods=tuple(rights)), "lm", tuple(found))


def test_one_seed_has_wilson_s_interval_and_mcnemar_s_test():
    before, after = [1] * 10 + [0] * 20, [1] * 8 + [0] * 2 + [1] * 9 + [0] * 11
    base, other = results_of({"prompted team": [before], "other": [after]}).rows
    assert base.accuracy[1:] == wilson_interval(10, 30)
    assert (other.comparison.gained, other.comparison.lost) == (9, 2)
    tail = sum(math.comb(11, k) for k in range(3)) / 2**11
    assert other.comparison.p_value == pytest.approx(2 * tail)


def test_answers_of_several_seeds_to_one_question_count_as_one_question():
    before = [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    after = [[0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0]]
    _, other = results_of({"prompted team": before, "other": after}).rows
    assert (other.comparison.gained, other.comparison.lost) == (3, 1)  # not 5 and 1
    assert other.comparison.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert other.spread.mean == pytest.approx((4 + 3) / 12)
    assert other.spread.sd == pytest.approx(abs(4 - 3) / 6 / math.sqrt(2))
    assert other.accuracy.value == pytest.approx(7 / 12)
    assert other.accuracy.low < 7 / 12 < other.accuracy.high


def test_questions_that_belong_together_count_as_one():
    before, after = [[0, 0, 0, 0, 0, 0]], [[1, 1, 1, 1, 1, 1]]
    twins = ["a", "a", "b", "b", "c", "c"]
    _, other = results_of({"prompted team": before, "other": after}, twins).rows
    assert (other.comparison.gained, other.comparison.p_value) == (3, 0.25)


def test_never_right_over_several_seeds_is_not_certainty():
    twins = ["a", "a", "b", "c", "d", "e"]
    none, everything = results_of({"prompted team": [[0] * 6] * 3, "other": [[1] * 6] * 3}, twins).rows
    assert none.accuracy == (0.0, *wilson_interval(0, 5))
    assert everything.accuracy == (1.0, *wilson_interval(5, 5))


def test_a_small_p_value_is_never_shown_as_zero():
    results = results_of({"prompted team": [[0] * 30], "other": [[1] * 30]})
    assert "| < 0.0001 | < 0.0001 |" in render_markdown(results)
    assert "| 0.0000 |" not in render_markdown(results)


def test_p_values_are_adjusted_for_the_number_of_methods():
    rights = {"prompted team": [[0] * 12], "a": [[1] * 8 + [0] * 4], "b": [[1] * 6 + [0] * 6], "c": [[1] + [0] * 11]}
    found = {row.method: row.comparison for row in results_of(rights).rows}
    raw = {name: 2 * 0.5**count for name, count in {"a": 8, "b": 6}.items()}
    assert [found[name].p_value for name in "abc"] == pytest.approx([raw["a"], raw["b"], 1.0])
    assert [found[name].p_holm for name in "abc"] == pytest.approx([3 * raw["a"], 2 * raw["b"], 1.0])


def test_only_seeds_that_both_have_are_compared():
    results = results_of({"prompted team": [[0, 0], [0, 0]], "other": [[1, 1]]})
    assert results.rows[1].comparison.seeds == (0,)
    assert results_of({"other": [[1, 1]]}).rows[0].comparison is None


# Telling


def test_trackers_that_raise_stop_nothing(tmp_path, lm, caplog):
    class Broken(Tracker):
        def on_cell_ended(self, event):
            raise OSError("disk")

    results = experiment().run(tmp_path, lm=lm, methods=["prompted team"], tracker=Broken())
    assert len(results.cells) == 2
    assert caplog.text.count("left out of the rest") == 1


@WARNINGS
def test_mlflow_has_one_run_per_experiment_and_one_per_cell(tmp_path, lm, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = {"lm": lm, "methods": ["prompted team", "SiriuS"]}
    first = MLflowRuns(tracking_uri=uri)
    with pytest.raises(KeyboardInterrupt):
        experiment().run(tmp_path / "x", **arguments, tracker=Trackers([first, Stop(2)]))
    second = MLflowRuns(tracking_uri=uri)
    results = experiment().run(tmp_path / "x", **arguments, tracker=second)
    assert first.run_id == second.run_id
    client = mlflow.MlflowClient(uri)
    [found] = [item for item in client.search_experiments() if item.name == "sirius_dspy experiments"]
    runs = client.search_runs([found.experiment_id])
    parent = client.get_run(second.run_id)
    assert len(runs) == 5
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["accuracy/SiriuS"] == pytest.approx(LEARNT / 12)
    assert {file.path for file in client.list_artifacts(second.run_id)} == {"results.json", "results.md", "results.png"}
    children = {
        (run.data.tags["sirius.method"], int(run.data.tags["sirius.seed"])): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == second.run_id
    }
    for key, cell in cells(results).items():
        metrics = children[key].data.metrics
        assert metrics["accuracy"] == pytest.approx(cell.accuracy)
        assert (metrics["trained/calls"], metrics["tested/calls"]) == (cell.trained.calls, cell.tested.calls)
        assert (metrics["unparsed"], children[key].info.status) == (cell.num_unparsed, "FINISHED")
    curve = client.get_metric_history(children["SiriuS", 0].info.run_id, "val/score")
    assert [(point.step, point.value) for point in curve] == [(0, 0.5), (1, 0.75)]


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LMS.clear()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "doubling.toml").write_text(TOML)

    def call(*arguments):
        return CliRunner().invoke(app, ["experiment", *map(str, arguments), "--no-mlflow"])

    return call


def test_the_command_prints_a_table_and_goes_on(command, tmp_path):
    done = command("doubling", "--methods", "prompted team,sirius", "--seeds", "0,2")
    assert done.exit_code == 0, done.stderr
    assert "83.3%" in done.stdout
    assert "[4 of 4] SiriuS, seed 2" in done.stderr
    folder = tmp_path / "runs" / "experiment-doubling-tests.test_experiment_make_lm"
    assert (folder / "results.md").exists()
    again = command("doubling", "--methods", "prompted team,sirius", "--seeds", "0,2")
    assert "4 of them done" in again.stderr
    assert LMS[-1].calls == 0


def test_the_command_prints_one_json_object(command, tmp_path):
    done = command("recipes/doubling.toml", "--methods", "prompted team", "--limit", "4", "--json", "--out", "here")
    found = json.loads(done.stdout)
    assert (found["num_test"], found["methods"][0]["right"], found["limit"]) == (4, 4, 4)
    assert (tmp_path / "here" / "results.json").exists()


def test_the_command_says_what_failed_after_all_others_are_done(command, tmp_path):
    text = TOML.replace("make_lm", "make_failing_lm")
    (tmp_path / "recipes" / "failing.toml").write_text(text)
    done = command("failing", "--methods", "SiriuS,prompted team", "--seeds", "0", "--json")
    assert done.exit_code == 1
    assert [cell["status"] for cell in json.loads(done.stdout)["cells"]] == ["failed", "finished"]
    assert "sirius-dspy: SiriuS, seed 0, failed: TrainingError" in done.stderr


def make_failing_lm(**settings):
    return ToyLM(skill=skill, fail_training=True, **settings)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nothing"], "no recipe 'nothing'", 1),
        (["doubling", "--methods", "magic"], "no method 'magic'", 1),
        (["doubling", "--limit", "0"], "limit is 0", 1),
        (["doubling", "--lm", "tests.test_experiment:nobody"], "cannot be imported", 1),
        (["doubling", "--lm", "tests.test_experiment:parse"], "does not accept", 1),
        (["doubling", "--seeds", "one"], "expected comma-separated integers", 2),
        (["doubling", "--data", "file"], "accepts no data file", 2),
    ],
)
def test_the_command_refuses_with_a_message(command, arguments, message, code):
    done = command(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())
    assert not Path("runs").exists()


def test_the_command_takes_data_files(command, tmp_path):
    text = TOML.replace("[single]", 'data = ["path"]\n[single]')
    (tmp_path / "recipes" / "files.toml").write_text(text)
    (tmp_path / "a=b.json").write_text("{}")
    assert command("files", "--methods", "prompted team", "--data", "a=b.json").exit_code == 0
    missing = command("files", "--methods", "prompted team", "--data", "path=c.json", "--out", "y")
    assert missing.exit_code == 1
    assert "'c.json' is not there" in missing.stderr


# The recipes of the repository


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_methods_that_there_are(path, tmp_path):
    recipe = Recipe.from_file(path)
    bench = Bench(Task.of(recipe, files={}), ToyLM(skill=skill), 0, tmp_path)
    bench.task.check()
    known = list_methods(bench)
    assert recipe.methods
    assert [name for name in recipe.methods if name not in known] == []
    assert recipe.baseline in recipe.methods
    for table in recipe.paper:
        assert [name for name in table.results if name not in known] in ([], ["TextGrad"])
        assert set(table.results) & set(recipe.methods)


def test_one_change_at_a_time_to_the_full_method_of_a_recipe(tmp_path):
    recipe = Recipe.from_file(next(path for path in RECIPES if path.stem == "laptop_tracking"))
    known = list_methods(Bench(Task.of(recipe, files={}), ToyLM(skill=skill), 0, tmp_path))

    def settings(name):
        return known[name].method.settings

    full = settings("SiriuS")
    assert (full.credit, full.collect.warm_start) == (Credit(2, evidence=1, order=False, max_runs=40), True)
    assert settings("SiriuS: no credit").credit is None
    published = settings("SiriuS as published")
    assert (published.credit, published.collect.warm_start, published.collect.schedule) == (None, False, None)
    assert isinstance(published.augmenter, CriticAugmenter)
    for name in ("SiriuS as published", "SiriuS: no warm start"):
        assert {len(demos) for demos in settings(name).collect.demos.values()} == {recipe.task.shown}
        assert not settings(name).collect.warm_start


def test_preferences_are_a_method_for_models_that_train_here(tmp_path):
    recipe = Recipe.from_file(next(path for path in RECIPES if path.stem == "laptop_tracking"))
    task = Task.of(recipe, files={})
    name = "SiriuS: preferences"
    assert name not in list_methods(Bench(task, ToyLM(skill=skill), 0, tmp_path))
    lm = LocalLM("smollm2-135m-instruct")
    assert isinstance(list_methods(Bench(task, lm, 0, tmp_path))[name].method.settings.trainer, PreferenceTrainer)
    assert name not in list_methods(Bench(task, lm, 0, tmp_path, trainer=ProviderTrainer()))


def test_tables_of_what_is_finished_so_far_call_no_lm(tmp_path, lm):
    with pytest.raises(ExperimentError, match="No cell of the methods"):
        experiment().run(tmp_path, lm=lm, only_finished=True)
    experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0])
    num_calls = len(lm.requests)
    results = experiment().run(tmp_path, lm=lm, methods=["prompted team", "SiriuS"], seeds=[0, 1], only_finished=True)
    assert [(cell.method, cell.seed) for cell in results.cells] == [("prompted team", 0)]
    assert (results.recipe.methods, results.recipe.seeds) == (("prompted team",), (0,))
    assert len(lm.requests) == num_calls
    assert (tmp_path / "results.md").is_file()


def test_cells_of_several_machines_make_one_table(tmp_path, lm):
    for seed in (0, 1):
        experiment().run(tmp_path / f"machine-{seed}", lm=lm, methods=["prompted team"], seeds=[seed])
    for stage in (tmp_path / "machine-1" / "stages").iterdir():
        shutil.copy(stage, tmp_path / "machine-0" / "stages")
    results = experiment().run(
        tmp_path / "machine-0", lm=lm, methods=["prompted team"], seeds=[0, 1], only_finished=True
    )
    assert [cell.seed for cell in results.cells] == [0, 1]


def test_nothing_is_left_open(tmp_path, lm):
    experiment().run(tmp_path, lm=lm, methods=["prompted team"], seeds=[0])
    with sqlite3.connect(tmp_path / "tests.sqlite") as connection:
        assert connection.execute("select count(*) from trajectories").fetchone() == (12,)
    connection.close()
