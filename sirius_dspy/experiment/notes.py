"""Prints a line to stderr for each cell."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from sirius_dspy.experiment.events import CellEnded, CellStarted, ExperimentStarted
from sirius_dspy.tracking.events import Tracker


class Notes(Tracker):
    """Prints which cell is running, and how the last one ended.

    Args:
        console: Console to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._total = self._number = 0
        self._began = 0.0

    def on_experiment_started(self, event: ExperimentStarted) -> None:
        """Print the number of cells."""
        self._total, self._number = len(event.cells), len(event.finished)
        done = f", {self._number} of them done" if self._number else ""
        self._say(f"{event.name} on {event.lm}: {self._total} cells{done}, in {event.folder}")

    def on_cell_started(self, event: CellStarted) -> None:
        """Print the name of the cell."""
        self._number += 1
        self._began = time.monotonic()
        place = f"[{self._number} of {self._total}] " if self._number <= self._total else ""  # games are not counted
        self._say(f"{place}{event.method}, seed {event.seed}")

    def on_cell_ended(self, event: CellEnded) -> None:
        """Print the result of the cell."""
        cell = event.cell
        if not cell.outcomes:
            self._say(f"  failed: {cell.error}")
            return
        budget = ", stopped by its budget" if cell.status == "budget" else ""
        calls = cell.trained.calls + cell.tested.calls
        score = f"{cell.accuracy:.1%} of {len(cell.outcomes)}, {cell.num_unparsed} unparsed"
        self._say(f"  {score}, {calls} LM calls, {time.monotonic() - self._began:.0f} s{budget}")

    def _say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)
