"""A worker process, as the process that started it sees it."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple, cast

from sirius_dspy.executors.frames import Sender, receive

END_S = 5.0
"""How long a worker may take to end by itself."""


class Expected(NamedTuple):
    """An item under way."""

    number: int
    answer: Future[bytes | None]


class Child:
    """One process."""

    def __init__(self, trackers: Mapping[int, Any]) -> None:
        self._trackers = trackers
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sirius_dspy.executors.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # a Ctrl-C at the terminal must not reach it
        )
        self._input = cast(BinaryIO, self._process.stdin)
        self._output = io.BufferedReader(cast(io.RawIOBase, self._process.stdout))
        self._sender = Sender(self._input)
        self._sending = threading.Lock()  # protects the set: a function comes before its first item
        self._known: set[int] = set()
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # protects what follows
        self._pending: dict[int, Future[bytes | None]] = {}
        self.is_lost = False
        self._has_begun = False
        self.lost_items: frozenset[int] = frozenset()
        """Numbers of the items that were under way when it died; none if it died before it could take any."""
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    @property
    def num_pending(self) -> int:
        """Items under way."""
        return len(self._pending)

    def expect(self) -> Expected:
        """Return the number of a new item, and its answer to come; the answer is `None` if the process ends before."""
        with self._lock:
            number, answer = next(self._numbers), Future[bytes | None]()
            self._pending[number] = answer
            if self.is_lost:
                self._give_up()
        return Expected(number, answer)

    def send_item(self, item: int, function: int, shipment: bytes, data: bytes, is_again: bool) -> None:
        """Send an item, after its function."""
        with self._sending, suppress(OSError, ValueError):  # if it has ended, nobody waits for it in vain
            if function not in self._known:
                self._known.add(function)
                self._sender.send("learn", function, shipment)
            self._sender.send("run", item, function, data, is_again)

    def tell(self, kind: str, function: int) -> None:
        """Send a message about a function, if the process knows it."""
        with self._sending, suppress(OSError, ValueError):
            if function in self._known:
                self._sender.send(kind, function)

    def close(self) -> None:
        """Let the process end: it does so when its input does."""
        with self._sending, suppress(OSError):
            self._input.close()

    def wait(self) -> None:
        """Wait until the process has ended."""
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        """Receive messages until the process ends."""
        while (message := self._receive()) is not None:
            self._has_begun = True
            kind, number, *values = message
            if kind == "ready":
                continue
            if kind == "usage":
                if (tracker := self._trackers.get(number)) is not None:
                    tracker.add_usage(*values)
                continue
            with self._lock:
                answer = self._pending.pop(number)
            answer.set_result(values[0])
        with self._lock:
            self.lost_items = frozenset(self._pending if self._has_begun else ())
            self.is_lost = True
            self._give_up()
        self.close()
        self._output.close()
        self._process.wait()

    def _receive(self) -> tuple[Any, ...] | None:
        try:
            return receive(self._output)
        except OSError:
            return None

    def _give_up(self) -> None:
        for answer in self._pending.values():
            answer.set_result(None)
        self._pending.clear()
