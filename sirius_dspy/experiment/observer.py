"""Who is told how an experiment goes; none of them can stop it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_dspy.experiment.cell import Cell
from sirius_dspy.redact import redact_error

if TYPE_CHECKING:
    from sirius_dspy.experiment.results import Results

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """All checks have passed, and no LM was called yet."""

    name: str
    id: str
    """Equal for equal recipes, data and LMs, whatever the methods and seeds."""
    folder: Path
    lm: str
    cells: tuple[tuple[str, int], ...]
    """Method and seed of each cell, in the order of the work."""
    known: tuple[Cell, ...]
    """Those that earlier lives have finished."""
    settings: dict[str, Any]
    """Of the recipe, as plain values."""


class Observer:
    """Base of all observers: override the hooks you want."""

    def on_started(self, event: Started) -> None:
        """The work begins."""

    def on_cell_started(self, method: str, seed: int) -> None:
        """A cell begins."""

    def on_cell_ended(self, cell: Cell) -> None:
        """A cell is on disk."""

    def on_ended(self, results: Results, files: Sequence[Path]) -> None:
        """All cells are done, and the results are on disk."""

    def on_stopped(self, error: BaseException) -> None:
        """The work ended before its end."""


class Observers(Observer):
    """Several as one; one that raises is logged and told nothing more of that experiment, the others go on."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = list(observers)
        self._failed: set[int] = set()

    def _tell(self, hook: str, *arguments: Any) -> None:
        for observer in tuple(self.observers):
            if id(observer) in self._failed:
                continue
            try:
                getattr(observer, hook)(*arguments)
            except Exception as error:
                self._failed.add(id(observer))
                logger.error(
                    "%s failed in %s and is left out from now on.",
                    type(observer).__name__,
                    hook,
                    exc_info=redact_error(error),
                )

    def on_started(self, event: Started) -> None:
        """See `Observer`."""
        self._failed = set()
        self._tell("on_started", event)

    def on_cell_started(self, method: str, seed: int) -> None:
        """See `Observer`."""
        self._tell("on_cell_started", method, seed)

    def on_cell_ended(self, cell: Cell) -> None:
        """See `Observer`."""
        self._tell("on_cell_ended", cell)

    def on_ended(self, results: Results, files: Sequence[Path]) -> None:
        """See `Observer`."""
        self._tell("on_ended", results, files)

    def on_stopped(self, error: BaseException) -> None:
        """See `Observer`."""
        self._tell("on_stopped", error)
