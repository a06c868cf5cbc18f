"""Servers that are down, hang, refuse or come back: a compile is neither stopped nor held up, and nothing is silent."""

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing

import dspy
import pytest
from mlflow import MlflowClient

from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.mlflow.outbox import Outbox
from sirius_dspy.mlflow.patience import UPLOAD_BYTES_PER_S, ShortWaits
from sirius_dspy.tracking.events import Tracker, Trackers
from tests import toy
from tests.mlflow_help import WARNINGS, curve, free_port, models_of, runs_of
from tests.wait import wait_until

pytest_plugins = ("tests.mlflow_help",)
pytestmark = [WARNINGS, pytest.mark.server]


class Line:
    """A store that a test switches off and on, and a box that writes to it."""

    def __init__(self, **limits):
        self.is_up = True
        self.refused = set()
        self.got = []
        self.tried = 0
        self.box = Outbox(lambda: self.is_up, **limits)

    def send(self, kind, *, is_essential=False):
        self.box.send(kind, lambda: self.write(kind), is_essential=is_essential)

    def write(self, kind):
        self.tried += 1
        if not self.is_up or kind in self.refused:
            raise ConnectionError(f"no {kind}")
        self.got.append(kind)


@pytest.fixture
def line():
    made = Line()
    yield made
    made.box.close()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "sirius_dspy.mlflow"]


def test_writes_arrive_in_order_on_a_thread_of_their_own(line):
    threads = set()
    for number in range(100):
        line.box.send("n", lambda number=number: (line.got.append(number), threads.add(threading.current_thread())))
    line.box.close()
    assert line.got == list(range(100))
    assert threads.isdisjoint({threading.current_thread()})
    assert line.box.not_written == {}


def test_a_slow_store_does_not_hold_up_the_sender(line):
    gate = threading.Event()
    line.box.send("slow", lambda: gate.wait(30))
    for _ in range(50):
        line.send("n")
    assert line.box.not_written == {"slow": 1, "n": 50}  # and here we are, while it is at its first
    gate.set()
    line.box.close()
    assert len(line.got) == 50


def test_after_a_failure_nothing_is_tried_until_it_is_said(line, caplog):
    line.is_up = False
    for _ in range(20):
        line.send("score")
    line.box.wait(10)
    assert line.tried == 1
    line.box.try_again()
    wait_until(lambda: line.tried == 2, 10)
    line.is_up = True
    line.box.close()
    assert line.got == ["score"] * 20
    [warning] = warnings_of(caplog)
    assert "no score" in warning
    assert "setLevel" in warning


def test_what_a_working_store_refuses_is_left_out_and_counted(line, caplog):
    line.refused = {"bad"}
    for kind in ("good", "bad", "good", "bad", "good"):
        line.send(kind)
    line.box.close()
    assert line.got == ["good"] * 3
    assert line.box.not_written == {"bad": 2}
    first, last = warnings_of(caplog)
    assert "no bad" in first
    assert "2 x bad" in last


def test_a_store_that_comes_back_right_after_a_failure_gets_the_write(line):
    line.is_up = False
    line.box.send("score", lambda: line.write("score") if line.is_up else fail(line))
    line.box.close()
    assert line.got == ["score"]
    assert line.box.not_written == {}


def fail(line):
    """A restart: this request is lost, the next one is answered."""
    line.is_up = True
    raise ConnectionResetError("gone")


def test_what_everything_else_needs_is_never_left_out(line):
    line.refused = {"start"}
    line.send("start", is_essential=True)
    line.send("score")
    line.box.wait(10)
    assert line.box.not_written == {"start": 1, "score": 1}
    line.refused = set()
    line.box.close()
    assert line.got == ["start", "score"]


def test_what_is_kept_has_a_bound():
    line = Line(capacity=10)
    line.is_up = False
    for _ in range(15):
        line.send("n")
    assert line.box.not_written == {"n": 15}
    line.box.wait(10)
    line.is_up = True
    line.box.close()
    assert len(line.got) == 10
    assert line.box.not_written == {"n": 5}


def test_a_write_that_always_hangs_does_not_block_the_others_for_ever():
    line = Line(slow_s=0.05, timeouts=2)

    def hang():
        time.sleep(0.1)  # a server that is slow
        raise TimeoutError("no answer")

    line.box.send("hanging", hang)
    line.send("n")
    for _ in range(3):
        line.box.wait(10)
        line.box.try_again()
    line.box.close()
    assert line.got == ["n"]
    assert line.box.not_written == {"hanging": 1}


def test_no_password_is_in_a_message(caplog):
    box = Outbox(lambda: False, secret="hunter2-hunter2")

    def write():
        raise ConnectionError("no route to http://me:hunter2-hunter2@host")

    box.send("n", write)
    box.close()
    assert len(warnings_of(caplog)) == 2
    assert "hunter2" not in caplog.text


# Whole compiles


