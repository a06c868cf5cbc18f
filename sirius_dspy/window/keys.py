"""Single keys from a terminal."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def reading_keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits some seconds for a key, and returns it; empty if none came.

    Without a terminal, it only waits. The terminal is put back as it was.
    """
    if not sys.stdin.isatty():
        yield _wait
        return
    import termios  # not on Windows
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _read
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _read(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""
