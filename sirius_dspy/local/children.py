"""The child processes that train, as their parent sees them.

Training runs in a child process, so a crash becomes an error message here, and it can be stopped. On a CPU a child
waits for the next job of its kind for a while, because its imports take as long as the training of some dozen rows.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, cast

from sirius_dspy.errors import TrainingError
from sirius_dspy.local.devices import visible_gpu

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with the step (from 1), the number of steps, and the step's loss in nats per completion token."""

IDLE_S = 300.0
"""Seconds that a child waits for its next job."""


class ChildJob(Protocol):
    """A job of a child process."""

    module: ClassVar[str]
    """The module that runs it."""

    def to_json(self) -> str:
        """Serialize the job for the module."""


def run_job(
    job: ChildJob, *, stop: threading.Event, hooks: Sequence[Progress | None] = (), gpu: int | None = None
) -> dict[str, Any]:
    """Run a job in a child process and wait for it.

    Args:
        job: The job to run.
        stop: Event that ends the child within a second.
        hooks: One for each task of the job; called from this thread after every step of the task.
        gpu: Number of the only GPU that the child may use.

    Returns:
        The measurements: for a `TrainingJob`, `results` with the `losses` and `tokens` of each task, and the
        `train_seconds`, `merge_seconds`, `precision`, `device` and `rows_per_pass` of the job.

    Raises:
        TrainingError: The child failed, or was stopped.
    """
    child = _idle.take(job.module, gpu) or Child(job.module, gpu)
    try:
        last = child.run(job.to_json(), stop, hooks)
    except BaseException:
        child.end()
        raise
    if last["stays"] and not stop.is_set():
        _idle.put(child)
    else:
        child.end()
    measured: dict[str, Any] = last["measured"]
    return measured


class Child:
    """A process that runs one job after another.

    Args:
        module: The module that it runs; see `sirius_dspy.local.child`.
        gpu: Number of the only GPU that it may use.
    """

    def __init__(self, module: str, gpu: int | None = None) -> None:
        self.key = _key(module, gpu)
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(IDLE_S + 60)],  # it ends by itself if no one does it
            stdin=subprocess.PIPE,  # when this process dies, it closes, and the child ends itself
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env=child_environment(gpu),
            start_new_session=True,  # so that Ctrl-C in a terminal does not reach it while it waits
        )
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="training-reports", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether it can take a job."""
        return self._process.poll() is None

    def run(self, job: str, stop: threading.Event, hooks: Sequence[Progress | None]) -> dict[str, Any]:
        """Run one job, and return the last report; see `run_job`."""
        self._complained = os.fstat(self._complaints.fileno()).st_size
        with tempfile.TemporaryDirectory(prefix="sirius-train-") as scratch:
            note = Path(scratch, "job.json")
            note.write_text(job, encoding="utf-8")
            self._send(note)
            result = self._follow(stop, hooks)
        if result is not None:
            return result
        if stop.is_set():
            raise TrainingError("The training was cancelled, and no weights were kept. Run it again to train.")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)  # of a process that closed its output, and is about to exit
        self._process.kill()
        code = self._process.wait()
        raise TrainingError(f"The training process ended with exit code {code}. Its last output:\n{self._tail()}")

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)  # a process that the child started may hold its output open
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with suppress(BrokenPipeError):  # of what was written to a process that had died
                cast(IO[Any], stream).close()

    def _send(self, note: Path) -> None:
        stdin = cast(IO[str], self._process.stdin)
        with suppress(BrokenPipeError):  # if it has died, `_follow` finds out
            stdin.write(f"{note}\n")
            stdin.flush()

    def _follow(self, stop: threading.Event, hooks: Sequence[Progress | None]) -> dict[str, Any] | None:
        """Pass on the reports of steps, and return the one that ends the job, or `None` if the process ended."""
        while True:
            if stop.is_set():
                self._process.kill()
            try:
                report = self._reports.get(timeout=0.2)
            except queue.Empty:
                continue
            if report is not None and "note" in report:
                logger.warning(report["note"])
                continue
            if report is None or "step" not in report:
                return report
            if hooks and (hook := hooks[report.get("task", 0)]) is not None:
                hook(report["step"], report["total"], report["loss"])

    def _read(self) -> None:
        try:
            for line in self._process.stdout or ():
                with suppress(json.JSONDecodeError):  # of what an import prints before the child claims its output
                    self._reports.put(json.loads(line))
        finally:
            self._reports.put(None)

    def _tail(self, size: int = 2000) -> str:
        """Return the end of what this job complained of; the child shares the file's position, so it is not moved."""
        end = os.fstat(self._complaints.fileno()).st_size
        start = max(self._complained, end - size)
        text = os.pread(self._complaints.fileno(), end - start, start)
        return text.decode("utf-8", "replace").strip() or "(nothing)"


class _Idle:
    """The children that wait for a job, at most one of each kind."""

    def __init__(self) -> None:
        self._children: dict[_Key, tuple[Child, threading.Timer]] = {}
        self._lock = threading.Lock()

    def take(self, module: str, gpu: int | None) -> Child | None:
        """Return a child that can take a job, if there is one."""
        with self._lock:
            child, timer = self._children.pop(_key(module, gpu), (None, None))
        if child is None or timer is None:
            return None
        timer.cancel()
        if child.is_alive:
            return child
        child.end()
        return None

    def put(self, child: Child) -> None:
        """Keep a child for the next job, or end it if another one waits already."""
        timer = threading.Timer(IDLE_S, self._expire, [child])
        timer.daemon = True
        with self._lock:
            is_kept = self._children.setdefault(child.key, (child, timer))[0] is child
        if is_kept:
            timer.start()
        else:
            child.end()

    def end_all(self) -> None:
        """End all children of this process."""
        with self._lock:
            mine = [key for key in self._children if key[0] == os.getpid()]
            found = [self._children.pop(key) for key in mine]
        for child, timer in found:
            timer.cancel()
            child.end()

    def _expire(self, child: Child) -> None:
        with self._lock:
            waits = self._children.get(child.key, (None, None))[0] is child
            if waits:
                del self._children[child.key]
        if waits:
            child.end()


_Key = tuple[int, str, int]


def _key(module: str, gpu: int | None) -> _Key:
    """A forked process must not use the children of its parent, nor a job a child with another environment."""
    return os.getpid(), module, hash(frozenset(child_environment(gpu).items()))


_idle = _Idle()


def end_idle() -> None:
    """End the children that wait for a job, whose memory is needed."""
    _idle.end_all()


atexit.register(end_idle)


_OF_THIS_PROCESS = ("PYTEST_CURRENT_TEST",)
"""Variables that change while this process works and that say nothing to a child, which can go on being used."""


def child_environment(gpu: int | None = None) -> dict[str, str]:
    """Disable network, telemetry and progress bars in the child, and let it import the same code as this process.

    Args:
        gpu: Number of the only GPU that the child may see.
    """
    package_root = str(Path(__file__).parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    # Threads that wait for work may spin for some 50 microseconds only: a step took 1.2 s that way, 2.1 s when they
    # slept at once, and ten times as long when they spun while another program ran.
    patient = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
    complete = {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}  # what MPS lacks is computed on the CPU
    chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible_gpu(gpu)}
    own = {name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS}
    return {**patient, **complete, **own, **chosen, **quiet, "PYTHONPATH": os.pathsep.join(paths)}
