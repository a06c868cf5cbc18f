"""Replies that were cut off at their token limit: one line per stage instead of DSPy's warning for each.

A program that is collected with many samples may have hundreds. What was cut is no training row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sirius_dspy.tracking.events import CompileEnded, Credited, Repaired, RolledOut, StageStarted, Tracker
from sirius_dspy.trajectory import Trajectory

logger = logging.getLogger(__name__)


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

    def on_credited(self, event: Credited) -> None:
        """Count the live replies of a rerun."""
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
