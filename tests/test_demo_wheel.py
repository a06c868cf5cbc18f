"""The demo of an installed wheel: everything but the model comes with the package."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests import ROOT

pytest.importorskip("hatchling", reason="the wheel is built with it")


def run(*command, **settings):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280, **settings)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as a wheel installs it."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", wheels)
    assert built.returncode == 0, built.stderr
    done = run(*pip, "install", "--no-deps", "--no-index", "--target", target, *wheels.glob("*.whl"))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def environment(installed):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    return {**clean, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}


def test_the_demo_is_in_it(environment, installed, tmp_path):
    done = run(sys.executable, "-m", "sirius_dspy.cli", "demo", "--help", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


SCRIPT = """
import re, sys
sys.modules.update(programs=None, metrics=None)  # what a clone has beside the package
import sirius_dspy
from sirius_dspy.demo import run
from sirius_dspy.testing import ToyLM

def skill(prompt):
    name = re.search(r"[A-Z][a-z]+", prompt.user)
    return name[0] if name else "nobody"

run.LocalLM = lambda model, **settings: ToyLM(skill=skill)
from sirius_dspy.cli import app
print(sirius_dspy.__file__, file=sys.stderr)
app(["demo", "--quick", "--json"])
"""


def test_a_quick_demo_finds_all_that_it_needs(environment, installed, tmp_path):
    done = run(sys.executable, "-c", SCRIPT, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(installed))
    assert json.loads(done.stdout)["test_items"] == 10
    assert re.search(r"ask runs/demo-quick-seed-0/checkpoint --program sirius_dspy.demo.tracking:build", done.stderr)
