"""Keeps the usage of a method on disk, so that the budget holds across interruptions."""

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
"""Seconds between two writes. Usage since the last write is lost if the process is killed."""


class Ledger(BaseCallback):
    """Counts the usage of a stage over all its attempts.

    Args:
        path: File of the count.
        carried: Usage of earlier attempts.
        meter: Meter of this attempt.
    """

    def __init__(self, path: Path, carried: Spent, meter: Meter) -> None:
        self.path = path
        self.carried = carried
        self.meter = meter
        self._lock = threading.Lock()  # protects the time of the last write, since LMs are called from many threads
        self._written = time.monotonic()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def spent(self) -> Spent:
        """The usage of all attempts."""
        return self.carried + self.meter.spent

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Write the counts from time to time; DSPy calls this before each LM call."""
        with self._lock:
            due = time.monotonic() - self._written > _EVERY_S
            if due:
                self._written = time.monotonic()
        if due:
            self.write()

    def write(self) -> None:
        """Write the counts."""
        write_text(self.path, json.dumps(self.spent.to_dict()) + "\n")


@contextmanager
def count_usage(path: Path, limits: Limits | None = None, *, resumes: bool) -> Iterator[Ledger]:
    """Count the usage of the block, and keep the count on disk.

    Args:
        path: File of the count.
        limits: Limits of all attempts together.
        resumes: Whether the work resumes earlier attempts. If not, the count starts at zero.

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
    """Read the count that a `Ledger` wrote; zero if there is none.

    Raises:
        RunDamagedError: The file is damaged, so the rest of the budget is unknown.
    """
    advice = "Restore it from a backup, or delete it if the earlier usage need not count."
    return read_result_file(path, advice, Spent) or Spent()


def _rest(limits: Limits, carried: Spent) -> Limits:
    """Return the remaining limits."""
    return Limits(
        calls=None if limits.calls is None else max(0, limits.calls - carried.calls),
        tokens=None if limits.tokens is None else max(0, limits.tokens - carried.tokens),
        seconds=None if limits.seconds is None else max(0.0, limits.seconds - carried.seconds),
    )
