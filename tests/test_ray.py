"""Runs on a Ray cluster: the same results as with threads, also when a machine is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import dspy
import pytest

from sirius_dspy import Patience, RayExecutor, evaluate
from sirius_dspy.errors import MissingDependencyError, SettingsError, WorkerError
from sirius_dspy.running.executor import started
from sirius_dspy.running.rollout import Rollouts, Task
from tests import toy
from tests.shipped import Noted, team
from tests.wait import wait_until


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=toy.ADAPTER)


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"address": 1}, {"resources": []}, {"max_restarts": -1}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(SettingsError, match=f"`{next(iter(options))}`"):
        evaluate(toy.student(), toy.examples(), toy.exact, executor=RayExecutor(**options))


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    program = toy.student()
    with pytest.raises(MissingDependencyError, match=r"pip install 'sirius-dspy\[ray\]'"):
        evaluate(program, toy.examples(), toy.exact, executor=RayExecutor())
    assert program.doubler.lm.calls == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_machine_that_is_lost_in_mid_collection_changes_nothing(tmp_path: Path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    tasks = [Task(example) for example in toy.examples(range(24))]
    expected = dict(rollouts_of(tmp_path / "here", tasks, None))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        skill = tmp_path / "there"
        lost = threading.Event()
        found = {}
        executor = RayExecutor(cluster.address, num_workers=2)
        for key, run in rollouts_of(skill, tasks, executor):
            found[key] = run
            if not lost.is_set():
                lost.set()
                wait_until(lambda: len(Noted(skill).processes()) == 2, 60)
                cluster.add_node(num_cpus=1)
                cluster.remove_node(nodes[0], allow_graceful=False)
    finally:
        cluster.shutdown()
    assert found == expected
    assert len(Noted(skill).processes()) == 3
    repeated = Noted(skill).requests().total() - Noted(tmp_path / "here").requests().total()
    assert 0 <= repeated <= 4 * 2  # runs in flight, of two calls each


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("num_cpus", "is_enough"), [(1, True), (0, False)])
def test_a_cluster_without_room_for_all_workers_does_with_fewer_or_says_so(
    num_cpus: int, is_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setattr("sirius_dspy.executors.cluster.START_S", 15.0)
    tasks = [Task(example) for example in toy.examples(range(6))]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus})
    try:
        executor = RayExecutor(cluster.address, num_workers=2)
        if is_enough:
            assert len(list(rollouts_of(tmp_path / "there", tasks, executor))) == 6
            return
        with pytest.raises(WorkerError, match="found no place for a worker that reserves"):
            list(rollouts_of(tmp_path / "there", tasks, executor))
    finally:
        cluster.shutdown()


def rollouts_of(log: Path, tasks: list[Task], executor: RayExecutor | None):
    with started(executor) as workers:
        rollouts = Rollouts(toy.exact, num_threads=4, patience=Patience(), workers=workers)
        for task, run in rollouts.run_all(team(Noted(log, latency_s=0.5)), tasks):
            yield task.key, run.id
