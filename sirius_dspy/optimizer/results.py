"""What a compile did: frozen values that are also mappings, checked when they are read.

`compiled.detailed_results` is a `CompileResult`. DSPy and MLflow want mappings there, so each of these is one as well:
`result["best_score"]` is `result.best_score`, and everything below is then plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator

from sirius_dspy.errors import ResultError
from sirius_dspy.optimizer.records import COUNT_LIMIT, Count, Finite
from sirius_dspy.optimizer.result_base import STRICT, Result, require_mapping
from sirius_dspy.running.standing import Standing, floor_of
from sirius_dspy.stats import Interval, wilson_interval

Ended = Literal["finished", "budget", "nothing learned", "unfinished"]
"""After all iterations, at the budget, early because an iteration gave no training row, or not yet."""


@dataclass(frozen=True)
class UsageResult(Result):
    """What LM calls took."""

    __pydantic_config__ = STRICT

    calls: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    usd: float | None = None
    """US dollars; `None` if a price is unknown."""


@dataclass(frozen=True)
class AgentResult(Result):
    """What an iteration did with one agent."""

    __pydantic_config__ = STRICT

    rows: Count = 0
    """Training rows."""
    dropped: Mapping[str, Count] = field(default_factory=dict)
    """Reason to the number of steps that became no row."""
    losses: tuple[float | None, ...] = ()
    """Nats per completion token, in the order of training steps; `None` for a loss that is no number."""
    lm: str | None = None
    """Id of the LM that came out of training; `None` if the agent was not trained."""
    base: str | None = None
    """Id of the LM that training started from."""
    seconds: float = 0.0
    """Of training, from the end of the agent before it. Of agents that are trained in one pass, the first has all."""
    usage: UsageResult = UsageResult()
    """The agent's own calls in the runs and repairs of the iteration."""


@dataclass(frozen=True)
class RepairResult(Result):
    """How repair went."""

    __pydantic_config__ = STRICT

    tried: Count = 0
    """Failed runs."""
    repaired: Count = 0
    verdicts: Mapping[str, Count] = field(default_factory=dict)
    """Outcome to the number of attempts, of which a run has several."""
    by_agent: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """Agent name to `tried` and `repaired` attempts."""
    by_rung: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """Rung of a `LadderAugmenter` to `tried` and `repaired` runs."""
    reliance: float | None = None
    """How much likelier the repaired texts are with the help than without it: the mean, in nats per token."""
    calls: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


@dataclass(frozen=True)
class CriticResult(Result):
    """How the critic of the augmenter was fine-tuned; see `CriticTraining`."""

    __pydantic_config__ = STRICT

    rows: Count
    """Training rows: advice that led to a repair in earlier iterations."""
    lm: str
    """Id of the LM that came out of training."""
    base: str
    """Id of the LM that training started from."""
    previous: str
    """Id of the critic before."""
    tried: Count = 0
    """Failed runs that both advised on, whose examples gave no training row."""
    repaired_before: Count = 0
    """How many of them the critic before repaired."""
    repaired: Count = 0
    """How many of them the new critic repaired."""
    kept: bool = False
    """Whether the new critic was kept."""
    seconds: float = 0.0
    """Wall time of the fine-tuning job."""

    @property
    def rate_before(self) -> float | None:
        """Share of the runs that the critic before repaired; `None` if there were none."""
        return self.repaired_before / self.tried if self.tried else None

    @property
    def rate(self) -> float | None:
        """Share of the runs that the new critic repaired; `None` if there were none."""
        return self.repaired / self.tried if self.tried else None


@dataclass(frozen=True)
class CreditResult(Result):
    """How much the steps of one agent mattered; see `Credit`."""

    __pydantic_config__ = STRICT

    steps: Count = 0
    """Steps that were valued, of successful and of failed runs."""
    mean: Finite = 0.0
    """Mean credit, from -1 to 1."""
    helped: Count = 0
    """Steps with a positive credit."""
    harmed: Count = 0
    """Steps with a negative credit."""


def _check_standing(standing: Standing) -> Standing:
    """Refuse numbers with which no mean can be computed."""
    if not all(0 <= count < COUNT_LIMIT for count in (standing.ended, standing.broken)):
        raise ValueError("the runs of a standing are too few or too many")
    if not all(math.isfinite(number) for number in (standing.total, standing.lowest)):
        raise ValueError("the rewards of a standing are no finite numbers")
    return standing


@dataclass(frozen=True)
class TrialResult(Result):
    """What the gate saw: the program on the valset with the new weights of some agents."""

    __pydantic_config__ = STRICT

    agents: tuple[str, ...]
    standing: Standing


