"""Runs a command, and ends it with all its processes as soon as the process that started this one is gone.

A script of the standard library alone: `python guard.py COMMAND...`. Its standard input is a pipe whose other end only
the parent holds. It closes however the parent ends, also by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 10.0
"""Seconds between asking the command to end and killing it."""


def main() -> None:
    """Run the command, and exit with its exit code."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_parent, args=[process], daemon=True).start()
    code = process.wait()
    _signal_group(process.pid, signal.SIGKILL)  # workers that outlived the server
    sys.exit(code if code >= 0 else 128 - code)


def _end_with_parent(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        _signal_group(process.pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
