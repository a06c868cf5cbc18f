"""What a worker does: it keeps shipped functions, and runs each item in a thread of its own under a watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import dspy

from sirius_dspy.errors import WorkerError
from sirius_dspy.executors.packing import pack, unpack
from sirius_dspy.executors.shipment import Answer, Shipment
from sirius_dspy.redact import redact_error
from sirius_dspy.running.journal import CallJournal, use_journal
from sirius_dspy.running.patience import Health
from sirius_dspy.running.throttle import Throttles
from sirius_dspy.running.truncation import drop_truncation_warnings
from sirius_dspy.running.watch import Watch, watch_over

LOOK_UP_S = 0.1
"""How often to look whether an item has passed a time limit."""

NoteUsage = Callable[[int, str, Mapping[str, Any]], None]
"""Receives the number of a function, the id of an LM that a server answered, and what DSPy's usage tracker hears."""


@dataclass(eq=False)
class _Function:
    """A function that was learned."""

    shipment: Shipment
    journal: CallJournal | None
    health: Health
    leaving: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Work:
    """One item under way. Whoever is first answers for it: its own thread, or the one that looks for time limits."""

    watch: Watch
    send: Callable[[bytes], None]
    is_answered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, answer: Answer) -> None:
        """Send the answer, unless there was one."""
        with self.lock:
            if self.is_answered:
                return
            self.is_answered = True
        try:
            data = pack(answer)
        except Exception as error:
            unsent = WorkerError(f"What a worker returned cannot be sent: {type(error).__name__}: {error}")
            data = pack(Answer(error=unsent))
        self.send(data)


class Runner:
    """Runs the items of shipped functions.

    Args:
        note_usage: Called as soon as a server has answered.
    """

    def __init__(self, note_usage: NoteUsage) -> None:
        self._note_usage = note_usage
        self._functions: dict[int, _Function | Exception] = {}
        self._works: set[_Work] = set()
        self._lock = threading.Lock()  # protects the set
        self._throttles = Throttles()
        threading.Thread(target=self._look_for_limits, name="time-limits", daemon=True).start()

    def learn(self, number: int, data: bytes) -> None:
        """Keep a function. Where that fails, its items say why."""
        try:
            shipment: Shipment = unpack(data)
            _configure_cache(shipment.cache)
        except Exception as error:
            self._functions[number] = error
            return
        journal = None if shipment.journal is None else CallJournal(shipment.journal)
        health = Health()
        health.throttles = self._throttles  # a server is as busy for one function as for the next
        self._functions[number] = _Function(shipment, journal, health)

    def leave(self, number: int) -> None:
        """Let no retry of a function wait any more."""
        if isinstance(function := self._functions.get(number), _Function):
            function.leaving.set()

    def forget(self, number: int) -> None:
        """Drop a function."""
        function = self._functions.pop(number, None)
        if isinstance(function, _Function) and function.journal is not None:
            function.journal.close(delete=False)

    def run(self, number: int, data: bytes, is_again: bool, send: Callable[[bytes], None]) -> None:
        """Begin an item.

        Args:
            number: Of its function.
            data: The packed item.
            is_again: Whether another worker was lost that had begun it, and may have kept some of its calls.
            send: Called once with the packed `Answer`.
        """
        function = self._functions[number]
        if isinstance(function, Exception):
            text = f"{type(function).__name__}: {function}"
            error = WorkerError(
                f"A worker cannot load what it is to run: {text} Its modules must be importable there, too."
            )
            send(pack(Answer(error=error)))
            return
        if is_again and function.journal is not None:
            function.journal.read_again()
        work = _Work(Watch(function.shipment.patience, function.health, function.leaving), send)
        with self._lock:
            self._works.add(work)
        threading.Thread(target=self._do, args=(number, function, work, data), daemon=True).start()

    def _do(self, number: int, function: _Function, work: _Work, data: bytes) -> None:
        result, error = None, None
        outages = self._throttles.outages
        try:
            with self._context(number, function, work.watch):
                result = function.shipment.function(unpack(data))
        except BaseException as raised:  # whatever it is belongs to the thread that waits
            error = redact_error(raised)
        faults = tuple(work.watch.faults)
        for fault in faults:
            redact_error(fault)
        with self._lock:
            self._works.discard(work)
        watch, has_seen_outage = work.watch, self._throttles.outages > outages
        work.answer(Answer(result, error, faults, watch.has_retried, watch.waits_for_server, has_seen_outage))

    @contextmanager
    def _context(self, number: int, function: _Function, watch: Watch) -> Iterator[None]:
        settings = {**function.shipment.settings, "callbacks": [], "usage_tracker": _Usage(number, self._note_usage)}
        with (
            dspy.context(**settings),
            use_journal(function.journal),
            drop_truncation_warnings(),
            watch_over(watch),
        ):
            yield

    def _look_for_limits(self) -> None:
        while True:
            time.sleep(LOOK_UP_S)
            with self._lock:
                works = list(self._works)
            for work in works:
                try:
                    error: Exception | None = work.watch.find_overdue()
                except Exception as raised:  # no LM answers any more
                    error = raised
                if error is not None:
                    with self._lock:
                        self._works.discard(work)
                    work.answer(Answer(error=error))


class _Usage:
    """Stands in for DSPy's usage tracker in a worker."""

    def __init__(self, number: int, note: NoteUsage) -> None:
        self._number = number
        self._note = note

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # DSPy copies its usage tracker into each of its own threads

    def add_usage(self, lm: str, entry: Mapping[str, Any]) -> None:
        """Called by DSPy for each answer that no cache gave."""
        self._note(self._number, lm, entry)


def _configure_cache(wanted: Mapping[str, Any]) -> None:
    if any(getattr(dspy.cache, name) != value for name, value in wanted.items()):
        dspy.configure_cache(**wanted)
