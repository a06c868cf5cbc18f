"""Runs in other processes: the same results and calls as with threads, whatever happens to the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError, LMAuthError, LMRateLimitError

from sirius_dspy import (
    Budget,
    Collect,
    Credit,
    CriticAugmenter,
    Patience,
    ProcessExecutor,
    Tracker,
    evaluate,
    open_library,
)
from sirius_dspy.errors import MetricError, SettingsError, UnfinishedError, WorkerError
from sirius_dspy.executors.packing import pack, unpack
from sirius_dspy.running.executor import started
from sirius_dspy.running.faults import asked_wait_s, describe_error, fault_of_call
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.trajectory import example_key
from tests import ROOT, toy
from tests.shipped import Noted, broken_metric, team
from tests.wait import wait_until


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=toy.ADAPTER)


def compiled(folder: Path, skill: Noted, **settings) -> dspy.Module:
    optimizer = toy.optimizer(
        folder, **{"iterations": 1, "tracker": Tracker(), "executor": ProcessExecutor(2), **settings}
    )
    return optimizer.compile(team(skill), trainset=toy.examples(), valset=toy.examples(range(4, 12)))


def ids_of(folder: Path) -> list[str]:
    with open_library(folder) as library:
        return sorted(run.id for run in library.trajectories())


@pytest.fixture(scope="module")
def with_threads(tmp_path_factory) -> SimpleNamespace:
    """A whole compile without other processes."""
    folder = tmp_path_factory.mktemp("threads")
    skill = Noted(folder / "log")
    with dspy.context(adapter=toy.ADAPTER):
        program = compiled(folder / "run", skill, executor=None, credit=Credit(alternatives=2))
    return SimpleNamespace(ids=ids_of(folder / "run"), skill=skill, result=program.detailed_results)


def test_a_compile_in_processes_is_the_same(tmp_path, with_threads):
    skill = Noted(tmp_path / "log")
    result = compiled(tmp_path / "run", skill, credit=Credit(alternatives=2)).detailed_results
    assert ids_of(tmp_path / "run") == with_threads.ids
    assert skill.requests() == with_threads.skill.requests()
    assert os.getpid() not in skill.processes()
    assert len(skill.processes()) == 2
    assert result.best_score == with_threads.result.best_score
    assert result.usage == with_threads.result.usage
    assert list((tmp_path / "run").glob("calls/*")) == []


def test_a_finished_compile_may_be_called_again_with_other_workers(tmp_path):
    skill = Noted(tmp_path / "log")
    compiled(tmp_path / "run", skill, executor=None)
    before = skill.requests()
    compiled(tmp_path / "run", skill)
    assert skill.requests() == before


def test_what_a_lost_worker_had_begun_is_done_by_another_one(tmp_path, with_threads):
    skill = Noted(tmp_path / "log", deadly=5)
    compiled(tmp_path / "run", skill, credit=Credit(alternatives=2))
    assert len(skill.processes()) == 3
    assert ids_of(tmp_path / "run") == with_threads.ids
    asked, usual = skill.requests(), with_threads.skill.requests()
    assert asked.keys() == usual.keys()
    assert 1 <= asked.total() - usual.total() <= 4  # the threads of the compile


def test_workers_that_die_again_and_again_end_the_compile(tmp_path):
    skill = Noted(tmp_path / "log", deadly=5)
    with pytest.raises(WorkerError, match="died again and again"):
        compiled(tmp_path / "run", skill, executor=ProcessExecutor(1, max_restarts=0))


def test_an_item_that_kills_its_workers_is_put_aside(tmp_path):
    skill, found = Noted(tmp_path / "log", poison=2, latency_s=0.05), []
    with pytest.raises(UnfinishedError, match=r"'number': 2.*WorkerError: It killed 3 worker processes") as caught:
        found += collect(skill, range(12), executor=ProcessExecutor(2, max_restarts=0))
    assert caught.value.reasons == {"WorkerError": 1}
    assert caught.value.examples == (example_key(toy.examples([2])[0]),)
    poisoned = [process for process, number in skill.asked_numbers() if number == 2]
    assert len(poisoned) == len(set(poisoned)) == 3
    assert [number for process, number in skill.asked_numbers() if process == poisoned[-1]] == [2]


def test_a_compile_goes_on_without_an_example_that_kills_its_workers(tmp_path, with_threads):
    skill = Noted(tmp_path / "log", poison=2)
    settings = {"executor": ProcessExecutor(1, max_restarts=0), "patience": Patience(max_unfinished=1)}
    with pytest.warns(UserWarning, match="a worker process failed.*The compile goes on without them"):
        compiled(tmp_path / "run", skill, **settings)
    with open_library(tmp_path / "run") as library:
        lost = library.unfinished()
        keys = {run.example_key for run in library.trajectories()}
    key = example_key(toy.examples([2])[0])
    assert {(run.example_key, run.kind) for run in lost} == {(key, "WorkerError")}
    assert key not in keys
    assert {example_key(example) for example in toy.examples()} - keys == {key}


def test_where_all_items_kill_their_workers_it_is_not_the_items(tmp_path, monkeypatch):
    monkeypatch.setattr("sirius_dspy.executors.losses.IN_A_ROW", 1)
    with pytest.raises(WorkerError, match="died again and again"):
        list(collect(Noted(tmp_path / "log", poison=2), [2] * 6, executor=ProcessExecutor(1)))


def test_evaluation(tmp_path):
    program, numbers = team(Noted(tmp_path / "log")), toy.examples(range(6))
    here, there = (evaluate(program, numbers, toy.exact, executor=executor) for executor in (None, ProcessExecutor(2)))
    assert there.rewards == here.rewards
    assert [run.id for run in there.trajectories] == [run.id for run in here.trajectories]


def test_what_the_main_module_and_functions_define_travels(tmp_path):
    bonus = 0.5

    class Local(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = team(Noted(tmp_path / "log"))

        def forward(self, number: int) -> dspy.Prediction:
            return self.inner(number=number)

    found = evaluate(Local(), toy.examples([2]), lambda example, prediction: bonus, executor=ProcessExecutor(1))
    assert found.rewards == (bonus,)


# Limits, interrupts, bugs


def collect(skill: Noted, numbers, patience: Patience = Patience(), executor=ProcessExecutor(2)):  # noqa: B008
    with started(executor) as workers:
        rollouts = Rollouts(toy.exact, num_threads=4, patience=patience, workers=workers)
        yield from rollouts.run_all(team(skill), [Task(example) for example in toy.examples(numbers)])


def test_a_budget_ends_at_the_same_place(tmp_path):
    ended = []
    for name, executor in (("threads", None), ("processes", ProcessExecutor(2))):
        skill = Noted(tmp_path / name / "log")
        skill.log.parent.mkdir()
        settings = {"num_threads": 1, "budget": Budget(calls=25), "executor": executor}
        result = compiled(tmp_path / name / "run", skill, **settings).detailed_results
        assert result.ended == "budget"
        ended.append((ids_of(tmp_path / name / "run"), skill.requests(), result.usage))
    assert ended[0] == ended[1]


def test_a_metric_that_always_raises_costs_little(tmp_path):
    skill = Noted(tmp_path / "log")
    with pytest.raises(MetricError, match=r"no_such_field(.|\n)*shipped\.py(.|\n)*in broken_metric") as caught:
        evaluate(team(skill), toy.examples(range(100)), broken_metric, executor=ProcessExecutor(2))
    assert "prediction.no_such_field" in str(caught.value)
    assert skill.requests().total() <= 35


def test_a_call_that_hangs_is_given_up(tmp_path):
    found = []
    with pytest.raises(UnfinishedError, match="call_timeout_s"):
        found += collect(Noted(tmp_path / "log", slow=2), range(6), Patience(call_timeout_s=1.0))
    assert sorted(task.example.number for task, _ in found) == [0, 1, 3, 4, 5]


def interrupt(runs, found, is_time) -> None:
    """Press Ctrl-C after each result at which it is time."""
    for task, _ in runs:
        found.append(task)
        if is_time():
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_awaits_what_is_in_flight_and_begins_nothing_more(tmp_path):
    skill, found = Noted(tmp_path / "log", latency_s=0.3), []
    with pytest.raises(KeyboardInterrupt):
        interrupt(collect(skill, range(100)), found, lambda: len(found) == 1)
    assert 1 < len(found) <= 12
    assert skill.requests("answered") == skill.requests()
    assert_gone(skill.processes())


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    skill, found = Noted(tmp_path / "log", slow=3), []
    with pytest.raises(KeyboardInterrupt):
        interrupt(collect(skill, range(8)), found, lambda: len(found) <= 2)
    assert 3 not in [task.example.number for task in found]
    assert_gone(skill.processes())


def test_ctrl_c_cuts_the_wait_for_a_busy_server_short(tmp_path):
    skill = Noted(tmp_path / "log", busy=3)

    def press() -> None:
        wait_until(Path(f"{skill.log}.busy").exists)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        list(collect(skill, range(4)))
    presser.join()
    assert_gone(skill.processes())


def test_a_killed_compile_leaves_no_worker_behind(tmp_path):
    skill = Noted(tmp_path / "log")
    command = [sys.executable, "-m", "tests.shipped", str(tmp_path / "run"), str(skill.log)]
    child = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_until(lambda: len(skill.processes()) == 2, 60)
    child.kill()
    child.wait()
    assert_gone(skill.processes())


def assert_gone(processes: set[int]) -> None:
    wait_until(lambda: not any(map(is_alive, processes)))


def is_alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" if sys.platform == "linux" else True
    return False


# What cannot travel


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("program", {}),
        ("metric", {"metric": SimpleNamespace(lock=threading.Lock())}),
        ("augmenter", {"augmenter": CriticAugmenter()}),
        (
            "demonstrations",
            {"collect": Collect(demos={"doubler": [dspy.Example(number=1, doubled="2", x=threading.Lock())]})},
        ),
    ],
)
def test_what_cannot_travel_is_refused_before_any_call(name, settings, tmp_path):
    program = toy.student()
    if name == "program":
        program.lock = threading.Lock()
    if name == "metric":
        lock = settings["metric"].lock
        settings = {"metric": lambda example, prediction, trace=None: lock.locked()}
    if name == "augmenter":
        settings["augmenter"].lock = threading.Lock()
    optimizer = toy.optimizer(tmp_path / "run", executor=ProcessExecutor(2), tracker=Tracker())
    vars(optimizer).update(settings)
    with pytest.raises(SettingsError, match=f"The {name} cannot be sent to another process.*lock"):
        optimizer.compile(program, trainset=toy.examples(), valset=toy.examples())
    assert program.doubler.lm.calls == 0
    assert not (tmp_path / "run").exists()


def test_an_lm_that_runs_inside_this_process_is_refused(tmp_path):
    program = toy.student()
    program.doubler.lm.provider.loads_when_asked = True
    with pytest.raises(SettingsError, match=r"\['toy/base'\] run inside one process.*threads"):
        evaluate(program, toy.examples(), toy.exact, executor=ProcessExecutor(2))


class AwkwardError(Exception):
    def __init__(self, *, lock: object) -> None:
        super().__init__("awkward")
        self.lock = lock


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        LMRateLimitError("slow down", model="m", status=429, retry_after=7.0),
        LMAuthError("no key", model="m", status=401),
        AdapterParseError(adapter_name="Chat", signature=toy.Doubling().doubler.signature, lm_response="no field"),
        raised(ValueError("wrapped"), LMRateLimitError("slow down", status=429)),
        ConnectionResetError(104, "reset"),
        AwkwardError(lock=threading.Lock()),
        ExceptionGroup("several", [ValueError("one"), LMAuthError("no key")]),
        UnfinishedError("lost", examples=["a"], reasons={"LMError": 2}),
        type("Local", (KeyError,), {})("by value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel(error):
    there = unpack(pack(error))
    assert type(there).__name__ == type(error).__name__
    assert str(there) == str(error)
    assert fault_of_call(there) == fault_of_call(error)
    assert asked_wait_s(there) == asked_wait_s(error)
    assert describe_error(there) == describe_error(error)


def test_an_error_that_cannot_travel_is_replaced_by_one_of_the_same_fault():
    lock = threading.Lock()

    class LocalError(LMRateLimitError):
        held = lock

    there = unpack(pack(LocalError("slow down", status=429)))
    assert type(there).__name__ == "LocalError"
    assert str(there) == "slow down"
    assert fault_of_call(there) == "transient"


def test_errors_that_point_at_each_other_travel():
    one, other = ValueError("one"), KeyError("other")
    one.__context__, other.__context__ = other, one
    there = unpack(pack(one))
    assert there.__context__.__context__ is there


def test_a_pydantic_error_travels():
    from pydantic import TypeAdapter, ValidationError

    with pytest.raises(ValidationError) as caught:
        TypeAdapter(int).validate_python("x")
    assert "valid integer" in str(unpack(pack(caught.value)))
