"""`sirius-dspy compile`: from files and names to a checkpoint, and what it says when one of them is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from sirius_dspy.cli import app
from tests import ROOT
from tests.openai_server import FakeOpenAI
from tests.wait import wait_until

PROGRAM = "tests.toy:student"
METRIC = ["--metric", "tests.toy:exact"]
QUICK = ["--iterations", "1", "--samples", "2", "--num-threads", "4", "--no-mlflow"]


def cli(*arguments, stdin=None):
    with warnings.catch_warnings():  # the command silences some for its process
        return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def write(path, numbers):
    rows = [{"number": number, "answer": f"ans:{2 * number}"} for number in numbers]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the folders of programs
    write(tmp_path / "train.jsonl", range(8))
    write(tmp_path / "val.jsonl", range(4, 12))
    return tmp_path


DATA = ["--train", "train.jsonl", "--val", "val.jsonl", "--inputs", "number"]


def test_it_saves_a_program_that_can_be_asked(here):
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK)
    assert done.exit_code == 0, done.stderr
    assert "as given" in done.stdout
    assert "after iteration 1 (best)" in done.stdout
    assert "iteration 1 collect: 16 of 16" in done.stderr
    assert "sirius-dspy report runs/compile-tests_toy-student-seed-0" in done.stdout
    checkpoint = "runs/compile-tests_toy-student-seed-0/checkpoint"
    asked = cli("ask", checkpoint, "--program", PROGRAM, "--input", "number=7")
    assert asked.stdout.splitlines()[-1] == "answer: ans:14", asked.stderr


def test_the_same_command_reuses_a_finished_run(here):
    first = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, "--json")
    again = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, "--json")
    assert (first.exit_code, again.exit_code) == (0, 0), again.stderr
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert one["results"]["iterations"] == two["results"]["iterations"]
    assert "collect" in first.stderr
    assert "collect" not in again.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(here):
    before = sorted(here.rglob("*"))
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "Doubling: 8 training examples, 8 for validation" in done.stdout
    assert "doubler (toy/base)" in done.stdout
    assert sorted(here.rglob("*")) == before


def test_a_dry_run_prints_json(here):
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, "--dry-run", "--json")
    shown = json.loads(done.stdout)
    assert shown["trained"] == ["doubler", "writer.predict"]
    assert shown["total"]["calls"]["low"] > 0


def test_settings_reach_the_compile(here):
    settings = ["--no-repair", "--no-gate", "--shared-weights", "--threshold", "0.5", "--seed", "3", "--run-dir", "x"]
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, *settings, "--checkpoint", "saved", "--json")
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    results = shown["results"]
    assert list(results["agents"].values()) == [["doubler", "writer.predict"]]
    assert (results["threshold"], results["seed"], results["run_dir"]) == (0.5, 3, str(here / "x"))
    assert results["iterations"][1]["repair"]["tried"] == 0
    assert (here / "saved" / "manifest.json").is_file()


def test_groups_and_frozen_agents(here):
    arguments = ["--group", "pair=doubler,writer.predict", "--dry-run", "--json"]
    assert json.loads(cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, *arguments).stdout)["trained"] == ["pair"]
    arguments = ["--frozen", "writer.predict", "--dry-run", "--json"]
    assert json.loads(cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, *arguments).stdout)["trained"] == ["doubler"]


def test_each_agent_can_have_an_lm_of_its_own(here):
    code = "\n".join(
        (
            "from tests import toy",
            "from sirius_dspy.testing import ToyLM",
            "def small(**settings):",
            "    return ToyLM('toy/small', skill=toy.skill, **settings)",
            "def large(**settings):",
            "    return ToyLM('toy/large', skill=toy.skill, **settings)",
        )
    )
    (here / "own_lms.py").write_text(code, encoding="utf-8")
    lms = ["--lm", "doubler=own_lms:large", "--lm", "own_lms:small", "--lm-setting", "max_tokens=7"]
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, *lms, "--dry-run", "--json")
    assert json.loads(done.stdout)["lms"] == {"doubler": "toy/large", "writer.predict": "toy/small"}, done.stderr


@pytest.mark.parametrize("settings", [[], ["--train-setting", "n_epochs=1"]])
def test_the_price_of_hosted_fine_tuning_is_planned(here, settings):
    with FakeOpenAI().serving() as url:
        lm = ["--lm", "openai/toy", "--lm-setting", f"api_base={url}", "--lm-setting", "api_key=sk-test"]
        price = ["--train-price", "1000"]
        done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, *lm, *settings, *price, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    (jobs,) = [stage["jobs"] for stage in json.loads(done.stdout)["stages"] if stage["jobs"]]
    assert [job["price"] for job in jobs] == [1000, 1000]
    assert [job["epochs"] for job in jobs] == ([1, 1] if settings else [3, 3])


def test_a_budget_ends_the_compile_early_and_says_so(here):
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, "--budget-calls", "20")
    assert done.exit_code == 0, done.stderr
    assert "Ended early" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "nowhere:metric"], "`--metric` is 'nowhere:metric', which cannot be imported"),
        (["--metric", "tests.toy:nothing"], "cannot be imported"),
        (["--metric", "nowhere.py:metric"], "there is no file 'nowhere.py'"),
        (["--train", "nowhere.jsonl"], "The examples cannot be read"),
        (["--inputs", "question"], "train.jsonl, row 1 has no ['question']; its fields are ['answer', 'number']"),
        (["--inputs", " "], "No inputs are named"),
        (["--lm", "judge=openai/gpt-4o-mini"], "`--lm` names the agent 'judge'"),
        (["--lm", "local/nothing"], "There is no local model 'nothing'"),
        (["--group", "pair"], "`--group` is 'pair', expected NAME=VALUE"),
        (["--group", "pair=doubler", "--shared-weights"], "Choose one"),
        (["--samples", "0"], "`samples` of Collect is 0"),
        (["--lm-setting", "max_tokens"], "`--lm-setting` is 'max_tokens', expected NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_one_message(arguments, message, here):
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr
    assert not (here / "runs").exists()


@pytest.mark.parametrize("program", ["nothing", "json:dumps", "math:pi", "tests.toy:examples", "nowhere:build"])
def test_what_is_no_program_is_refused(program, here):
    done = cli("compile", program, *METRIC, *DATA, *QUICK)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("sirius-dspy: ")


@pytest.mark.parametrize(("line", "message"), [("{", "row 3 is not JSON"), ("[1]", "row 3 is a list")])
def test_a_bad_line_is_named(line, message, here):
    with (here / "train.jsonl").open("r+", encoding="utf-8") as file:
        lines = file.read().splitlines()
        file.seek(0)
        file.truncate()
        file.write("\n".join([*lines[:2], line]))
    done = cli("compile", PROGRAM, *METRIC, *DATA, *QUICK)
    assert done.exit_code == 1
    assert message in done.stderr


def test_inputs_come_as_json_on_stdin_too(here):
    cli("compile", PROGRAM, *METRIC, *DATA, *QUICK, "--checkpoint", "saved")
    asked = cli("ask", "saved", "--program", PROGRAM, "--json", stdin='{"number": 4}')
    assert json.loads(asked.stdout)["answer"] == "ans:8", asked.stderr


def test_a_file_whose_name_belongs_to_another_module_is_refused(here):
    (here / "json.py").write_text("def build(): ...", encoding="utf-8")
    done = cli("compile", "json.py:build", *METRIC, *DATA, *QUICK)
    assert done.exit_code == 1
    assert "belongs to another module" in done.stderr


def test_a_file_is_as_good_as_a_module(here):
    (here / "own_doubling.py").write_text("from tests.toy import exact as right, student as build", encoding="utf-8")
    data = [*DATA, *QUICK, "--checkpoint", "saved"]
    done = cli("compile", "own_doubling.py:build", "--metric", "own_doubling.py:right", *data)
    assert done.exit_code == 0, done.stderr
    assert (here / "runs" / "compile-own_doubling-build-seed-0").is_dir()
    asked = cli("ask", "saved", "--program", "own_doubling.py:build", "--input", "number=3")
    assert asked.stdout.splitlines()[-1] == "answer: ans:6", asked.stderr


SLOW = """
import time
from pathlib import Path
from tests import toy

def skill(prompt):
    Path("asked").touch()
    while not Path("free").exists():
        time.sleep(0.01)
    return toy.skill(prompt)

def build():
    program = toy.Doubling()
    program.set_lm(toy.ToyLM(skill=skill))
    return program
"""


@contextmanager
def compiling(folder):
    """A compile in a process of its own, whose LM answers when there is a file `free`."""
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    command = [sys.executable, "-m", "sirius_dspy.cli", "compile", "slow.py:build", *METRIC, *DATA, *QUICK]
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until((folder / "asked").exists, 120)
        process.send_signal(signal.SIGINT)
        lines = iter(process.stderr)
        while not (line := next(lines)).startswith("Stopping; "):
            pass
        assert re.fullmatch(r"Stopping; [1-9] runs? in flight, Ctrl-C again to drop them\.\n", line)
        yield process


def test_an_interrupt_waits_for_the_runs_in_flight(here):
    with compiling(here) as process:
        (here / "free").touch()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.endswith("Run the same command again to resume from 'runs/compile-slow-build-seed-0'.\n")


def test_a_second_interrupt_drops_them(here):
    with compiling(here) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (here / "free").exists()
