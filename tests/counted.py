"""Notes each request to a scripted LM when it is begun and when it is answered; imported by child processes, too."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import dspy
from dspy.utils.exceptions import LMServerError

from sirius_dspy import Patience
from sirius_dspy.testing.engine import Engine
from tests import toy


def note_calls(log: Path, *, fail_from: int = 0, kill_at: int = 0) -> None:
    """Let all scripted LMs of this process write their requests into a file.

    Args:
        log: One line per event.
        fail_from: From this request on, the server is out of order.
        kill_at: At this request, the process is killed without any warning, after others had a moment to be answered.
    """
    original, lock, number = Engine.complete, threading.Lock(), 0

    def complete(engine, request):
        nonlocal number
        with lock:
            number += 1
            mine = number
        config = request.config
        texts = [message.text for message in request.messages]
        note = json.dumps([request.model, request.system, texts, config.temperature, config.seed], default=str)
        _write(log, f"asked {note}")
        if mine == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if fail_from and mine >= fail_from:
            raise LMServerError("out of order", model="toy", status=500)
        response = original(engine, request)
        _write(log, f"answered {note}")
        return response

    Engine.complete = complete


def asked_and_answered(log: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each request was begun, and answered."""
    lines = [line.partition(" ") for line in log.read_text(encoding="utf-8").splitlines()]
    asked, answered = (Counter(rest for kind, _, rest in lines if kind == wanted) for wanted in ("asked", "answered"))
    return asked, answered


def compile_noted(run_dir: Path) -> dspy.Module:
    """A compile with repairs, a gate and two iterations, which neither retries nor waits for a server that is down."""
    dspy.configure(adapter=toy.ADAPTER)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    patience = Patience(retries=0, outage_s=0)
    optimizer = toy.optimizer(run_dir, patience=patience)
    return optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12)))


def _write(log: Path, line: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def main(run_dir: str, log: str, fail_from: str, kill_at: str) -> None:
    """Compile in a process of its own: `python -m tests.counted RUN_DIR LOG FAIL_FROM KILL_AT`."""
    note_calls(Path(log), fail_from=int(fail_from), kill_at=int(kill_at))
    compile_noted(Path(run_dir))


if __name__ == "__main__":
    main(*sys.argv[1:])