def test_a_server_that_was_never_there(compile_, caplog):
    before = dict(os.environ)
    tracker = MLflowTracker(tracking_uri=f"http://127.0.0.1:{free_port()}")
    compile_.run(Trackers([tracker], strict=True))
    first, last = warnings_of(caplog)
    assert "setLevel" in first
    assert "Not written: 1 x end of the compile, 4 x fine-tune, 2 x iteration" in last
    assert tracker.run_id is None
    assert tracker.how_to_open is None
    assert tracker.not_logged["iteration"] == 2
    assert {key: value for key, value in os.environ.items() if "MLFLOW" in key} == {
        key: value for key, value in before.items() if "MLFLOW" in key
    }


@pytest.fixture
def mute():
    """A server that takes every connection and never answers, and counts them."""
    import socket

    taken = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        ends = threading.Event()

        def take():
            while not ends.is_set():
                try:
                    taken.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=take)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
        ends.set()
        thread.join()
        for connection in taken:
            connection.close()


def test_a_server_that_never_answers_is_asked_a_few_times_and_not_for_every_event(mute, compile_, monkeypatch):
    uri, taken = mute
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracker = MLflowTracker(tracking_uri=uri)
    compile_.run(Trackers([tracker], strict=True))
    assert tracker.not_logged["fine-tune"] == 4
    # At the start, after each of two iterations, and at the end; each time for a write, and whether the server is up.
    assert len(taken) <= 8


def test_a_store_that_breaks_in_the_middle_is_reported_and_its_runs_are_closed(store, compile_, tmp_path, caplog):
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)
    strict = Trackers([tracker], strict=True)
    compile_.begin(strict)
    wait_until(lambda: not tracker.not_logged, 30)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("drop table metrics")
    compile_.iterate(strict, 1)
    compile_.iterate(strict, 2)
    compile_.end(strict)
    first, last = warnings_of(caplog)
    assert "metrics" in first
    assert "2 x iteration" in last
    assert "training set" not in last  # what can be written still is
    assert store.get_run(tracker.run_id).info.status == "FINISHED"


def test_settings_of_the_user_for_requests_are_kept_and_ours_are_taken_back():
    environ = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}
    waits = ShortWaits(environ)
    waits.shorten()
    waits.shorten()
    assert environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    with waits.for_upload(10**9):
        assert environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    waits.restore()
    assert environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    waits.restore()
    assert environ == {"MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}


def test_a_large_upload_gets_more_time():
    environ = {}
    waits = ShortWaits(environ)
    waits.shorten()
    usual = int(environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    with waits.for_upload(100 * UPLOAD_BYTES_PER_S):
        assert int(environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == usual + 100
    assert int(environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == usual
    waits.restore()
    assert environ == {}


class At(Tracker):
    """Calls something before one event of another tracker."""

    def __init__(self, hook, number, do):
        self.hook, self.left, self.do = hook, number, do

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if not name.startswith("on_") or name != self.hook:
            return found

        def hook(event):
            self.left -= 1
            if self.left == 0:
                self.do()

        return hook


def compiled(tmp_path, *trackers):
    with dspy.context(adapter=toy.ADAPTER):
        optimizer = toy.optimizer(tmp_path / "run", tracker=Trackers(trackers, strict=True))
        return optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4)))


def test_a_server_killed_in_mid_compile_and_never_seen_again(own_server, tmp_path, caplog):
    tracker = MLflowTracker(tracking_uri=own_server.uri)
    program = compiled(tmp_path, At("on_trained", 1, own_server.kill), tracker)
    assert program.detailed_results["best_score"] == 1.0
    _, last = warnings_of(caplog)
    assert "1 x end of the compile" in last
    assert tracker.not_logged["end of the compile"] == 1
    assert tracker.not_logged["trace"] > 0
    assert tracker.run_id is not None
    with dspy.context(adapter=toy.ADAPTER):
        assert program(number=5).answer == "ans:10"


def test_a_server_that_comes_back_gets_everything_once(own_server, tmp_path, caplog):
    tracker = MLflowTracker(experiment="tests", tracking_uri=own_server.uri)
    hang = At("on_curated", 1, lambda: own_server.signal(signal.SIGSTOP))
    go_on = At("on_evaluated", 3, lambda: own_server.signal(signal.SIGCONT))
    kill = At("on_trained", 3, own_server.kill)
    start = At("on_compile_ended", 1, own_server.start)
    compiled(tmp_path, hang, go_on, kill, start, tracker)
    assert tracker.not_logged == {}
    assert len(warnings_of(caplog)) == 1
    client = MlflowClient(tracking_uri=own_server.uri)
    runs = runs_of(client)  # which fails where a run is there twice
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [step for step, _ in curve(client, client.get_run(tracker.run_id), "val/score")] == [0, 1, 2]
    assert len(models_of(client, "program")) == 2
    assert len(models_of(client, "agent-doubler")) == 2
