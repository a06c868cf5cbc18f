"""What compiles and experiments tell the outside: one frozen event per hook, on a base class of no-ops.

All hooks are called from the thread that runs `compile`, in order, except `on_training_progress`, which comes from the
thread of the fine-tuning job. A tracker that raises is logged once and then left alone for the rest of that compile:
tracking never stops a compile. The events of experiments are in `sirius_dspy.experiment.events`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from sirius_dspy.redact import redact_error
from sirius_dspy.trajectory import Repair, Trajectory

if TYPE_CHECKING:  # the types of later layers, which make these events
    from sirius_dspy.experiment.events import CellEnded, CellStarted, ExperimentEnded, ExperimentStarted
    from sirius_dspy.optimizer.results import CompileResult, IterationResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileStarted:
    """A compile passed its checks and is about to make its first LM call."""

    run: str
    """Id of the compile; equal settings, data and program give an equal id."""
    program: str
    """Class of the program."""
    run_dir: Path
    library_url: str
    """Without a password."""
    params: Mapping[str, Any]
    """Scalar settings of the optimizer."""
    agents: Mapping[str, Sequence[str]]
    """Agent name to its predictors."""
    lms: Mapping[str, str]
    """Agent name to the id of the LM it starts from."""
    adapter: str
    num_train: int
    num_val: int
    trainset: Sequence[Mapping[str, Any]]
    valset: Sequence[Mapping[str, Any]]
    resumed: bool
    """Whether the run directory already held finished work."""


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; for progress displays."""

    iteration: int
    stage: str
    """`evaluate`, `collect`, `credit`, `repair`, `curate` or `train`."""
    total: int
    """Units of work: rollouts, failed runs, agents."""


@dataclass(frozen=True)
class RolledOut:
    """One rollout is in the library."""

    iteration: int
    trajectory: Trajectory
    succeeded: bool


@dataclass(frozen=True)
class Credited:
    """One rerun from a step on is in the library; it shows what the step was worth."""

    iteration: int
    trajectory: Trajectory
    """The rerun; `edited` is the step's position in it."""
    run: Trajectory
    """The run that it started from."""
    succeeded: bool


@dataclass(frozen=True)
class Repaired:
    """One failed run went through repair, and all attempts are in the library."""

    iteration: int
    repair: Repair
    trajectories: Sequence[Trajectory]
    """The replayed runs, successful or not."""
    failed: Trajectory | None = None
    """The run that was to be repaired."""


@dataclass(frozen=True)
class Curated:
    """An agent's training set is on disk."""

    iteration: int
    agent: str
    num_rows: int
    dropped: Mapping[str, int]
    """Reason to number of steps left out."""
    path: Path
    """OpenAI chat JSONL."""


@dataclass(frozen=True)
class TrainingProgress:
    """A fine-tuning job reports; comes from the job's own thread."""

    iteration: int
    agent: str
    step: int
    total: int
    loss: float


@dataclass(frozen=True)
class Trained:
    """An agent has new weights."""

    iteration: int
    agent: str
    base: str
    """Id of the LM that training started from."""
    lm: str
    """Id of the new LM."""
    num_rows: int
    losses: Sequence[float]
    seconds: float
    weights: Path | None
    """Folder with the weights, if they are on this machine."""


@dataclass(frozen=True)
class Evaluated:
    """The program was scored on the valset."""

    iteration: int
    """0 is the student as given."""
    score: float
    """Mean reward."""
    num_examples: int
    label: str
    """`program`, or the agents whose new weights were put in for the gate."""


@dataclass(frozen=True)
class IterationEnded:
    """All of an iteration is on disk."""

    result: IterationResult

    @property
    def iteration(self) -> int:
        """Number of the iteration, from 1."""
        return self.result.iteration

    @property
    def metrics(self) -> Mapping[str, float]:
        """Headline numbers, e.g. `val/score`, `collect/success_rate`, `repair/repaired`, `library/size`."""
        return self.result.metrics

    @property
    def lms(self) -> Mapping[str, str]:
        """Agent name to the id of its LM after promotion."""
        return self.result.lms


@dataclass(frozen=True)
class CompileEnded:
    """The compile returned, or stopped with an error."""

    status: str
    """`finished`, `failed` or `interrupted`; for how a finished one ended, see `results.ended`."""
    results: CompileResult
    """`detailed_results` of the compiled program; what there is, if the compile stopped."""
    error: str = ""

    @property
    def best_iteration(self) -> int | None:
        """Number of the best iteration; `None` if nothing was scored."""
        return self.results.best_iteration


