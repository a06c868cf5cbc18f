"""A compile that is paused begins nothing, and one that is stopped goes on later; both through files in its folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import dspy
import pytest

from sirius_dspy import Budget, Credit, ExperienceLibrary
from sirius_dspy.errors import RunMismatchError
from sirius_dspy.optimizer.hold import LOOK_S, ask_for
from sirius_dspy.optimizer.live import read_live
from sirius_dspy.running.parallel import parallel_map
from sirius_dspy.testing import ToyLM
from sirius_dspy.tracking.events import Tracker
from tests import toy
from tests.wait import wait_until

pytestmark = pytest.mark.usefixtures("chat_adapter")


class At(Tracker):
    """Does something at the n-th event of a kind."""

    def __init__(self, hook, number, action):
        self.left = number
        setattr(self, hook, self.note)
        self.action = action

    def note(self, event):
        self.left -= 1
        if self.left == 0:
            self.action(event)


class Compile(threading.Thread):
    """A compile in a thread of its own."""

    def __init__(self, run_dir, **settings):
        super().__init__()
        self.run_dir, self.settings = run_dir, {"num_threads": 2, **settings}
        self.compiled = self.error = None

    def run(self):
        try:
            with dspy.context(adapter=toy.ADAPTER):
                self.compiled = toy.compiled_by(self.run_dir, **self.settings)
        except BaseException as error:
            self.error = error


def state(run_dir):
    live = read_live(run_dir)
    return live and live.state


def num_runs(run_dir):
    with ExperienceLibrary.existing(run_dir / "library.sqlite") as library:
        return library.count()


@pytest.fixture
def undisturbed(tmp_path):
    return toy.compiled_by(tmp_path / "undisturbed").detailed_results


def outcome(result):
    """What must not depend on interruptions."""
    rows = [{agent: made.rows for agent, made in entry.agents.items()} for entry in result.iterations]
    return rows, [(entry.score, entry.lms, entry.promoted, entry.repair, entry.stages) for entry in result.iterations]


PLACES = {
    "evaluate": ("on_rolled_out", 3, {}),
    "repair": ("on_repaired", 1, {}),
    "credit": ("on_credited", 2, {"credit": Credit(max_runs=1)}),
}
"""Stage to an event in it, and settings with which it comes."""


@pytest.mark.parametrize("stage", PLACES)
def test_a_paused_compile_begins_no_run_until_it_goes_on(stage, tmp_path):
    hook, number, settings = PLACES[stage]
    run_dir = tmp_path / "run"

    def pause(event):
        ask_for(run_dir, "pause")
        time.sleep(1.1 * LOOK_S)  # here in the compile's thread, so that its next look finds it

    settings = {"num_threads": 1, "iterations": 1, **settings}
    work = Compile(run_dir, tracker=At(hook, number, pause), **settings)
    work.start()
    wait_until(lambda: state(run_dir) == "paused")
    before, spent = num_runs(run_dir), read_live(run_dir)
    assert spent.stages[spent.position].stage == stage
    assert number <= spent.done < spent.total
    wait_until(lambda: read_live(run_dir).updated > spent.updated + 1.5)  # it shows that it lives
    assert (num_runs(run_dir), read_live(run_dir).calls) == (before, spent.calls)
    assert read_live(run_dir).seconds - spent.seconds < 0.5  # the wait is not on the account
    ask_for(run_dir, None)
    work.join(60)
    assert work.error is None
    assert state(run_dir) == "finished"
    undisturbed = toy.compiled_by(tmp_path / "undisturbed", **settings)
    assert outcome(work.compiled.detailed_results) == outcome(undisturbed.detailed_results)


def test_a_pause_between_stages_keeps_a_job_from_beginning(tmp_path):
    run_dir, begun = tmp_path / "run", []
    tracker = At("on_curated", 1, lambda event: ask_for(run_dir, "pause"))
    tracker.on_stage_started = lambda event: begun.append(event.stage)
    work = Compile(run_dir, tracker=tracker, iterations=1)
    work.start()
    wait_until(lambda: state(run_dir) == "paused")
    assert begun[-1] == "curate"
    ask_for(run_dir, None)
    work.join(60)
    assert begun[-2:] == ["train", "evaluate"]


def test_a_stop_ends_the_compile_after_its_stage_and_the_same_call_goes_on(tmp_path, undisturbed):
    run_dir, begun = tmp_path / "run", []
    tracker = At("on_repaired", 1, lambda event: ask_for(run_dir, "stop"))
    tracker.on_stage_started = lambda event: begun.append((event.iteration, event.stage))
    with pytest.raises(KeyboardInterrupt, match=r"before the stage .curate. of iteration 1\. Call the same `compile`"):
        toy.compiled_by(run_dir, tracker=tracker)
    assert begun[-1] == (1, "repair")
    live = read_live(run_dir)
    assert (live.state, live.done, live.total) == ("interrupted", 4, 4)  # all of the stage
    resumed = toy.compiled_by(run_dir).detailed_results
    assert state(run_dir) == "finished"
    assert outcome(resumed) == outcome(undisturbed)


def test_a_stop_goes_before_a_pause(tmp_path):
    run_dir = tmp_path / "run"
    work = Compile(run_dir, tracker=At("on_rolled_out", 1, lambda event: ask_for(run_dir, "pause")))
    work.start()
    wait_until(lambda: state(run_dir) == "paused")
    ask_for(run_dir, "stop")
    work.join(60)
    assert isinstance(work.error, KeyboardInterrupt)
    assert num_runs(run_dir) == 8  # the whole valset


def test_what_was_asked_of_a_killed_compile_is_forgotten(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "hold.json").write_text(json.dumps({"wish": "stop"}))
    assert toy.compiled_by(run_dir, iterations=1).detailed_results.ended == "finished"
    assert not (run_dir / "hold.json").exists()


def test_ctrl_c_ends_a_paused_compile(tmp_path):
    run_dir = tmp_path / "run"
    waits = threading.Thread(
        target=lambda: (wait_until(lambda: state(run_dir) == "paused"), signal.raise_signal(signal.SIGINT))
    )
    waits.start()
    with pytest.raises(KeyboardInterrupt):
        toy.compiled_by(run_dir, tracker=At("on_rolled_out", 2, lambda event: ask_for(run_dir, "pause")))
    waits.join()
    assert state(run_dir) == "interrupted"


def test_a_damaged_wish_changes_nothing(tmp_path):
    run_dir = tmp_path / "run"
    tracker = At("on_rolled_out", 2, lambda event: (run_dir / "hold.json").write_text('{"wish": "pau'))
    assert toy.compiled_by(run_dir, tracker=tracker, iterations=1).detailed_results.ended == "finished"


def test_only_a_compile_at_work_can_be_asked(tmp_path):
    with pytest.raises(RunMismatchError, match="No compile is at work"):
        ask_for(tmp_path, "pause")
    toy.compiled_by(tmp_path / "run", iterations=1)
    with pytest.raises(RunMismatchError, match="No compile is at work"):
        ask_for(tmp_path / "run", "stop")
    assert not (tmp_path / "run" / "hold.json").exists()


def test_live_file_shows_stage_spending_and_limits(tmp_path):
    seen = []
    tracker = At("on_repaired", 1, lambda event: seen.append(read_live(tmp_path)))
    compiled = toy.compiled_by(tmp_path, tracker=tracker, iterations=1, budget=Budget(calls=1000))
    during, after = seen[0], read_live(tmp_path)
    stage = during.stages[during.position]
    assert (stage.iteration, stage.stage, during.total) == (1, "repair", 4)
    assert [item.stage for item in after.stages] == ["evaluate", "collect", "repair", "curate", "train", "evaluate"]
    assert after.position == len(after.stages) - 1
    assert after.calls == compiled.detailed_results.usage.calls > during.calls > 0
    assert (after.program, after.limits) == ("Doubling", {"calls": 1000})


def test_a_full_disk_does_not_stop_the_view(tmp_path, monkeypatch):
    def refuse(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sirius_dspy.optimizer.live.write_text", refuse)
    assert toy.compiled_by(tmp_path, iterations=1).detailed_results.ended == "finished"
    assert not (tmp_path / "live.json").exists()


def test_runs_in_flight_are_awaited_and_kept_and_those_that_wait_do_not_begin(tmp_path):
    run_dir, gate = tmp_path / "run", threading.Event()

    def slow(prompt):
        if prompt.asks_for("doubled") and prompt.field("number") != "0":
            assert gate.wait(30)
        return toy.skill(prompt)

    program = toy.Doubling()
    program.set_lm(ToyLM(skill=slow))
    settings = {"num_threads": 2, "iterations": 1, "budget": None}
    tracker = At("on_rolled_out", 1, lambda event: ask_for(run_dir, "pause"))

    def compile_it():
        with dspy.context(adapter=toy.ADAPTER):
            toy.compiled_by(run_dir, program, tracker=tracker, **settings)

    work = threading.Thread(target=compile_it)
    work.start()
    wait_until(lambda: state(run_dir) == "pausing" and read_live(run_dir).in_flight == 2)
    gate.set()
    wait_until(lambda: state(run_dir) == "paused")
    assert num_runs(run_dir) == 3
    ask_for(run_dir, None)
    work.join(60)
    assert state(run_dir) == "finished"


def test_a_pause_of_days_ends_well(monkeypatch):
    """Each look at the pause once nested one more iterator, until Python's stack was full."""
    monkeypatch.setattr("sirius_dspy.running.parallel.time.sleep", lambda seconds: None)
    looks = iter(range(400_000))
    found = parallel_map(str, range(3), 2, held=lambda in_flight: next(looks, None) is not None)
    assert sorted(found) == [(0, "0"), (1, "1"), (2, "2")]


def test_a_compile_that_was_killed_takes_no_orders(tmp_path):
    toy.compiled_by(tmp_path)
    path = tmp_path / "live.json"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running", "process": ended.pid}))
    with pytest.raises(RunMismatchError, match="No compile is at work"):
        ask_for(tmp_path, "stop")
    assert not (tmp_path / "hold.json").exists()
