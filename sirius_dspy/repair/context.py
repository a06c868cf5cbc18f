"""What an augmenter gets besides the failed run: the program, how to run it on from an edit, and what may be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import dspy

from sirius_dspy.repair.solved import SolvedRuns
from sirius_dspy.running.examples import copy_example
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.replay import replay
from sirius_dspy.running.rerun import rerun
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.trajectory import Attempt, Edit, IsOwn, Origin, Step, Trajectory, every_step

Tried = tuple[Attempt, tuple[Trajectory, ...]]
"""An attempt with the runs that it made: that of its edit first, then those that were to confirm it."""

CONFIRMING = 1.0
"""Temperature at which a repair is asked again if samples have a temperature of 0; the default of `Collect`."""


@dataclass(frozen=True)
class RepairContext:
    """What every repair of one iteration has in common."""

    program: dspy.Module
    rollouts: Rollouts
    """How runs are sampled and scored; replays are, too."""
    threshold: float
    """A run succeeded if it ended, with a reward of at least this."""
    editable: frozenset[str]
    """Predictors that may be edited: those of agents that are trained."""
    is_own: IsOwn = every_step
    """Whether an agent's own LM answered a step; editing what another LM answered teaches nobody."""
    solved: SolvedRuns = field(default_factory=SolvedRuns)
    """Successful runs so far, demonstrations for those that failed."""
    last_rungs: Mapping[str, str] = field(default_factory=dict)
    """Example key to the name of the augmenter that repaired a run of it last; see `LadderAugmenter`."""
    gains: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Id of a failed run to what other answers gained at its steps, by position; see `Credit`."""
    can_score: bool = True
    """Whether LMs may be asked how likely a reply is."""
    confirmations: int = 0
    """Fresh samples of what follows an edit, of which one has to succeed, too; see `LadderAugmenter`."""

    def order(self, failed: Trajectory) -> list[int]:
        """Positions of the steps in the order in which to try them.

        Steps at which other answers gain most come first, others in call order.
        """
        gains = self.gains.get(failed.id, {})
        return sorted(range(len(failed.steps)), key=lambda position: -gains.get(position, 0.0))

    def may_edit(self, failed: Trajectory, step: Step) -> bool:
        """Whether a new answer at this step could become a training row."""
        return step.predictor in self.editable and self.is_own(failed, step)

    def key(self, failed: Trajectory, example: dspy.Example, *parts: object) -> str:
        """A name for a sample of this repair, for `Sampling.key`: it differs by run, seed, example and `parts`."""
        return "/".join([self.rollouts.sampling(Task(example, failed.sample)).key, *map(str, parts)])

    def replay(self, failed: Trajectory, example: dspy.Example, edit: Edit, key: str) -> Trajectory:
        """Run the program on from an edit, and score it.

        Args:
            failed: The run to repair.
            example: The one it was made from.
            edit: The step to replace, and what is answered in its place.
            key: Names the sample within the repair: another key gives other answers after the edit.

        Returns:
            The run to store with the repair. Its lineage says which run it repairs, and at which step.

        Raises:
            ReplayDivergedError: The run did not repeat the recording up to the edit.
            UnfinishedError: An LM or the network failed.
            RolloutError: An LM refused for lack of credentials, credit or configuration.
        """
        sampling = Sampling(self.key(failed, example, key), self.rollouts.first_kwargs, self.rollouts.demos)
        recording = replay(self.program, copy_example(example).inputs(), failed, edit, sampling)
        return self._score(failed, example, recording)

    def rerun(
        self,
        failed: Trajectory,
        example: dspy.Example,
        key: str,
        demos: Mapping[str, Sequence[dspy.Example]] | None = None,
    ) -> Trajectory:
        """Run the whole program again, with the LM arguments of samples after the first, and score it.

        Args:
            failed: The run to repair.
            example: The one it was made from.
            key: Names the sample within the repair: another key gives other answers.
            demos: Predictor name to demonstrations shown in this run; by default those of collecting.

        Returns:
            The run to store with the repair. Its lineage says which run it repairs; its steps count as edited, from the
            first one on that may be.

        Raises:
            UnfinishedError: An LM or the network failed.
            RolloutError: An LM refused for lack of credentials, credit or configuration.
        """
        shown = self.rollouts.demos if demos is None else demos
        sampling = Sampling(self.key(failed, example, key), self.rollouts.lm_kwargs, shown)
        recording = record(self.program, copy_example(example).inputs(), sampling)
        editable = (number for number, step in enumerate(recording.steps) if step.predictor in self.editable)
        return self._score(failed, example, replace(recording, edited=next(editable, 0)))

    def run_on(self, failed: Trajectory, example: dspy.Example, run: Trajectory, key: str) -> Trajectory:
        """Run the program again from the edited step of a repaired run on, without help, and score it.

        The LM arguments are those of samples after the first, but their temperature is not 0, at which what follows the
        edit would always be the same.

        Args:
            failed: The run that was repaired.
            example: The one it was made from.
            run: The repaired run.
            key: Names the sample within the repair: another key gives other answers after the edit.

        Returns:
            The run to store with the repair, with the origin `confirmation`.

        Raises:
            ReplayDivergedError: The run did not repeat the recording up to the edit.
            UnfinishedError: An LM or the network failed.
            RolloutError: An LM refused for lack of credentials, credit or configuration.
        """
        kwargs = dict(self.rollouts.lm_kwargs)
        if kwargs.get("temperature") == 0:
            kwargs["temperature"] = CONFIRMING
        sampling = Sampling(self.key(failed, example, key), kwargs, self.rollouts.demos)
        recording = rerun(self.program, copy_example(example).inputs(), run, run.edited or 0, sampling)
        return self._score(failed, example, recording, origin="confirmation")

    def _score(
        self, failed: Trajectory, example: dspy.Example, recording: Recording, origin: Origin = "repair"
    ) -> Trajectory:
        lineage = replace(failed.repair_lineage, origin=origin)
        return self.rollouts.score(recording, example, self.program, lineage).trajectory