@dataclass(frozen=True)
class IterationResult(Result):
    """What one iteration did; iteration 0 is the student as it came, or after its warm start."""

    __pydantic_config__ = STRICT

    iteration: Count
    score: Finite
    """Mean reward on the valset with the weights that were kept."""
    num_val: Count
    lms: Mapping[str, str]
    """Agent name to the id of its LM afterwards."""
    standing: Annotated[Standing, AfterValidator(_check_standing)]
    """What the score is made of."""
    promoted: Mapping[str, bool] = field(default_factory=dict)
    """Agent name to whether its new weights were kept; agents that were trained only."""
    trials: tuple[TrialResult, ...] = ()
    """What the gate evaluated, in that order; of a warm start, the student as it came first."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The numbers that trackers plot."""
    agents: Mapping[str, AgentResult] = field(default_factory=dict)
    repair: RepairResult = RepairResult()
    critic: CriticResult | None = None
    """How the critic was fine-tuned; `None` if it was not."""
    credits: Mapping[str, CreditResult] = field(default_factory=dict)
    """Agent name to how much its steps mattered, where that was measured."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage to wall time."""
    usage: UsageResult = UsageResult()
    """LM calls of the runs and repairs that were kept."""
    stages: Mapping[str, UsageResult] = field(default_factory=dict)
    """Stage to all LM calls that servers answered in it, those of the metric and of repeated calls included."""
    chosen_in_forward: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Predictor name to the LMs that the program's `forward` chose for it."""

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the score; `None` where the score is not a share of solved examples."""
        return score_interval(self.score, self.num_val)


@dataclass(frozen=True)
class UnfinishedIteration(Result):
    """What is done of the iteration that a compile stopped in."""

    __pydantic_config__ = STRICT

    iteration: Count
    agents: Mapping[str, AgentResult] = field(default_factory=dict)
    """Agents whose fine-tuning job has finished."""
    stages: Mapping[str, UsageResult] = field(default_factory=dict)
    """Stage to the LM calls that servers answered in it."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage to wall time."""


@dataclass(frozen=True)
class CompileResult(Result):
    """What a compile did, and what it would take to look closer."""

    __pydantic_config__ = STRICT

    run: str
    """Id of the compile; rows of the library carry it."""
    adapter: str
    seed: int
    threshold: Finite
    agents: Mapping[str, tuple[str, ...]]
    """Agent name to its predictors."""
    run_dir: str = ""
    """Empty in a checkpoint, which may be on another machine."""
    library: str = ""
    """URL of the experience library, without its password; empty in a checkpoint."""
    iterations: tuple[IterationResult, ...] = ()
    """From 0, the student as it came; empty if not even that was scored."""
    unfinished: UnfinishedIteration | None = None
    """What is done beyond `iterations`."""
    ended: Ended = "unfinished"
    reason: str = ""
    """Why the compile ended before all iterations."""
    program: str = ""
    """Class of the program."""
    num_train: Count = 0
    """Examples of the trainset."""
    num_distinct: Count = 0
    """Distinct examples of the trainset: equal ones are run once."""
    usage: UsageResult = UsageResult()
    """All LM calls that servers answered."""
    seconds: float = 0.0
    """Wall time of the compile, that of interrupted calls included."""

    @property
    def best(self) -> IterationResult | None:
        """The iteration whose weights the compiled program has: of equally good ones the least trained."""
        floor = floor_of(entry.standing for entry in self.iterations)
        return max(self.iterations, key=lambda entry: entry.standing.rank(floor), default=None)

    @property
    def best_iteration(self) -> int | None:
        """Number of the best iteration."""
        return None if self.best is None else self.best.iteration

    @property
    def best_score(self) -> float | None:
        """Its mean reward on the valset."""
        return None if self.best is None else self.best.score

    @property
    def best_lms(self) -> Mapping[str, str]:
        """Agent name to the id of the LM that the compiled program has; empty if nothing was scored."""
        return {} if self.best is None else self.best.lms

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values, with the number and the score of the best iteration."""
        return {**super().to_dict(), **{name: getattr(self, name) for name in _DERIVED}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a record back; see `Result.from_dict`."""
        record = require_mapping(cls, data)
        found = super().from_dict({name: value for name, value in record.items() if name not in _DERIVED})
        for name in _DERIVED:
            if name in data and data[name] != getattr(found, name):
                raise ResultError(f"`{name}` of CompileResult is {data[name]!r}, expected {getattr(found, name)!r}.")
        return found

    def __contains__(self, key: object) -> bool:
        return key in _DERIVED or super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield from _DERIVED

    def __len__(self) -> int:
        return super().__len__() + len(_DERIVED)


_DERIVED = ("best_iteration", "best_score")


@dataclass(frozen=True)
class ProgramScore(Result):
    """The score of one program on examples that the compile never saw."""

    __pydantic_config__ = STRICT

    program: str
    score: Finite
    num_examples: Count
    interval: tuple[Finite, Finite] | None = None
    """Bounds of the 95 % interval; by default Wilson's, where the score is a share."""

    @property
    def bounds(self) -> Interval | None:
        """The 95 % interval; `None` if there is none."""
        return score_interval(self.score, self.num_examples) if self.interval is None else Interval(*self.interval)


@dataclass(frozen=True)
class HeldOutScores(Result):
    """Scores on examples that the compile never saw: of the compiled program, and of others to compare it with."""

    __pydantic_config__ = STRICT

    programs: tuple[ProgramScore, ...] = ()
    compiled: str | None = None
    """Name of the compiled program among them."""

    @property
    def compiled_score(self) -> ProgramScore | None:
        """The score of the compiled program."""
        return next((score for score in self.programs if score.program == self.compiled), None)


def score_interval(score: float, num_val: int) -> Interval | None:
    """Wilson's 95 % interval of a score; `None` where it is not a share of solved examples."""
    if not num_val or not 0 <= score <= 1:
        return None
    solved = round(score * num_val)
    return wilson_interval(solved, num_val) if abs(score * num_val - solved) < 1e-6 else None
