"""What an experiment tells trackers: one frozen event per hook of `sirius_dspy.tracking.events.Tracker`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.results import Results


@dataclass(frozen=True)
class ExperimentStarted:
    """All checks have passed, and no LM was called yet."""

    name: str
    id: str
    """Equal for equal recipes, data and LMs, whatever the methods and seeds."""
    folder: Path
    lm: str
    cells: tuple[tuple[str, int], ...]
    """Method and seed of each cell, in the order of the work."""
    finished: tuple[Cell, ...]
    """The cells that an earlier call has finished."""
    settings: Mapping[str, Any]
    """Of the recipe, as plain values."""


@dataclass(frozen=True)
class CellStarted:
    """A cell begins, or a game in which methods meet."""

    method: str
    seed: int


@dataclass(frozen=True)
class CellEnded:
    """A cell is on disk."""

    cell: Cell


@dataclass(frozen=True)
class ExperimentEnded:
    """All cells are on disk, or the experiment stopped with an error."""

    status: str
    """`finished`, `failed` or `interrupted`."""
    results: Results | None = None
    """`None` if it stopped."""
    files: tuple[Path, ...] = ()
    """The files that the results were written to."""
    error: str = ""
