"""What a method has used, on disk: an interruption neither makes it cheaper nor gives it a second budget."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import dspy
from dspy.utils.callback import BaseCallback

from sirius_dspy.baselines import Limits, Meter
from sirius_dspy.files import write_text
from sirius_dspy.optimizer.record_files import read_result_file
from sirius_dspy.optimizer.spent import Spent

_EVERY_S = 1.0
"""Seconds between two writes: what a `kill -9` leaves uncounted."""


class Ledger(BaseCallback):
    """Counts of a stage, over all its lives.

    Args:
        path: The file.
        carried: What earlier lives used.
        meter: Counts this life.
    """

    def __init__(self, path: Path, carried: Spent, meter: Meter) -> None:
        self.path = path
        self.carried = carried
        self.meter = meter
        self._lock = threading.Lock()  # protects the time of the last write: LMs are called from many threads
        self._written = time.monotonic()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def spent(self) -> Spent:
        """All lives together."""
        return self.carried + self.meter.spent

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before each LM call."""
        with self._lock:
            due = time.monotonic() - self._written > _EVERY_S
            if due:
                self._written = time.monotonic()
        if due:
            self.write()

    def write(self) -> None:
        """Write the counts as they are."""
        write_text(self.path, json.dumps(self.spent.to_dict()) + "\n")


@contextmanager
def count_usage(path: Path, limits: Limits | None = None, *, resumes: bool) -> Iterator[Ledger]:
    """Count what happens inside, and keep the count on disk.

    Args:
        path: The file of the count.
        limits: Of all lives together.
        resumes: Whether the work goes on from that of earlier lives. If it starts anew, so does the count.

    Raises:
        BudgetExceededError: See `sirius_dspy.baselines.Meter`.
    """
    carried = read_spent(path) if resumes else Spent()
    meter = Meter(_rest(limits or Limits(), carried))
    ledger = Ledger(path, carried, meter)
    try:
        with meter, dspy.context(callbacks=[*dspy.settings.callbacks, ledger]):
            yield ledger
    finally:
        ledger.write()


def read_spent(path: Path) -> Spent:
    """The count that a `Ledger` wrote; nothing if there is none.

    Raises:
        RunDamagedError: It is damaged, so that nobody knows what is left of the budget.
    """
    advice = "Restore it from a backup, or delete it if what was used before need not count."
    return read_result_file(path, advice, Spent) or Spent()


def _rest(limits: Limits, carried: Spent) -> Limits:
    """What is left of the limits."""
    return Limits(
        calls=None if limits.calls is None else max(0, limits.calls - carried.calls),
        tokens=None if limits.tokens is None else max(0, limits.tokens - carried.tokens),
        seconds=None if limits.seconds is None else max(0.0, limits.seconds - carried.seconds),
    )
