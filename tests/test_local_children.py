"""Child processes that run one job after another."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from sirius_dspy.errors import TrainingError  # noqa: E402
from sirius_dspy.local import children  # noqa: E402

MODULE = """
import json, os, sys, time
from sirius_dspy.local import child

def run(job, report):
    print("libraries print, too")
    if job.get("note"):
        report({"note": job["note"]})
    if job.get("device"):
        child.device = lambda: child.torch.device(job["device"])
    for step in range(1, job["steps"] + 1):
        report({"task": 0, "step": step, "total": job["steps"], "loss": 1 / step})
    time.sleep(job.get("seconds", 0))
    if job.get("fails"):
        raise ValueError("the last words")
    return {"pid": os.getpid()}

child.serve(json.loads, run)
"""


@dataclass
class Job:
    module: ClassVar[str] = "toy_child"
    values: dict

    def to_json(self):
        return json.dumps(self.values)


@pytest.fixture
def run_job(tmp_path, monkeypatch):
    (tmp_path / "toy_child.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    idle = children._Idle()
    monkeypatch.setattr(children, "_idle", idle)
    yield lambda stop=None, hook=None, **values: children.run_job(
        Job({"steps": 0, **values}), stop=stop or threading.Event(), hooks=[hook]
    )
    idle.end_all()


def test_a_child_runs_the_next_job_as_well_and_reports_each_step(run_job):
    seen = []
    first = run_job(steps=3, hook=lambda *step: seen.append(step))
    assert seen == [(1, 3, 1.0), (2, 3, 0.5), (3, 3, pytest.approx(1 / 3))]
    assert run_job(steps=1, hook=lambda *step: seen.append(step)) == first
    assert seen[3:] == [(1, 1, 1.0)]


def test_a_note_of_a_child_is_logged_and_the_job_goes_on(run_job, caplog):
    seen = []
    run_job(steps=1, note="rows do not fit", hook=lambda *step: seen.append(step))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["rows do not fit"]
    assert seen == [(1, 1, 1.0)]


def test_jobs_at_the_same_time_have_a_child_each(run_job):
    pids = []
    threads = [threading.Thread(target=lambda: pids.append(run_job(seconds=1)["pid"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 2
    assert run_job()["pid"] in pids


def test_a_child_that_fails_is_an_error_with_its_last_words_and_the_next_job_has_a_new_one(run_job):
    first = run_job()
    with pytest.raises(TrainingError, match=r"(?s)exit code 1.*ValueError: the last words"):
        run_job(fails=True)
    assert run_job() != first


def test_a_child_that_died_while_it_waited_is_replaced(run_job):
    first = run_job()
    ((child, _),) = children._idle._children.values()
    os.kill(first["pid"], signal.SIGKILL)
    child._process.wait(timeout=30)
    assert run_job() != first


def test_a_job_can_be_stopped(run_job):
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(TrainingError, match="was cancelled"):
        run_job(stop=stop, seconds=600)


def test_a_hook_that_raises_ends_the_child(run_job):
    first = run_job()

    def hook(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(hook=hook, steps=2, seconds=600)
    assert run_job() != first


def test_on_a_gpu_no_child_waits_since_it_would_hold_memory(run_job):
    first = run_job(device="cuda")
    assert run_job() != first


def test_an_idle_child_ends_after_a_while(run_job, monkeypatch):
    monkeypatch.setattr(children, "IDLE_S", 0.2)
    first = run_job()
    for _ in range(300):
        if not children._idle._children:
            break
        threading.Event().wait(0.1)
    assert not children._idle._children
    assert run_job() != first


def test_a_child_ends_with_its_parent(tmp_path):
    (tmp_path / "toy_child.py").write_text(MODULE)
    parent = textwrap.dedent("""
        import os, threading
        from tests.test_local_children import Job
        from sirius_dspy.local import children
        print(children.run_job(Job({"steps": 0}), stop=threading.Event())["pid"], flush=True)
        os._exit(0)  # without any clean-up, as after SIGKILL
    """)
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    pid = int(done.stdout)
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        threading.Event().wait(0.1)
    pytest.fail("the child is still there")
