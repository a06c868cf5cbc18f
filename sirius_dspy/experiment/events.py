"""Events that an experiment sends to trackers: one frozen class per hook of `sirius_dspy.tracking.events.Tracker`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.results import Results


@dataclass(frozen=True)
class ExperimentStarted:
    """All checks have passed, before the first LM call."""

    name: str
    id: str
    """Id of the experiment. It depends on recipe, data and LMs, but not on methods and seeds."""
    folder: Path
    lm: str
    cells: tuple[tuple[str, int], ...]
    """Method and seed of each cell, in the order in which they run."""
    finished: tuple[Cell, ...]
    """The cells that an earlier call has finished."""
    settings: Mapping[str, Any]
    """The recipe as plain values."""


@dataclass(frozen=True)
class CellStarted:
    """A cell starts, or a game between methods."""

    method: str
    seed: int


@dataclass(frozen=True)
class CellEnded:
    """A cell has been saved."""

    cell: Cell


@dataclass(frozen=True)
class ExperimentEnded:
    """All cells have been saved, or the experiment stopped with an error."""

    status: str
    """`finished`, `failed` or `interrupted`."""
    results: Results | None = None
    """The results; `None` if it stopped."""
    files: tuple[Path, ...] = ()
    """The files with the results."""
    error: str = ""
