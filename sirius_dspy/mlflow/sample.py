"""Which runs of an iteration become traces: few, failed ones first, and the same ones whatever the threads did.

Choice is by content hash, so it is as good as random, repeats, and keeps at most a handful of runs in memory.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from sirius_dspy.tracking.events import Repaired, RolledOut
from sirius_dspy.trajectory import Repair, Trajectory


@dataclass(frozen=True)
class RepairStory:
    """A failed run, what was tried at it, and the runs with other outputs put in."""

    failed: Trajectory
    repair: Repair
    replays: Sequence[Trajectory]


class Sample:
    """Keeps what an iteration's traces are made of.

    Args:
        limit: Traces per iteration at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._failed: list[Trajectory] = []
        self._succeeded: list[Trajectory] = []
        self._repairs: list[RepairStory] = []

    def add_rollout(self, event: RolledOut) -> None:
        """See a rollout; runs on the valset are left out."""
        if event.trajectory.origin != "rollout":
            return
        kept = self._succeeded if event.succeeded else self._failed
        insort(kept, event.trajectory, key=lambda trajectory: trajectory.id)
        del kept[self.limit :]

    def add_repair(self, event: Repaired) -> None:
        """See a repair; one that succeeded shows more."""
        if event.failed is None:
            return
        story = RepairStory(event.failed, event.repair, event.trajectories)
        insort(self._repairs, story, key=lambda story: (not story.repair.repaired, story.repair.parent))
        del self._repairs[self.limit :]

    def take(self) -> list[RepairStory | Trajectory]:
        """Repairs and rollouts to show, which are forgotten here.

        Up to half are repairs, then come other failed runs; a good run closes the list, to compare with.
        """
        stories = self._repairs[: (self.limit + 1) // 2]
        repaired = {story.failed.id for story in stories}
        failed = [trajectory for trajectory in self._failed if trajectory.id not in repaired]
        room = self.limit - len(stories)
        num_good = min(len(self._succeeded), room, max(int(room > 1), room - len(failed)))
        rollouts = failed[: room - num_good] + self._succeeded[:num_good]
        self._failed, self._succeeded, self._repairs = [], [], []
        return [*stories, *rollouts]
