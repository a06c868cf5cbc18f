"""The command line, as processes: what is on stdout, what is on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import mlflow
import pytest
from typer.testing import CliRunner

import sirius_dspy
from sirius_dspy.cli import app
from sirius_dspy.demo import needle_haystack
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests import ROOT
from tests.mlflow_help import WARNINGS
from tests.wait import wait_until


def local(test):
    """A whole run with the embedded model: a minute alone, several on a busy machine."""
    return pytest.mark.local(pytest.mark.timeout(900)(test))


CLI = [sys.executable, "-m", "sirius_dspy.cli"]
PROGRAM = ["--program", "sirius_dspy.demo.needle_haystack:build"]
QUESTION = ["--input", "question=Who likes tea?", "--input", "context=Ada likes tea. Bo likes rain."]


def environment():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}  # as for an installed command: no `''` on sys.path


def sirius(*arguments, cwd, stdin=""):
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=850,
    )


@pytest.fixture
def checkpoint(tmp_path):
    program = needle_haystack.build()
    replies = {
        "[[ ## relevant ## ]]\nAda": chat_reply(answer="Ada"),
        "Ada likes": chat_reply(relevant="Ada likes tea."),
    }
    program.set_lm(ScriptedLM(replies))
    return sirius_dspy.save(program, tmp_path / "checkpoint")


def test_help_names_the_commands(tmp_path):
    done = sirius("--help", cwd=tmp_path)
    assert done.returncode == 0
    listed = re.findall(r"^  (\w+)  +[A-Z]", done.stdout, re.M)
    window = ["watch", "ui", "pause", "resume", "stop", "jobs"]
    assert listed == ["demo", "compile", "ask", *window, "report", "export", "serve", "library"]


def test_experiment_is_listed_where_recipes_are(tmp_path):
    (tmp_path / "recipes").mkdir()
    assert re.search(r"^  experiment ", sirius("--help", cwd=tmp_path).stdout, re.M)


def test_experiment_without_recipes_says_where_they_are(tmp_path):
    done = sirius("experiment", "laptop_chain_sum", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Recipes come with a clone of the repository" in done.stderr


def test_version(tmp_path):
    done = sirius("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"sirius-dspy {sirius_dspy.__version__}\n")


def test_ask_shows_each_agent_s_step(checkpoint, tmp_path):
    done = sirius("ask", checkpoint, *PROGRAM, *QUESTION, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "1. analyst [scripted/lm] relevant: Ada likes tea.",
        "2. solver [scripted/lm] answer: Ada",
        "answer: Ada",
    ]


def test_ask_prints_one_json_object(checkpoint, tmp_path):
    done = sirius("ask", checkpoint, *PROGRAM, *QUESTION, "--json", cwd=tmp_path)
    shown = json.loads(done.stdout)
    assert (shown["answer"], shown["prediction"]) == ("Ada", {"answer": "Ada"})
    assert [(step["predictor"], step["outputs"]) for step in shown["steps"]] == [
        ("analyst", {"relevant": "Ada likes tea."}),
        ("solver", {"answer": "Ada"}),
    ]


def test_a_program_of_the_user_s_folder_is_found(tmp_path, monkeypatch):
    lines = (
        "import dspy",
        "class Echo(dspy.ChainOfThought):",
        "    def __init__(self):",
        "        super().__init__('question -> answer')",
    )
    code = "\n".join(lines)
    (tmp_path / "echo_program.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import echo_program

    program = echo_program.Echo()
    program.set_lm(ScriptedLM({"Hello?": chat_reply(reasoning="Polite.", answer="Hello.")}))
    sirius_dspy.save(program, tmp_path / "echo")
    done = sirius("ask", "echo", "--program", "echo_program:Echo", "--input", "question=Hello?", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "answer: Hello."


def test_a_program_that_fails_shows_how_far_it_came(checkpoint, tmp_path):
    inputs = ["--input", "question=Who?", "--input", "context=Bo likes rain."]
    done = sirius("ask", checkpoint, *PROGRAM, *inputs, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("1. analyst [scripted/lm] failed: ")
    assert "answer:" not in done.stdout
    assert done.stderr.startswith("sirius-dspy: The program failed: ")


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([], "missing: context, question"),
        (["--input", "question=Who?"], "missing: context"),
        (["--input", "question=Who?", "--input", "review=Fine."], "missing: context; unknown: review"),
    ],
)
def test_inputs_that_do_not_fit_are_listed(inputs, problem, checkpoint, tmp_path):
    done = sirius("ask", checkpoint, *PROGRAM, *inputs, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"sirius-dspy: The inputs do not fit ({problem}).")
    assert "The program's inputs are context (str), question (str)." in done.stderr


def test_an_input_without_a_value_is_refused(checkpoint, tmp_path):
    done = sirius("ask", checkpoint, *PROGRAM, "--input", "question", cwd=tmp_path)
    assert done.returncode == 1
    assert "`--input` is 'question', expected NAME=VALUE." in done.stderr


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_stdin_that_holds_no_object_is_refused(text, checkpoint, tmp_path):
    done = sirius("ask", checkpoint, *PROGRAM, cwd=tmp_path, stdin=text)
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected an object of inputs" in done.stderr.replace("Expected", "expected")


@pytest.mark.parametrize(
    "arguments", [["ask", "nowhere", *PROGRAM, *QUESTION], ["ask", "nowhere", *PROGRAM, *QUESTION, "--json"]]
)
def test_an_error_is_one_message(arguments, tmp_path):
    done = sirius(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"sirius-dspy: 'nowhere' is not a checkpoint: .+\n", done.stderr)


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--checkpoint", "nowhere"], ["--model", "nothing"]])
def test_a_server_that_cannot_start_says_why(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert (done.exit_code, done.stdout) == (1, "")
    problem = r"sirius-dspy: [^\n]*(SIRIUS_SERVER_TOKEN|not a checkpoint|no local model)[^\n]*\n"
    assert re.fullmatch(problem, done.stderr)
    assert not (tmp_path / "runs").exists()


def test_a_server_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["sirius_dspy.cli.serve"], "_PACKAGES", ("no_such_package",))
    done = CliRunner().invoke(app, ["serve", "--data", str(tmp_path / "data")])
    assert done.exit_code == 1
    assert "needs no_such_package. Run `pip install 'sirius-dspy[serve]'`" in done.stderr.replace("\n", " ")


def test_a_negative_seed_is_refused(tmp_path):
    assert sirius("demo", "--seed", "-1", cwd=tmp_path).returncode == 2


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Where the demo runs: once to the end, and again by the same command."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def quick(workplace):
    return sirius("demo", "--quick", "--json", cwd=workplace)


@local
def test_the_demo_prints_one_json_object(quick):
    assert quick.returncode == 0, quick.stderr
    shown = json.loads(quick.stdout)
    assert {"zero_shot", "demonstrated", "validation", "final", "swaps", "test_items", "seconds"} <= set(shown)
    assert (shown["test_items"], len(shown["validation"])) == (10, 2)
    assert set(shown["swaps"]) == {"reader", "tracker", "reporter"}
    assert shown["seconds"]["total"] > shown["seconds"]["compile"] > shown["seconds"]["train"] > 0


@local
def test_the_demo_tells_its_story_on_stderr(quick):
    for part in ("Compiling 3 agents", "iteration 1 collect: 8 of 8", "zero-shot", "warm start"):
        assert part in quick.stderr
    assert "Traceback" not in quick.stderr
    assert "WARNING" not in quick.stderr


@local
def test_the_demo_names_the_command_that_asks(quick, workplace):
    line = next(line for line in quick.stderr.splitlines() if " ask runs/" in line)
    expected = re.search(r"\(expected: (\w+)\)", quick.stderr)[1]
    program, *arguments = shlex.split(line)
    assert program.endswith("sirius-dspy")
    done = sirius(*arguments, "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    steps = [step["predictor"] for step in json.loads(done.stdout)["steps"]]
    assert steps == ["reader", "tracker", "reader", "tracker", "reporter"]
    assert any(expected in argument for argument in arguments)


@local
@WARNINGS
def test_the_demo_names_the_command_that_opens_mlflow(quick, workplace):
    run_id = re.search(r"Open run (\w+) of experiment 'sirius_dspy'", quick.stderr)[1]
    uri = re.search(r"mlflow ui --backend-store-uri (\S+)", quick.stderr)[1]
    assert uri == f"sqlite:///{workplace / 'mlflow.db'}"
    assert mlflow.MlflowClient(tracking_uri=uri).get_run(run_id).info.status == "FINISHED"


@local
def test_the_same_command_reuses_a_finished_demo(quick, workplace):
    again = sirius("demo", "--quick", "--json", cwd=workplace)
    assert again.returncode == 0, again.stderr
    assert "runs/demo-quick-seed-0 holds a finished run" in again.stderr
    assert "runs/demo-quick-seed-0 holds a finished run" not in quick.stderr
    assert "collect" not in again.stderr.split("Test accuracy")[0]
    first, second = json.loads(quick.stdout), json.loads(again.stdout)
    assert (second["validation"], second["swaps"]) == (first["validation"], first["swaps"])


@local
def test_an_interrupt_says_how_to_go_on(tmp_path):
    command = [*CLI, "demo", "--quick", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        started = any(line.startswith("Compiling") for line in process.stderr)  # stops reading there
        wait_until((tmp_path / "runs/demo-quick-seed-0/run.json").exists, 120)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert (started, process.returncode, output) == (True, 130, ""), errors
    last = errors.splitlines()[-1]
    assert last == "sirius-dspy: Interrupted. Run the same command again to resume from 'runs/demo-quick-seed-0'."
