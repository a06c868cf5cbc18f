"""A compile killed at any moment goes on from there and ends where it would have ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sirius_dspy import ExperienceLibrary
from tests import ROOT

pytestmark = pytest.mark.slow


def compile_in_child(run_dir: Path, kill_at: int = 0) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.toy", str(run_dir), str(kill_at)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def outcome(child: subprocess.CompletedProcess) -> dict:
    assert child.returncode == 0, child.stderr[-2000:]
    found = json.loads(child.stdout)
    results = found["results"]
    return {
        "answers": found["answers"],
        "best": (results["best_iteration"], results["best_score"]),
        "iterations": [
            {key: entry.get(key) for key in ("score", "lms", "promoted", "repair")}
            | {"rows": {agent: item["rows"] for agent, item in entry.get("agents", {}).items()}}
            for entry in results["iterations"]
        ],
        "calls": found["calls"],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict, dict]:
    """What the compile gives if nobody disturbs it, and its training files."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return outcome(compile_in_child(run_dir)), training_files(run_dir)


def training_files(run_dir: Path) -> dict[str, str]:
    return {str(path.relative_to(run_dir)): path.read_text() for path in sorted(run_dir.rglob("*.jsonl"))}


# A whole compile makes some 120 events: these fall into validation, collecting, repair, curation, training, promotion
# and the second iteration.
@pytest.mark.parametrize("kill_at", [1, 5, 13, 25, 29, 31, 34, 37, 45, 60])
def test_after_kill_9_the_same_call_gives_the_same_result_and_pays_less(kill_at, tmp_path, undisturbed):
    killed = compile_in_child(tmp_path, kill_at)
    assert killed.returncode == -9
    assert ExperienceLibrary(tmp_path / "library.sqlite").verify() == [] or not (tmp_path / "library.sqlite").exists()
    resumed, expected = outcome(compile_in_child(tmp_path)), undisturbed[0]
    calls = resumed.pop("calls")
    assert resumed == {key: value for key, value in expected.items() if key != "calls"}
    assert training_files(tmp_path) == undisturbed[1]
    assert ExperienceLibrary(tmp_path / "library.sqlite").verify() == []
    if kill_at > 1:
        assert calls < expected["calls"]


def test_killed_twice(tmp_path, undisturbed):
    assert compile_in_child(tmp_path, 20).returncode == -9
    assert compile_in_child(tmp_path, 20).returncode == -9
    resumed = outcome(compile_in_child(tmp_path))
    assert resumed["answers"] == undisturbed[0]["answers"]
    assert resumed["iterations"] == undisturbed[0]["iterations"]
