"""`ProcessExecutor`: several processes on this machine."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

from sirius_dspy import checks
from sirius_dspy.dspy_internals import usage_tracker
from sirius_dspy.errors import WorkerError
from sirius_dspy.executors.answers import take_answer
from sirius_dspy.executors.frames import Sender, receive
from sirius_dspy.executors.packing import pack
from sirius_dspy.executors.shipment import Shipment, ShippingExecutor
from sirius_dspy.running.executor import Item, Result, Shipped, Workers
from sirius_dspy.running.patience import Patience

END_S = 5.0
"""How long a worker may take to end by itself."""


@dataclass(frozen=True)
class ProcessExecutor(ShippingExecutor):
    """Runs the program, the metric and repairs in several processes on this machine.

    One process makes some hundreds of LM calls per second, whatever the number of its threads: DSPy's own work on each
    call keeps one core busy. Several processes lift that bound. The `num_threads` of the compile are shared out among
    them. The results are the same as with threads.

    Program, metric and augmenter are copied into each process, so what they note in themselves or in global variables
    stays there. DSPy's callbacks stay in the process of the compile.

    Attributes:
        processes: How many.
        max_restarts: How many workers may die and be replaced in one compile, e.g. for lack of memory. What such a
            worker had begun is done by another one.
    """

    processes: int = 2
    max_restarts: int = 8

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("ProcessExecutor", vars(self), _KINDS)

    @contextmanager
    def start(self) -> Iterator[Workers]:
        """The context in which the processes live. They begin with the first item, and end with the context."""
        crew = _Crew(self.processes, self.max_restarts)
        try:
            yield crew
        finally:
            crew.stop()


_KINDS = {"processes": checks.whole(1), "max_restarts": checks.whole(0)}


class _Crew(Workers):
    """The processes of one compile."""

    def __init__(self, number: int, max_restarts: int) -> None:
        self._number = number
        self._restarts_left = max_restarts
        self._children: list[_Child] = []
        self._numbers = itertools.count()
        self._has_ended = False
        self._lock = threading.Lock()  # protects the list and the count of restarts
        self.trackers: dict[int, Any] = {}
        """Number of a function to what hears of its usage."""

    @contextmanager
    def open(self, function: Callable[[Item], Result], patience: Patience) -> Iterator[Shipped[Item, Result]]:
        """Pack the function; each process gets it with the first item."""
        number = next(self._numbers)
        self.trackers[number] = usage_tracker()
        shipped: _Shipped[Item, Result] = _Shipped(self, number, Shipment.of(function, patience))
        try:
            yield shipped
        finally:
            self.tell("forget", number)

    def choose(self) -> tuple[_Child, Expected]:
        """The process with the least to do, which gets one item more; missing ones are started.

        Raises:
            WorkerError: Too many have died, or the crew was stopped.
        """
        with self._lock:
            alive = [child for child in self._children if not child.is_lost]
            self._restarts_left -= len(self._children) - len(alive)
            self._children = alive
            if self._has_ended:
                raise WorkerError("The workers were stopped.")
            if self._restarts_left < 0:
                raise WorkerError(
                    "Worker processes died again and again, e.g. for lack of memory; their last words are above. All "
                    "finished runs are kept. Lower `processes` or `num_threads`, or raise `max_restarts`, then run "
                    "the same `compile` again to resume."
                )
            while len(self._children) < self._number:
                self._children.append(_Child(self.trackers))
            chosen = min(self._children, key=lambda child: child.num_pending)
            return chosen, chosen.expect()

    def tell(self, *message: Any) -> None:
        """Send a message about a function to all processes that know it."""
        with self._lock:
            children = list(self._children)
        for child in children:
            child.tell(*message)

    def stop(self) -> None:
        """End all processes; items under way are lost."""
        with self._lock:
            self._has_ended = True
            children, self._children = self._children, []
        for child in children:
            child.close()
        for child in children:
            child.wait()


class Expected(NamedTuple):
    """An item under way."""

    number: int
    answer: Future[bytes | None]


class _Shipped(Shipped[Item, Result]):
    def __init__(self, crew: _Crew, number: int, shipment: Shipment) -> None:
        self._crew = crew
        self._number = number
        self._shipment = shipment
        self._packed = b""
        self._lock = threading.Lock()  # it is packed once, when the first item comes

    def __call__(self, item: Item) -> Result:
        packed, is_again = pack(item), False
        while True:
            child, expected = self._crew.choose()
            child.send_item(expected.number, self._number, self._pack(), packed, is_again)
            answer = expected.answer.result()
            if answer is not None:
                result: Result = take_answer(answer)
                return result
            is_again = True

    def _pack(self) -> bytes:
        with self._lock:
            self._packed = self._packed or pack(self._shipment)
            return self._packed

    def leave(self) -> None:
        self._crew.tell("leave", self._number)


class _Child:
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
            kind, number, *values = message
            if kind == "usage":
                if (tracker := self._trackers.get(number)) is not None:
                    tracker.add_usage(*values)
                continue
            with self._lock:
                answer = self._pending.pop(number)
            answer.set_result(values[0])
        with self._lock:
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
