"""What a child process that trains does besides training.

It reads the names of job files from standard input, one per line, and writes one JSON object per line to standard
output: `{"task", "step", "total", "loss"}` after every step of an agent, `{"note"}` for what the user should know, and
`{"measured", "stays"}` at the end of a job. It exits when its parent dies, and when no job comes for the seconds that
are its only argument.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Report = Callable[[dict[str, Any]], None]


def serve(read: Callable[[str], Job], run: Callable[[Job, Report], dict[str, Any]]) -> None:
    """Run jobs until the parent ends this process, or gives no more.

    Args:
        read: Reads a job from JSON.
        run: Runs a job, reports its steps, and returns its measurements.
    """
    notes, report, patience = _watch_input(), _claim_output(), float(sys.argv[1])
    while True:
        try:
            note = notes.get(timeout=patience)
        except queue.Empty:
            return
        measured = run(read(Path(note).read_text(encoding="utf-8")), report)
        gc.collect()
        report({"measured": measured, "stays": device().type == "cpu"})  # a GPU's memory is needed by the engine


def device() -> torch.device:
    """Return the device on which training is fastest."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _watch_input() -> queue.SimpleQueue[str]:
    """Return the lines of standard input, and exit when it closes, which happens whenever the parent dies."""
    notes: queue.SimpleQueue[str] = queue.SimpleQueue()
    stdin = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")  # `sys.stdin` would hold a lock at a normal exit

    def watch() -> None:
        for line in stdin:
            notes.put(line.rstrip("\n"))
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
    return notes


def _claim_output() -> Report:
    """Return what writes reports to standard output, to which nothing else goes: libraries print to standard error."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def report(values: dict[str, Any]) -> None:
        reports.write(json.dumps(values) + "\n")
        reports.flush()

    return report
