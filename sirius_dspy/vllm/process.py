"""The process of a server that this process started: it never outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, cast

_GUARD = Path(__file__).with_name("guard.py")


class ServerProcess:
    """A command that runs until `end`, or until this process ends in whatever way.

    Args:
        command: The command and its arguments.
        environment: Environment variables besides those of this process.
        log: The file that receives its output; a file that exists is continued.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._begin = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, str(_GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # so that Ctrl-C in a terminal does not reach the server while runs finish
            )
        self._finalizer = weakref.finalize(self, _end, self._guard, os.getpid())

    @property
    def exit_code(self) -> int | None:
        """The exit code, or `None` while it runs."""
        return self._guard.poll()

    def tail(self, size: int = 1500) -> str:
        """Return the end of what it has written to the log."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, end - size))
            return file.read().decode("utf-8", "replace").strip() or "(nothing)"

    def end(self) -> None:
        """End it, and wait until it is gone."""
        self._finalizer()


def _end(guard: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked process must not end its parent's server
        return
    cast(IO[bytes], guard.stdin).close()
    guard.wait()
