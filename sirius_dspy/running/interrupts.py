"""Ctrl-C while work is under way that is paid for: the first one is asked for, the second one interrupts."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Counts Ctrl-C in a `with` block, which the first one does not cut off wherever the main thread is just then.

    From the second one on, each raises `KeyboardInterrupt` at once; so does the end of the block if nobody asked for
    the first one. Outside the main thread, where signals do not
    arrive, and where the process ignores them, nothing changes.
    """

    def __init__(self) -> None:
        self.number = 0
        self._is_taken = False
        self._previous: Any = None
        self._is_over = False

    def take(self) -> bool:
        """Return whether there was a first Ctrl-C, which the caller now answers for; true once."""
        is_new = self.number == 1 and not self._is_taken
        self._is_taken |= is_new
        return is_new

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        # A generator may be closed in another thread, or after one that began later; then `_count` passes signals on.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) == self._count:
            signal.signal(signal.SIGINT, self._previous)
        if kind is None and self.take():
            raise KeyboardInterrupt

    def _count(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            self._previous(number, frame)
            return
        self.number += 1
        if self.number > 1:
            raise KeyboardInterrupt