class Tracker:
    """Base of all trackers: override the hooks you want.

    Examples:
        >>> class Printer(Tracker):
        ...     def on_evaluated(self, event):
        ...         print(f"iteration {event.iteration}: {event.score:.2f}")
        >>> Printer().on_evaluated(Evaluated(iteration=1, score=0.5, num_examples=10, label="program"))
        iteration 1: 0.50
    """

    def on_compile_started(self, event: CompileStarted) -> None:
        """The checks passed; nothing has been paid for yet."""

    def on_stage_started(self, event: StageStarted) -> None:
        """A stage begins."""

    def on_rolled_out(self, event: RolledOut) -> None:
        """One rollout is in the library."""

    def on_credited(self, event: Credited) -> None:
        """One rerun from a step on is in the library."""

    def on_repaired(self, event: Repaired) -> None:
        """One failed run went through repair."""

    def on_curated(self, event: Curated) -> None:
        """An agent's training set is on disk."""

    def on_training_progress(self, event: TrainingProgress) -> None:
        """A fine-tuning job reports, from its own thread."""

    def on_trained(self, event: Trained) -> None:
        """An agent has new weights."""

    def on_evaluated(self, event: Evaluated) -> None:
        """The program was scored on the valset."""

    def on_iteration_ended(self, event: IterationEnded) -> None:
        """All of an iteration is on disk."""

    def on_compile_ended(self, event: CompileEnded) -> None:
        """The compile returned or stopped."""

    def on_experiment_started(self, event: ExperimentStarted) -> None:
        """The checks of an experiment passed; its compiles, if any, follow inside its cells."""

    def on_cell_started(self, event: CellStarted) -> None:
        """A cell of an experiment begins."""

    def on_cell_ended(self, event: CellEnded) -> None:
        """A cell of an experiment is on disk."""

    def on_experiment_ended(self, event: ExperimentEnded) -> None:
        """The experiment returned or stopped."""


class Trackers(Tracker):
    """Several trackers as one; one that raises is logged and left out of the rest, the others go on.

    The rest is that of the compile, or of the experiment that the compile is a part of.

    Args:
        trackers: Called in this order.
        strict: Let a tracker's error through. For tests of trackers.
    """

    def __init__(self, trackers: Sequence[Tracker], *, strict: bool = False) -> None:
        self.trackers = list(trackers)
        self.strict = strict
        self._is_in_experiment = False
        self._failed: set[int] = set()
        """Identities of trackers that are left out of this compile or experiment; the list stays the caller's."""

    def _notify(self, hook: str, event: Any) -> None:
        for tracker in tuple(self.trackers):
            if id(tracker) in self._failed:
                continue
            try:
                getattr(tracker, hook)(event)
            except Exception as error:
                if self.strict:
                    raise
                self._failed.add(id(tracker))
                logger.error(
                    "Tracker %s failed in %s and is left out of the rest.",
                    type(tracker).__name__,
                    hook,
                    exc_info=redact_error(error),
                )

    @override
    def on_compile_started(self, event: CompileStarted) -> None:
        if not self._is_in_experiment:
            self._failed = set()
        self._notify("on_compile_started", event)

    @override
    def on_stage_started(self, event: StageStarted) -> None:
        self._notify("on_stage_started", event)

    @override
    def on_rolled_out(self, event: RolledOut) -> None:
        self._notify("on_rolled_out", event)

    @override
    def on_credited(self, event: Credited) -> None:
        self._notify("on_credited", event)

    @override
    def on_repaired(self, event: Repaired) -> None:
        self._notify("on_repaired", event)

    @override
    def on_curated(self, event: Curated) -> None:
        self._notify("on_curated", event)

    @override
    def on_training_progress(self, event: TrainingProgress) -> None:
        self._notify("on_training_progress", event)

    @override
    def on_trained(self, event: Trained) -> None:
        self._notify("on_trained", event)

    @override
    def on_evaluated(self, event: Evaluated) -> None:
        self._notify("on_evaluated", event)

    @override
    def on_iteration_ended(self, event: IterationEnded) -> None:
        self._notify("on_iteration_ended", event)

    @override
    def on_compile_ended(self, event: CompileEnded) -> None:
        self._notify("on_compile_ended", event)

    @override
    def on_experiment_started(self, event: ExperimentStarted) -> None:
        self._failed, self._is_in_experiment = set(), True
        self._notify("on_experiment_started", event)

    @override
    def on_cell_started(self, event: CellStarted) -> None:
        self._notify("on_cell_started", event)

    @override
    def on_cell_ended(self, event: CellEnded) -> None:
        self._notify("on_cell_ended", event)

    @override
    def on_experiment_ended(self, event: ExperimentEnded) -> None:
        self._notify("on_experiment_ended", event)
        self._is_in_experiment = False
