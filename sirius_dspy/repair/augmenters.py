"""What repairs failed runs: the protocol of augmenters."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import dspy

from sirius_dspy.repair.context import RepairContext
from sirius_dspy.trajectory import Repair, Trajectory


class Repaired(NamedTuple):
    """A repair, and the runs it made on the way."""

    repair: Repair
    trajectories: tuple[Trajectory, ...]


class Augmenter(Protocol):
    """Makes new good runs from failed ones.

    What an LM raises may come out of `repair`: a compile waits, tries again, and repairs the run later if the LM does
    not recover. Nothing of a repair is stored before it ends.
    """

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> Repaired:
        """Try to repair one failed run. Called from several threads at once."""
