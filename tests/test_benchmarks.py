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
