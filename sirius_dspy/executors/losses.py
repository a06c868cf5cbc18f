"""Worker processes that died, and whether an item explains it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from sirius_dspy.errors import WorkerError
from sirius_dspy.executors.child import Child

IN_A_ROW = 10
"""Items that killed their workers, with no other one between them, after which it is not the items."""


class Losses:
    """Counts the workers that died for reasons other than one item. Thread-safe.

    A death is judged when all items that were under way are done: if one of them killed a worker while it was alone,
    it explains the death, which then does not count.

    Args:
        allowed: How many unexplained deaths.
    """

    def __init__(self, allowed: int) -> None:
        self._left = allowed
        self._in_a_row = 0
        self._suspects: dict[Child, int] = {}
        self._lock = threading.Lock()  # protects all of it

    def note(self, child: Child) -> None:
        """Note a death. One with no item under way counts at once."""
        with self._lock:
            if not child.lost_items:
                self._left -= 1

    def clear(self, lost: Iterable[Child]) -> None:
        """Note that an item was done which had been under way in these."""
        with self._lock:
            self._in_a_row = 0
            for child in lost:
                self._suspects[child] = self._suspects.get(child, len(child.lost_items)) - 1
                if self._suspects[child] == 0:
                    self._left -= 1

    def explain(self, killed: Iterable[Child]) -> None:
        """Note that an item killed these."""
        with self._lock:
            self._in_a_row += 1
            for child in killed:
                self._suspects[child] = -1  # no count comes down to zero any more

    def check(self) -> None:
        """Raise an error if too many have died.

        Raises:
            WorkerError: More than allowed died without an item that explains it, or each item kills its worker.
        """
        if self._left < 0 or self._in_a_row >= IN_A_ROW:
            raise WorkerError(
                "Worker processes died again and again, e.g. for lack of memory; their last words are above. All "
                "finished runs are kept. Lower `processes` or `num_threads`, or raise `max_restarts`, then run "
                "the same `compile` again to resume."
            )
