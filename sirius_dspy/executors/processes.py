"""`ProcessExecutor`: several processes on this machine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sirius_dspy import checks
from sirius_dspy.dspy_internals import usage_tracker
from sirius_dspy.errors import WorkerError
from sirius_dspy.executors.answers import take_answer
from sirius_dspy.executors.child import Child, Expected
from sirius_dspy.executors.losses import Attempt, Losses, run_item
from sirius_dspy.executors.packing import pack
from sirius_dspy.executors.shipment import Shipment, ShippingExecutor
from sirius_dspy.running.executor import Item, Result, Shipped, Workers
from sirius_dspy.running.patience import Patience


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
            worker had begun is done by another one. An item that was under way in two of them runs alone afterwards;
            if it kills that worker, too, it is put aside as unfinished, and the workers that it killed do not count.
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


_ADVICE = "Lower `processes` or `num_threads`, or raise `max_restarts`"

_KINDS = {"processes": checks.whole(1), "max_restarts": checks.whole(0)}


class _Crew(Workers):
    """The processes of one compile."""

    def __init__(self, number: int, max_restarts: int) -> None:
        self._number = number
        self._children: list[Child] = []
        self._numbers = itertools.count()
        self._has_ended = False
        self._lock = threading.Lock()  # protects the lists
        self._alone: Child | None = None
        self._being_alone = threading.Lock()  # one at a time, since workers may die for lack of memory
        self.losses = Losses(max_restarts, "Worker processes, whose last words are above,", _ADVICE)
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

    def choose(self) -> tuple[Child, Expected]:
        """The process with the least to do, which gets one item more; missing ones are started.

        Raises:
            WorkerError: Too many have died, or the crew was stopped.
        """
        with self._lock:
            for child in self._children:
                if child.is_lost:
                    self.losses.note(child)
            self._children = [child for child in self._children if not child.is_lost]
            self._check()
            while len(self._children) < self._number:
                self._children.append(Child(self.trackers))
            chosen = min(self._children, key=lambda child: child.num_pending)
            return chosen, chosen.expect()

    @contextmanager
    def isolate(self) -> Iterator[tuple[Child, Expected]]:
        """A process of its own for one item, which ends with the context.

        Raises:
            WorkerError: Too many have died, or the crew was stopped.
        """
        with self._being_alone:
            with self._lock:
                self._check()
                child = self._alone = Child(self.trackers)
            try:
                yield child, child.expect()
            finally:
                child.close()
                child.wait()
                self._alone = None

    def check(self) -> None:
        """Raise an error if no item can be done any more.

        Raises:
            WorkerError: Too many have died, or the crew was stopped.
        """
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self._has_ended:
            raise WorkerError("The workers were stopped.")
        self.losses.check()

    @property
    def _all(self) -> list[Child]:
        return [*self._children, *([] if self._alone is None else [self._alone])]

    def tell(self, *message: Any) -> None:
        """Send a message about a function to all processes that know it."""
        with self._lock:
            children = self._all
        for child in children:
            child.tell(*message)

    def stop(self) -> None:
        """End all processes; items under way are lost."""
        with self._lock:
            self._has_ended = True
            children, self._children = self._all, []
        for child in children:
            child.close()
        for child in children:
            child.wait()


class _Shipped(Shipped[Item, Result]):
    def __init__(self, crew: _Crew, number: int, shipment: Shipment) -> None:
        self._crew = crew
        self._number = number
        self._shipment = shipment
        self._packed = b""
        self._lock = threading.Lock()  # it is packed once, when the first item comes

    def __call__(self, item: Item) -> Result:
        data = pack(item)
        answer = run_item(lambda is_alone, is_again: self._attempt(data, is_alone, is_again), self._crew.losses)
        result: Result = take_answer(answer)
        return result

    def _attempt(self, data: bytes, is_alone: bool, is_again: bool) -> Attempt:
        if not is_alone:
            return self._send(*self._crew.choose(), data, is_again)
        with self._crew.isolate() as (child, expected):
            tried = self._send(child, expected, data, is_again)
        if tried.answer is None:
            self._crew.check()
        return tried

    def _send(self, child: Child, expected: Expected, data: bytes, is_again: bool) -> Attempt:
        child.send_item(expected.number, self._number, self._pack(), data, is_again)
        return Attempt(child, expected.number, expected.answer.result())

    def _pack(self) -> bytes:
        with self._lock:
            self._packed = self._packed or pack(self._shipment)
            return self._packed

    def leave(self) -> None:
        self._crew.tell("leave", self._number)
