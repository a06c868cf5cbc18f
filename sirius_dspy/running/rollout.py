"""A program over many examples, in parallel: scored trajectories, as they finish."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import numbers
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import dspy

from sirius_dspy.errors import MetricError, ProgramError, UnfinishedError
from sirius_dspy.program import predictor_names, program_fingerprint
from sirius_dspy.redact import hide, redact_error
from sirius_dspy.running.attempts import Broken, attempt_all, check_ended, raise_if_systemic
from sirius_dspy.running.bugs import METRIC_RAISED, BugWatch
from sirius_dspy.running.failures import Health, Patience, Unfinished, current_watch, fault_of, fault_of_call, timed_run
from sirius_dspy.running.record import Recording, Sampling, describe, record
from sirius_dspy.trajectory import Failure, Trajectory, example_key, to_plain

logger = logging.getLogger(__name__)

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None)`, as in DSPy: a number, a bool, or a `dspy.Prediction` with `score` and,
where agents have rewards of their own, `rewards={agent: number}`."""


@dataclass(frozen=True)
class Score:
    """What a metric said of one run."""

    reward: float
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One rollout to make."""

    example: dspy.Example
    sample: int = 0

    @cached_property
    def key(self) -> tuple[str, int]:
        """Identifies the rollout within an iteration."""
        return example_key(self.example), self.sample


Outcome = Trajectory | Broken


class Scored(NamedTuple):
    """A recorded run with what the metric said of it."""

    score: Score
    failure: Failure | None
    """Why there is no score, if the program or the metric raised."""
    error: Exception | None
    """What it raised."""
    prediction: Any
    """As plain values, taken before the metric saw it."""


@dataclass(frozen=True)
class Rollouts:
    """What all rollouts of one stage have in common.

    Attributes:
        metric: Scores a run; see `Metric`.
        run: Id of the compile, or empty.
        seed: Rollout ids derive from it, so the same seed repeats the same samples.
        lm_kwargs: LM arguments for samples after the first; the first uses the LMs as they are.
        first_kwargs: LM arguments for the first sample.
        demos: Predictor name to demonstrations shown while collecting.
        num_threads: Runs at a time; DSPy's setting by default.
        broken_reward: What stands for the reward of a run that broke; below the threshold, if that is known.
        agents: Names that the metric may give rewards to, beside those of the predictors; `None` if any name will do.
        patience: How long to wait for the LMs.
        health: Of the LMs; the stages of a compile share one.
        bugs: Looks for those of metric and program; the stages with the same examples share one.
        allowance: Says how many runs may be under way; when it says none, the others are not begun.
        on_unfinished: Told of each run that did not end, in the caller's thread.
        max_unfinished: Examples that may be left without an end before `run_all` raises.
    """

    metric: Metric
    run: str = ""
    iteration: int = 0
    seed: int = 0
    origin: Any = "rollout"
    lm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    first_kwargs: Mapping[str, Any] = field(default_factory=dict)
    demos: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)
    num_threads: int | None = None
    broken_reward: float = 0.0
    agents: Collection[str] | None = None
    patience: Patience = field(default_factory=Patience)
    health: Health = field(default_factory=Health)
    bugs: BugWatch = field(default_factory=BugWatch)
    allowance: Callable[[], int] | None = None
    on_unfinished: Callable[[Unfinished], None] | None = None
    max_unfinished: int = 0

    def run_all(self, program: dspy.Module, tasks: Iterable[Task]) -> Iterator[tuple[Task, Trajectory]]:
        """Run the tasks in parallel and yield each as it finishes.

        A program that raises gives a trajectory with a failure. A run that did not end, because the LM or
        the network failed, gives none; all others are made before that is an error. When a rollout fails in a way that
        all would share, or on an interrupt, no new one starts, those in flight are yielded, and then the error is
        raised.

        Raises:
            RolloutError: An LM refused for lack of credentials, credit or configuration, or it is out of order.
            UnfinishedError: More examples than `max_unfinished` have runs that did not end.
            MetricError: The metric did not return a number, or raised the same exception in all of the first runs.
            ProgramError: The program did.
            UnrecordableCallError: The program calls predictors where recording cannot see it.
        """
        program_id = program_fingerprint(program)
        unfinished: dict[str, tuple[dspy.Example, Unfinished]] = {}

        def run(task: Task) -> Trajectory:
            trajectory, error = self._run(program, task, program_id)
            self._judge(trajectory, error)
            self.bugs.note(trajectory.failure, error)
            return trajectory

        outcomes = attempt_all(
            run, tasks, self.num_threads, patience=self.patience, health=self.health, most=self._most
        )
        for task, outcome in self._trusted(outcomes):
            if isinstance(outcome, Trajectory):
                yield task, outcome
                continue
            broken = self._unfinished(task, outcome)
            unfinished[broken.example_key] = task.example, broken
            if self.on_unfinished is not None:
                self.on_unfinished(broken)
        report_unfinished(unfinished.values(), self.max_unfinished)

    def _most(self) -> int:
        """How many runs may be under way."""
        allowed = self.bugs.allowance()
        return allowed if self.allowance is None else min(allowed, self.allowance())

    def _trusted(self, outcomes: Iterable[tuple[Task, Outcome]]) -> Iterator[tuple[Task, Outcome]]:
        """The outcomes, held back while they may be those of a bug: such runs must not be taken for done."""
        held: list[tuple[Task, Outcome]] = []
        try:
            for found in outcomes:
                held.append(found)
                if not self.bugs.suspects:
                    yield from _emptied(held)
        except (MetricError, ProgramError):
            raise
        except (Exception, KeyboardInterrupt):
            yield from _emptied(held)
            raise
        self.bugs.conclude()
        yield from held

    def run_one(self, program: dspy.Module, task: Task, program_id: str = "") -> Trajectory:
        """Run one task in this thread.

        Raises:
            RolloutError: An LM refused for lack of credentials, credit or configuration.
            UnfinishedError: The run did not end, because the LM or the network failed.
            MetricError: The metric did not return a number, or a reward for an unknown agent.
            UnrecordableCallError: The program calls predictors where recording cannot see it.
        """
        return self._run(program, task, program_id)[0]

    def _run(self, program: dspy.Module, task: Task, program_id: str) -> tuple[Trajectory, Exception | None]:
        key = task.key[0]  # before the program may change its inputs
        with timed_run():
            recording = record(program, own_copy(task.example).inputs(), self.sampling(task))
            check_ended(recording)
            scored = self.scored(task.example, recording, program)
        trajectory = Trajectory(
            example_key=key,
            steps=recording.steps,
            prediction=scored.prediction,
            reward=scored.score.reward,
            rewards=scored.score.rewards,
            failure=scored.failure,
            program=program_id or program_fingerprint(program),
            run=self.run,
            iteration=self.iteration,
            sample=task.sample,
            seed=self.seed,
            origin=self.origin,
            edited=recording.edited,
            seconds=recording.seconds,
        )
        return trajectory, scored.error

    def scored(self, example: dspy.Example, recording: Recording, program: dspy.Module) -> Scored:
        """Score a recorded run; a program or a metric that raised gives the failure.

        Validation runs are scored as `dspy.Evaluate` does, without the trace: many metrics are stricter when they get
        one, to choose what to learn from.

        Raises:
            MetricError: The metric returned something that is not a number, or rewards for unknown agents.
            RolloutError: The metric asked an LM, which refused for lack of credentials, credit or configuration.
            UnfinishedError: The metric asked an LM, which failed.
        """
        plain = hide(to_plain(recording.prediction))
        if recording.error is not None:
            return Scored(Score(self.broken_reward), recording.failure, recording.error, plain)
        trace = None if self.origin == "validation" else recording.trace
        try:
            with _heard():
                value = call_metric(self.metric, own_copy(example), recording.prediction, trace)
        except Exception as error:  # a metric that stumbles over one odd prediction must not end the compile
            raise_if_systemic(error)
            if fault_of(error) == "passing":
                raise UnfinishedError("The metric's LM failed.") from error
            logger.debug("The metric raised on an example; it counts as failed.", exc_info=redact_error(error))
            raised = describe(error)
            failure = Failure(f"{METRIC_RAISED}{raised.kind}", raised.message)
            return Scored(Score(self.broken_reward), failure, error, plain)
        score = to_score(value, example)
        self._check_agents(score, program)
        return Scored(score, None, None, plain)

    def sampling(self, task: Task) -> Sampling:
        """How the LMs are asked in this rollout."""
        key = f"{self.seed}/{self.iteration}/{task.key[0]}/{task.sample}"
        return Sampling(key, self.lm_kwargs if task.sample else self.first_kwargs, self.demos)

    def _judge(self, trajectory: Trajectory, error: Exception | None) -> None:
        """Tell the LMs' health of a run that ended."""
        if error is not None and trajectory.prediction is None and fault_of_call(error) == "refusal":
            failure = describe(error)
            self.health.failed(f"{failure.kind}: {failure.message}", error)
        else:
            self.health.ended()

    def _check_agents(self, score: Score, program: dspy.Module) -> None:
        if self.agents is None or not score.rewards:
            return
        known = {*self.agents, *predictor_names(program)}
        if unknown := sorted(set(score.rewards) - known):
            raise MetricError(
                f"The metric gave rewards to {unknown}, which are no agents of this program. Key `rewards` by agent or "
                f"by predictor: {sorted(known)}."
            )

    def _unfinished(self, task: Task, broken: Broken) -> Unfinished:
        return Unfinished(
            example_key=task.key[0],
            kind=broken.failure.kind,
            message=broken.failure.message,
            run=self.run,
            iteration=self.iteration,
            sample=task.sample,
            seed=self.seed,
            origin=self.origin,
        )


