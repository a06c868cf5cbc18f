"""The benchmarks run; what they measure is another matter."""

import json
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.slow
def test_collecting_is_measured_against_dspy():
    command = [sys.executable, "-m", "benchmarks.collection", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (sides,) = json.loads(done.stdout).values()
    assert list(sides) == ["sockets", "evaluate", "bootstrap", "sirius"]
    for side in sides.values():
        assert side["wall_over_ideal"] > 1
        assert side["cpu_ms_per_call"] > 0


@pytest.mark.slow
def test_kills_change_nothing():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "2", "--examples", "24", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["kills"] == 2
    assert (summary["rounds that differ"], summary["rounds with more than in flight"]) == (0, 0)
