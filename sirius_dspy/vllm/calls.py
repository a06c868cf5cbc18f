"""Counts the calls in flight to a server, so that its weights change only while there are none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sirius_dspy.errors import TimeLimitError

_PAUSE_S = 0.01


class Calls:
    """Lets either calls go on, any number of them, or one change of the weights."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._in_flight = 0
        self._is_closed = False

    @property
    def in_flight(self) -> int:
        """The number of calls that have begun and not ended."""
        with self._state:
            return self._in_flight

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count one call; it begins once no change is under way."""
        with self._state:
            self._state.wait_for(lambda: not self._is_closed)
            self._in_flight += 1
        try:
            yield
        finally:
            self._end()

    @asynccontextmanager
    async def acall(self) -> AsyncIterator[None]:
        """Like `call`, without blocking the event loop."""
        while not self._try_begin():
            await asyncio.sleep(_PAUSE_S)
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def none(self, timeout_s: float) -> Iterator[None]:
        """Wait until no call is in flight, and hold back new ones during the block.

        Raises:
            TimeLimitError: Calls were still in flight after this many seconds.
        """
        deadline = time.monotonic() + timeout_s
        with self._state:
            if not self._state.wait_for(lambda: not self._is_closed, timeout_s):
                raise TimeLimitError(f"Another change of the server's adapters did not end within {timeout_s:g} s.")
            self._is_closed = True
        try:
            self._wait_for_none(deadline - time.monotonic(), timeout_s)
            yield
        finally:
            with self._state:
                self._is_closed = False
                self._state.notify_all()

    def _wait_for_none(self, left_s: float, timeout_s: float) -> None:
        with self._state:
            if not self._state.wait_for(lambda: self._in_flight == 0, left_s):
                raise TimeLimitError(
                    f"{self._in_flight} calls to the server were still in flight after {timeout_s:g} s, so no adapter "
                    "was loaded or unloaded. Give the LM a `timeout`, or raise `load_s` of the server."
                )

    def _try_begin(self) -> bool:
        with self._state:
            self._in_flight += not self._is_closed
            return not self._is_closed

    def _end(self) -> None:
        with self._state:
            self._in_flight -= 1
            self._state.notify_all()