def _emptied(held: list[tuple[Task, Outcome]]) -> Iterator[tuple[Task, Outcome]]:
    while held:
        yield held.pop(0)


def report_unfinished(found: Iterable[tuple[dspy.Example, Unfinished]], allowed: int) -> None:
    """Name the examples whose runs did not end: in an error, or in a warning if they are few enough.

    Raises:
        UnfinishedError: They are more than allowed.
    """
    unfinished = list(found)
    if not unfinished:
        return
    reasons = Counter(broken.kind for _, broken in unfinished)
    shown = "; ".join(f"{_short(example)}: {broken.kind}: {broken.message[:200]}" for example, broken in unfinished[:5])
    more = "" if len(unfinished) <= 5 else f"; and {len(unfinished) - 5} more"
    text = (
        f"The runs of {len(unfinished)} examples did not end, because the LM or the network failed "
        f"({', '.join(f'{number} x {kind}' for kind, number in reasons.most_common())}): {shown}{more}."
    )
    if len(unfinished) > allowed:
        raise UnfinishedError(
            f"{text} All others are done and kept. Run the same `compile` again, which runs only these, or let it go "
            "on without some with `max_unfinished`.",
            examples=[broken.example_key for _, broken in unfinished],
            reasons=reasons,
        )
    warnings.warn(f"{text} The compile goes on without them.", UserWarning, stacklevel=2)


