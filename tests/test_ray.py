"""Runs and fine-tunes on a Ray cluster: the same results as on one machine, also when machines are lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from sirius_dspy import Patience, ProviderTrainer, RayExecutor, RayTrainer, Tracker, evaluate, open_library
from sirius_dspy.errors import (
    MissingDependencyError,
    SettingsError,
    TrainingError,
    UnfinishedError,
    UnpreparedProgramError,
    WorkerError,
)
from sirius_dspy.running.executor import started
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ToyLM
from tests import ROOT, toy
from tests.shipped import SEAT, LosingTrainer, Noted, team
from tests.test_executors import assert_gone, interrupt
from tests.wait import wait_until

on_cluster = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("ray")]


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=toy.ADAPTER)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose first machine has two seats, and no CPU to give."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"seat": 2}})
    yield found
    found.shutdown()


def reserving(**resources: float) -> dict[str, Any]:
    return {"num_cpus": 0, "resources": resources}


def rollouts_of(skill: Noted, numbers: Any, executor: RayExecutor) -> Iterator[Any]:
    with started(executor) as workers:
        rollouts = Rollouts(toy.exact, num_threads=4, patience=Patience(), workers=workers)
        yield from rollouts.run_all(team(skill), [Task(example) for example in toy.examples(numbers)])


# Settings


@pytest.mark.parametrize(
    "options", [{"num_workers": 0}, {"address": 1}, {"resources": []}, {"max_restarts": -1}, {"start_s": 0}]
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(SettingsError, match=f"`{next(iter(options))}`"):
        evaluate(toy.student(), toy.examples(), toy.exact, executor=RayExecutor(**options))


@pytest.mark.parametrize(
    "options", [{"trainer": 1}, {"resources": []}, {"agents": {"judge": 2}}, {"max_restarts": -1}, {"start_s": 0}]
)
def test_wrong_settings_of_the_trainer_are_refused(options):
    with pytest.raises(SettingsError, match=f"`{next(iter(options))}`"):
        RayTrainer(**options).check("doubler", ToyLM())


@pytest.mark.parametrize("part", [{"executor": RayExecutor()}, {"trainer": RayTrainer()}])
def test_without_ray_the_error_says_how_to_install_it(part, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    program = toy.student()
    with pytest.raises(MissingDependencyError, match=r"pip install 'sirius-dspy\[ray\]'"):
        toy.compiled_by(tmp_path / "run", program, **part)
    assert program.doubler.lm.calls == 0


def test_options_that_ray_does_not_know_are_refused_before_any_call(tmp_path):
    pytest.importorskip("ray")
    program, wrong = toy.student(), {"num_gpu": 1}
    for part in ({"executor": RayExecutor(resources=wrong)}, {"trainer": RayTrainer(agents={"writer.predict": wrong})}):
        with pytest.raises(SettingsError, match=r"Ray refuses .*num_gpu"):
            toy.compiled_by(tmp_path / "run", program, **part)
    with pytest.raises(SettingsError, match=r"RayTrainer names \['judge'\].*\['doubler', 'writer.predict'\]"):
        toy.compiled_by(tmp_path / "run", program, trainer=RayTrainer(agents={"judge": {"num_gpus": 1}}))
    assert program.doubler.lm.calls == 0


def test_options_that_are_set_already_are_refused_before_any_call():
    pytest.importorskip("ray")
    with pytest.raises(SettingsError, match=r"Ray refuses the `resources` .*'max_concurrency'"):
        RayExecutor(resources={"max_concurrency": 4}).check()
    for option in ("num_returns", "max_retries"):
        with pytest.raises(SettingsError, match=f"Ray refuses the `resources` .*'{option}'"):
            RayTrainer(resources={option: 1}).check("judge", ToyLM())


def test_what_cannot_be_trained_on_a_cluster_is_refused():
    pytest.importorskip("ray")
    with pytest.raises(UnpreparedProgramError, match="'judge' is fine-tuned by the provider"):
        RayTrainer().check("judge", dspy.LM("openai/gpt-4.1-nano-2025-04-14"))
    trainer = ProviderTrainer({"lock": threading.Lock()})
    with pytest.raises(UnpreparedProgramError, match=r"'judge' cannot be trained on a cluster.*ProviderTrainer.*lock"):
        RayTrainer(trainer).check("judge", ToyLM())


@pytest.mark.parametrize(
    "reason", [ConnectionError("nobody is there"), RuntimeError("Version mismatch: the cluster was started with 2.9")]
)
def test_a_cluster_that_does_not_answer_is_named(monkeypatch, reason):
    pytest.importorskip("ray")

    def refuse(**options: Any) -> None:
        raise reason

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(WorkerError, match=rf"The Ray cluster at 'there:1' cannot be reached: {reason}"):
        evaluate(toy.student(), toy.examples(), toy.exact, executor=RayExecutor("there:1"))


class FakeRay:
    """Ray in this process, which says of the first item that its worker took too much memory."""

    def __init__(self) -> None:
        self.killed: list[Any] = []
        self._has_failed = False

    def remote(self, kind: Any) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda: FakeActor(kind())))

    def wait(self, refs: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return refs, []

    def put(self, value: Any) -> Any:
        return value

    def get(self, ref: Any) -> Any:
        answer = ref()
        if answer is not None and not self._has_failed:
            import ray

            self._has_failed = True
            raise ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
        return answer

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class FakeActor:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return SimpleNamespace(remote=lambda *arguments: lambda: method(*arguments))


def test_a_worker_that_the_cluster_ends_for_lack_of_memory_is_lost(monkeypatch, tmp_path):
    pytest.importorskip("ray")
    fake = FakeRay()
    for name in ("remote", "wait", "put", "get", "kill"):
        monkeypatch.setattr(f"ray.{name}", getattr(fake, name))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    runs = list(rollouts_of(Noted(tmp_path / "log"), range(4), RayExecutor(num_workers=1, max_restarts=1)))
    assert [run.failure for _, run in runs] == [None] * 4
    assert len(fake.killed) == 2  # it was replaced by another one, which ended with the context


# On a cluster


class TestOnACluster:
    pytestmark = on_cluster

    def test_machines_lost_in_collection_and_in_training_change_nothing(self, cluster, tmp_path):
        skills = {name: Noted(tmp_path / name, stuck=stuck) for name, stuck in (("here", None), ("there", 3))}
        losing_trainer, settings = LosingTrainer(skills["there"]), {"iterations": 1, "tracker": Tracker()}
        assert skills["there"].is_first("training")  # so that nothing is lost
        whole = toy.optimizer(tmp_path / "whole" / "run", trainer=losing_trainer, **settings)
        expected = whole.compile(team(skills["here"]), trainset=toy.examples(), valset=toy.examples(range(4, 12)))
        Path(f"{skills['there'].log}.training").unlink()

        machines = {
            machine.node_id: machine
            for machine in (cluster.add_node(num_cpus=1, resources={"place": 1}) for _ in range(3))
        }
        trainer = RayTrainer(losing_trainer, address=cluster.address, resources=reserving(place=1), start_s=100)
        torn = toy.optimizer(
            tmp_path / "torn" / "run", trainer=trainer, executor=RayExecutor(cluster.address, num_workers=3), **settings
        )
        with ThreadPoolExecutor(1) as threads:
            losing = threads.submit(lose_machines, cluster, machines, skills["there"])
            found = torn.compile(team(skills["there"]), trainset=toy.examples(), valset=toy.examples(range(4, 12)))
            losing.result()
        for machine in machines.values():
            cluster.remove_node(machine)

        assert found.detailed_results.best_score == expected.detailed_results.best_score
        assert [predictor.lm.model for predictor in found.predictors()] == [
            predictor.lm.model for predictor in expected.predictors()
        ]
        assert kept_in(tmp_path / "torn" / "run") == kept_in(tmp_path / "whole" / "run")
        asked, usual = (skills[name].requests() for name in ("there", "here"))
        assert asked.keys() == usual.keys()
        assert 1 <= asked.total() - usual.total() <= 4 * 2  # runs in flight, of two calls each

    def test_an_item_that_kills_its_workers_is_put_aside(self, cluster, tmp_path):
        skill, found = Noted(tmp_path / "log", poison=2, latency_s=0.1), []
        executor = RayExecutor(cluster.address, resources=SEAT, max_restarts=0)  # there is no third seat
        with pytest.raises(UnfinishedError, match=r"'number': 2.*WorkerError: It killed 3 worker processes") as caught:
            found += rollouts_of(skill, range(12), executor)
        assert len(found) == 11
        assert caught.value.reasons == {"WorkerError": 1}
        asked = skill.asked_numbers()
        poisoned = [process for process, number in asked if number == 2]
        assert len(poisoned) == len(set(poisoned)) == 3
        assert [number for process, number in asked if process == poisoned[-1]][-1] == 2

    def test_ctrl_c_awaits_what_is_in_flight_and_ends_the_workers(self, cluster, tmp_path):
        skill, found = Noted(tmp_path / "log", latency_s=0.3), []
        runs = rollouts_of(skill, range(100), RayExecutor(cluster.address, resources=SEAT))
        with pytest.raises(KeyboardInterrupt):
            interrupt(runs, found, lambda: len(found) == 1)
        assert 1 < len(found) <= 12
        assert skill.requests("answered") == skill.requests()
        assert_gone(skill.processes())

    def test_a_killed_compile_leaves_no_worker_behind_and_is_resumed(self, cluster, tmp_path):
        skill, run = Noted(tmp_path / "log", latency_s=0.2), tmp_path / "killed" / "run"
        command = [sys.executable, "-m", "tests.shipped", str(run), str(skill.log), cluster.address]
        child = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until(lambda: len(skill.processes()) == 2, 100)
        child.kill()
        child.wait()
        assert_gone(skill.processes())
        before = set(skill.processes())
        toy.compiled_by(run, team(skill))
        assert skill.processes() == before | {os.getpid()}
        toy.compiled_by(tmp_path / "whole" / "run", team(Noted(tmp_path / "whole.log")))
        assert kept_in(run) == kept_in(tmp_path / "whole" / "run")

    def test_where_there_is_no_place_for_all_workers_fewer_do_the_work(self, cluster, tmp_path, monkeypatch):
        monkeypatch.setattr("sirius_dspy.executors.crew.GATHER_S", 0.5)
        executor = RayExecutor(cluster.address, 4, reserving(seat=2))
        assert len(list(rollouts_of(Noted(tmp_path / "log"), range(6), executor))) == 6

    def test_where_there_is_no_place_for_any_worker_the_error_says_so(self, cluster, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr("sirius_dspy.executors.crew.QUIET_S", 0.5)
        executor = RayExecutor(cluster.address, 2, reserving(nowhere=1), start_s=1)
        with pytest.raises(WorkerError, match=r"In 1 s .* no place for a worker that reserves .*nowhere.*`start_s`"):
            list(rollouts_of(Noted(tmp_path / "log"), range(6), executor))
        assert "Each reserves {'num_cpus': 0, 'resources': {'nowhere': 1}}" in caplog.text

    def test_a_job_that_no_machine_takes_ends_the_compile_and_may_be_done_here(self, cluster, tmp_path):
        trainer = RayTrainer(ProviderTrainer(), address=cluster.address, resources=reserving(nowhere=1), start_s=1)
        with pytest.raises(TrainingError, match=r"found no machine for the fine-tuning of agent 'doubler'.*nowhere"):
            toy.compiled_by(tmp_path / "run", trainer=trainer, iterations=1)
        found = toy.compiled_by(tmp_path / "run", trainer=ProviderTrainer(), iterations=1)
        assert found.detailed_results.best_iteration == 1

    def test_a_job_that_fails_there_is_an_error_here(self, cluster, tmp_path):
        program = toy.student(fail_training=True)
        trainer = RayTrainer(address=cluster.address, resources=SEAT)
        with pytest.raises(TrainingError, match="fail_training=True") as caught:
            toy.compiled_by(tmp_path / "run", program, trainer=trainer, iterations=1)
        assert caught.value.agent == "doubler"


def lose_machines(cluster: Any, machines: dict[str, Any], skill: Noted) -> None:
    """Kill the machine on which the first run waits for that, then the one of the first fine-tuning."""
    for stage in ("collection", "training"):
        note = skill.machine_of(stage)
        wait_until(lambda note=note: note.exists() and note.read_text(), 120)
        cluster.remove_node(machines.pop(note.read_text()), allow_graceful=False)


def kept_in(folder: Path) -> dict[str, Any]:
    """Ids of the runs, and the rows and losses of all jobs."""
    with open_library(folder) as library:
        kept: dict[str, Any] = {"ids": sorted(run.id for run in library.trajectories())}
    for path in sorted(folder.rglob("*.jsonl")):
        kept[str(path.relative_to(folder))] = path.read_text()
    return kept
