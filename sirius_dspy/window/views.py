"""What a window shows, as plain values: the page gets them as JSON, the terminal as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["running", "pausing", "paused", "finished", "failed", "interrupted", "gone", "unknown"]
"""As in `live.json`; `gone` if its process ended without a word, `unknown` if there is no such file."""

StageStatus = Literal["done", "now", "open"]

AT_WORK = ("running", "pausing", "paused")


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage of the plan."""

    iteration: int
    stage: str
    status: StageStatus
    done: int = 0
    total: int = 0
    """Units of work, of the stage that is going on."""
    seconds: float | None = None
    """Wall time, of a stage that is done."""


@dataclass(frozen=True, slots=True)
class ScoreView:
    """The validation score after an iteration."""

    iteration: int
    score: float
    low: float | None
    high: float | None
    """Bounds of the 95 % interval; `None` where the score is not a share."""
    num_val: int
    is_best: bool


@dataclass(frozen=True, slots=True)
class RunsView:
    """The runs of one origin in one iteration."""

    iteration: int
    origin: str
    runs: int
    succeeded: int


@dataclass(frozen=True, slots=True)
class RepairsView:
    """The attempts at repair of one rung in one iteration."""

    iteration: int
    rung: str
    runs: int
    """Failed runs that were tried."""
    attempts: int
    """All of them; the numbers below add up to it."""
    leaked: int
    diverged: int
    unparsed: int
    unchanged: int
    failed: int
    unconfirmed: int
    repaired: int


@dataclass(frozen=True, slots=True)
class AgentView:
    """The training set of an agent in one iteration, and what came of it."""

    iteration: int
    agent: str
    rows: int
    losses: tuple[float | None, float | None] | None
    """The first and the last of the job; `None` if there was none."""
    is_kept: bool | None
    """`None` before the gate has decided."""


@dataclass(frozen=True, slots=True)
class SpendView:
    """What was spent of one thing."""

    name: str
    spent: float | None
    """`None` if it is not known."""
    limit: float | None


@dataclass(frozen=True, slots=True)
class StepView:
    """One call of a predictor."""

    predictor: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    failure: str
    is_edited: bool
    """Whether a repair replaced the outputs."""


@dataclass(frozen=True, slots=True)
class TrajectoryView:
    """One run of the program."""

    id: str
    origin: str
    iteration: int
    reward: float
    succeeded: bool
    prediction: str
    failure: str
    seconds: float
    steps: tuple[StepView, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a window shows at one moment."""

    run_dir: str
    program: str
    state: State
    reason: str
    wish: str | None
    """`pause` or `stop`, where that is asked and not done yet."""
    silent_s: float | None
    """Seconds since the compile last gave a sign of life; `None` where that does not matter."""
    note: str
    in_flight: int
    in_percent: bool
    """Whether scores are shares of solved examples."""
    stages: tuple[StageView, ...]
    scores: tuple[ScoreView, ...]
    runs: tuple[RunsView, ...]
    repairs: tuple[RepairsView, ...]
    agents: tuple[AgentView, ...]
    spending: tuple[SpendView, ...]
    trajectories: tuple[TrajectoryView, ...]
    """The newest first."""
    problems: tuple[str, ...]
    """What could not be read this time."""

    @property
    def is_at_work(self) -> bool:
        """Whether the compile can be asked for something."""
        return self.state in AT_WORK