def own_copy(example: dspy.Example) -> dspy.Example:
    """A copy whose values may be changed in place; what cannot be copied is shared."""
    copied = example.copy()
    for name, value in example.items():
        copied[name] = _own_value(value)
    return copied


def _own_value(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # an open file, a lock, a client: only containers around it can be copied
        if type(value) is dict:
            return {key: _own_value(item) for key, item in value.items()}
        if type(value) in (list, tuple, set):
            return type(value)(_own_value(item) for item in value)
        return value


@contextmanager
def _heard() -> Iterator[None]:
    """Let the watch hear of the LM calls that are no predictor's of the program, such as a metric's."""
    if (watch := current_watch()) is None:
        yield
        return
    with dspy.context(callbacks=[*dspy.settings.callbacks, watch]):
        yield


def call_metric(metric: Metric, example: dspy.Example, prediction: Any, trace: Any) -> Any:
    """Call a metric that takes (example, prediction, trace) or only (example, prediction).

    Without a trace it is called with two arguments if it can be, as `dspy.Evaluate` does.

    Raises:
        MetricError: It takes neither.
    """
    check_metric(metric)
    if takes(metric, 3) and (trace is not None or not takes(metric, 2)):
        return metric(example, prediction, trace)
    return metric(example, prediction)


def check_metric(metric: Any) -> None:
    """Refuse what is no metric.

    Raises:
        MetricError: It cannot be called with an example and a prediction.
    """
    if not callable(metric):
        raise MetricError(
            f"The metric is {metric!r}, expected a function `metric(example, prediction, trace=None)` that returns a "
            "number."
        )
    if not takes(metric, 3) and not takes(metric, 2):
        raise MetricError(
            f"The metric {metric!r} must take (example, prediction, trace=None); it takes {inspect.signature(metric)}."
        )


def takes(metric: Metric, number: int) -> bool:
    """Whether a metric can be called with so many positional arguments; unknown of some builtins, so then it can."""
    try:
        inspect.signature(metric).bind(*[None] * number)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def to_score(value: Any, example: dspy.Example) -> Score:
    """Turn what a metric returned into numbers.

    Raises:
        MetricError: It is `None`, NaN, infinite, a string, or anything else that is not a number.
    """
    if isinstance(value, dspy.Prediction):
        fields = value.toDict()
        rewards = fields.get("rewards") or {}
        if not isinstance(rewards, Mapping):
            raise _metric_error(value, example)
        own = {str(agent): _number(reward, example) for agent, reward in rewards.items()}
        return Score(_number(fields.get("score"), example), own)
    return Score(_number(value, example))


def _number(value: Any, example: dspy.Example) -> float:
    # numbers.Real covers bool and Python's numbers; NumPy's scalars and one-element tensors have `item`.
    try:
        plain = value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of several numbers
        plain = None
    if not isinstance(plain, numbers.Real) or not math.isfinite(plain):
        raise _metric_error(value, example)
    return float(plain)


def _metric_error(value: Any, example: dspy.Example) -> MetricError:
    return MetricError(
        f"The metric returned {value!r} for the example with inputs {_short(example)}. It must return a finite number, "
        "a bool, or a `dspy.Prediction` with such a `score`, and `rewards` by agent where it gives them."
    )


def _short(example: dspy.Example) -> str:
    text = repr(to_plain(example.inputs()))
    return text if len(text) <= 200 else text[:200] + "..."
