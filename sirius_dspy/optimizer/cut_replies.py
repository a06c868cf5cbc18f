"""Replies that were cut off at their token limit: one line per stage instead of DSPy's warning for each.

A program that is collected with many samples may have hundreds. What was cut is no training row.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sirius_dspy.dspy_internals import TRUNCATION_LOGGER, TRUNCATION_WARNING
from sirius_dspy.tracking.events import CompileEnded, Repaired, RolledOut, StageStarted, Tracker
from sirius_dspy.trajectory import Trajectory

logger = logging.getLogger(__name__)

_counts_itself: contextvars.ContextVar[bool] = contextvars.ContextVar("sirius_dspy_counts_cut_replies", default=False)
"""Whether the caller is a compile, or a thread of one; other users of DSPy in this process keep its warnings."""


class CutReplies(Tracker):
    """Logs a line at the end of each stage in which replies were cut off."""

    def __init__(self) -> None:
        self._stage = ""
        self._cut = self._all = 0

    def on_stage_started(self, event: StageStarted) -> None:
        """Report the stage before, and begin this one."""
        self._report()
        self._stage = f"iteration {event.iteration}, {event.stage}" if event.iteration else f"student, {event.stage}"

    def on_rolled_out(self, event: RolledOut) -> None:
        """Count the replies of a run."""
        self._count([event.trajectory])

    def on_repaired(self, event: Repaired) -> None:
        """Count the replies of the replays; those to a critic are not kept."""
        self._count(event.trajectories)

    def on_compile_ended(self, event: CompileEnded) -> None:
        """Report the last stage."""
        self._report()

    def _count(self, trajectories: Iterable[Trajectory]) -> None:
        steps = [step for trajectory in trajectories for step in trajectory.steps if step.source == "live"]
        self._all += len(steps)
        self._cut += sum(step.was_cut for step in steps)

    def _report(self) -> None:
        if self._cut:
            logger.warning(
                "%s: %d of %d replies were cut off at the LM's `max_tokens`; they become no training rows.",
                self._stage[:1].upper() + self._stage[1:],
                self._cut,
                self._all,
            )
        self._cut = self._all = 0


@contextmanager
def dspy_warnings_dropped() -> Iterator[None]:
    """The context in which DSPy does not warn of each reply that was cut off."""
    dspy_logger = logging.getLogger(TRUNCATION_LOGGER)
    token = _counts_itself.set(True)
    dspy_logger.addFilter(_is_wanted)  # the same function twice is one filter, so that compiles may overlap
    try:
        yield
    finally:
        _counts_itself.reset(token)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not (_counts_itself.get() and TRUNCATION_WARNING in record.getMessage())
