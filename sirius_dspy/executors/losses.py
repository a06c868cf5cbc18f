"""Workers that died, and whether an item explains it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from sirius_dspy.errors import WorkerError

IN_A_ROW = 10
"""Items that killed their workers, with no other one between them, after which it is not the items."""

SUSPICIOUS = 2
"""Workers that an item must have lost before it runs alone."""


class Worker(Protocol):
    """What runs items, and may die."""

    lost_items: frozenset[int]
    """Numbers of the items that were under way when it died; none if it died before it could take any."""


class Attempt(NamedTuple):
    """What became of an item on one worker."""

    worker: Worker
    number: int
    answer: bytes | None
    """`None` if the worker died before it had answered."""

    @property
    def was_under_way(self) -> bool:
        """Whether the worker died while it had the item."""
        return self.number in self.worker.lost_items


class Losses:
    """Counts the workers that died for reasons other than one item. Thread-safe.

    A death is judged when all items that were under way are done: if one of them killed a worker while it was alone,
    it explains the death, which then does not count.

    Args:
        allowed: How many unexplained deaths.
        what: Whose deaths, for the message.
        advice: What to do about them, for the message.
    """

    def __init__(self, allowed: int, what: str, advice: str) -> None:
        self._left = allowed
        self._in_a_row = 0
        self._suspects: dict[Worker, int] = {}
        self._lock = threading.Lock()  # protects all of it
        self._what = what
        self._advice = advice

    def note(self, worker: Worker) -> None:
        """Note a death. One with no item under way counts at once."""
        with self._lock:
            if not worker.lost_items:
                self._left -= 1

    def clear(self, lost: Iterable[Worker]) -> None:
        """Note that an item was done which had been under way in these."""
        with self._lock:
            self._in_a_row = 0
            for worker in lost:
                self._suspects[worker] = self._suspects.get(worker, len(worker.lost_items)) - 1
                if self._suspects[worker] == 0:
                    self._left -= 1

    def explain(self, killed: Iterable[Worker]) -> None:
        """Note that an item killed these."""
        with self._lock:
            self._in_a_row += 1
            for worker in killed:
                self._suspects[worker] = -1  # no count comes down to zero any more

    def check(self) -> None:
        """Raise an error if too many have died.

        Raises:
            WorkerError: More than allowed died without an item that explains it, or each item kills its worker.
        """
        if self._left < 0 or self._in_a_row >= IN_A_ROW:
            raise WorkerError(
                f"{self._what} died again and again, e.g. for lack of memory. All finished runs are kept. "
                f"{self._advice}, then run the same `compile` again to resume."
            )


def run_item(attempt: Callable[[bool, bool], Attempt], losses: Losses) -> bytes:
    """Run an item on one worker after another until one answers.

    Args:
        attempt: Tries it once. Its arguments say whether nothing may run beside it, and whether a worker was lost that
            had begun it.
        losses: What hears of the workers that died.

    Raises:
        WorkerError: The item kills its workers.
    """
    lost: list[Worker] = []
    while True:
        is_alone = len(lost) >= SUSPICIOUS
        tried = attempt(is_alone, bool(lost))
        if tried.was_under_way:
            lost.append(tried.worker)
        if tried.answer is not None:
            losses.clear(lost)
            return tried.answer
        if not is_alone:
            continue
        if tried.was_under_way:
            losses.explain(lost)
            raise WorkerError(
                f"It killed {len(lost)} worker processes, the last one with nothing else under way", is_about_item=True
            )
        losses.note(tried.worker)
