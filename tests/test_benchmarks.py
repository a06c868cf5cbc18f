"""The benchmarks run; what they measure is another matter."""

import json
import subprocess
import sys

import pytest

from benchmarks import library
from benchmarks.soak import find_growth
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
@pytest.mark.filterwarnings("ignore")
def test_a_gpu_is_measured_against_transformers_and_peft(monkeypatch, tmp_path, capsys):
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    import torch

    from benchmarks import gpu

    monkeypatch.setattr("sirius_dspy.local.train.fast_precision", lambda: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for a model this small, more only wait for each other
    monkeypatch.setenv("SIRIUS_HOME", str(tmp_path / "home"))
    gpu.main(["--device", "cpu", "--quick", "--json", str(tmp_path / "numbers.json")])
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "numbers.json").read_text())
    lines = [(line["what"], line["agents"]) for line in found["lines"]]
    assert lines == [("generation", 1), ("generation", 2), ("training", 1), ("training", 2)]
    for line in found["lines"]:
        assert line["ours"]["tokens_per_second"] > 0
        assert line["plain"]["tokens_per_second"] > 0
    assert gpu.count_tokens([5, 6, 2, 2], 8, frozenset({2})) == 3
    assert gpu.count_tokens([5, 6, 7, 2], 2, frozenset({2})) == 2
    shown = capsys.readouterr().out
    assert found["machine"].startswith("cpu (")
    assert found["machine"] in shown


@pytest.mark.slow
def test_kills_change_nothing():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "2", "--examples", "24", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["kills"] == 2
    assert (summary["rounds that differ"], summary["rounds with more than in flight"]) == (0, 0)


@pytest.mark.slow
def test_a_library_is_measured_as_it_grows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(library, "READS", 20)
    numbers = tmp_path / "numbers.json"
    library.main(["--sizes", "80,120", "--only", "sqlite", "--json", str(numbers)])
    small, large = json.loads(numbers.read_text())["measures"]["sqlite"]
    assert (small["runs"], large["runs"]) == (80, 120)
    assert 30 < small["exported: rows"] < 50  # half of the runs are successes
    assert small["curated, a tenth: rows"] > 0
    assert small["pruned"] > 0
    assert all(value > 0 for name, value in large.items() if "per second" in name)
    assert "| sqlite | 80 | 120 |" in capsys.readouterr().out


def rounds_of(rss):
    return [{"seconds": 60.0 * i, "rss MB": value} for i, value in enumerate(rss)]


def test_growth_is_told_from_noise():
    noise = [0.0, 3.0, 1.0, 2.0, 0.0, 1.0, 3.0, 2.0] * 4
    assert not find_growth(rounds_of(noise), "rss MB").is_leak
    found = find_growth(rounds_of([value + i for i, value in enumerate(noise)]), "rss MB")
    assert found.is_leak
    assert found.low < 60 < found.high


@pytest.mark.slow
def test_compiles_back_to_back_are_counted():
    command = [sys.executable, "-m", "benchmarks.soak", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found["rounds"]) == 2
    assert found["growth"].keys() == found["rounds"][0].keys() - {"seconds"}
    assert 1 < found["rounds"][1]["used MB"] < found["rounds"][1]["rss MB"]
    assert found["rounds"][1]["temporary files"] == found["rounds"][1]["children"] == 0


@pytest.mark.slow
def test_the_stages_of_a_compile_are_measured():
    command = [sys.executable, "-m", "benchmarks.stages", "--examples", "10", "--latency-s", "0", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    stages = {stage["name"]: stage for stage in map(json.loads, done.stdout.splitlines())}
    calls = {name: stage["calls"] for name, stage in stages.items()}
    assert calls["collect"] == calls["dspy.Evaluate"] == calls["bootstrap_trace_data"] == 30
    assert 0 < calls["repair"] < calls["the whole compile"]
    assert all(stage["seconds"] >= 0 for stage in stages.values())
