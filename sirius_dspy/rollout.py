"""A program over many examples, in parallel: scored trajectories, as they finish."""

from __future__ import annotations

import contextvars
import inspect
import logging
import math
import numbers
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError

from sirius_dspy.errors import MetricError, PromptTooLongError, RolloutError, SiriuSError
from sirius_dspy.program import program_fingerprint
from sirius_dspy.record import Recording, Sampling, describe, record
from sirius_dspy.redact import hide, redact_error
from sirius_dspy.trajectory import Failure, Trajectory, example_key, to_plain

logger = logging.getLogger(__name__)

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None)`, as in DSPy: a number, a bool, or a `dspy.Prediction` with `score` and,
where agents have rewards of their own, `rewards={agent: number}`."""

Item = TypeVar("Item")
Result = TypeVar("Result")

FATAL = (LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError)
"""Errors of an LM that every example would share: to go on would only fail a thousand times."""


OUTAGES = frozenset({"LMUnexpectedError", "LMTransportError", "LMServerError", "LMTimeoutError", "LMProviderError"})
"""Failures of an LM that may pass, or be those of one example; many in a row are those of the LM."""

PATIENCE = 10
"""If this many runs fail in the LM before any other outcome is seen, the LM is out of order."""


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

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the rollout within an iteration."""
        return example_key(self.example), self.sample


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

    def run_all(self, program: dspy.Module, tasks: Iterable[Task]) -> Iterator[tuple[Task, Trajectory]]:
        """Run the tasks in parallel and yield each as it finishes.

        A program that raises gives a trajectory with a failure and reward 0. When a rollout fails in a way that all
        would share, or on an interrupt, no new one starts, those in flight are yielded, and then the error is raised.

        Raises:
            RolloutError: An LM refused for lack of credentials, credit or configuration, or it is out of order.
            MetricError: The metric did not return a number.
            UnrecordableCallError: The program calls predictors where recording cannot see it.
        """
        program_id = program_fingerprint(program)
        runs = parallel(lambda task: self.run_one(program, task, program_id), tasks, self.num_threads)
        for finished, (task, trajectory) in enumerate(runs, start=1):
            yield task, trajectory
            if trajectory.failure is None or trajectory.failure.kind not in OUTAGES:
                break
            if finished == PATIENCE:
                runs.close()
                raise RolloutError(
                    f"The first {PATIENCE} runs all failed in the LM itself: {trajectory.failure.kind}: "
                    f"{trajectory.failure.message} Mend the LM or its server, then run the same `compile` again."
                )
        yield from runs

    def run_one(self, program: dspy.Module, task: Task, program_id: str = "") -> Trajectory:
        """Run one task in this thread."""
        recording = record(program, task.example.inputs(), self.sampling(task))
        raise_if_fatal(recording)
        score, failure = scored(self.metric, task.example, recording)
        return Trajectory(
            example_key=task.key[0],
            steps=recording.steps,
            prediction=hide(to_plain(recording.prediction)),
            reward=score.reward,
            rewards=score.rewards,
            failure=failure,
            program=program_id or program_fingerprint(program),
            run=self.run,
            iteration=self.iteration,
            sample=task.sample,
            seed=self.seed,
            origin=self.origin,
            edited=recording.edited,
            seconds=recording.seconds,
        )

    def sampling(self, task: Task) -> Sampling:
        """How the LMs are asked in this rollout."""
        key = f"{self.seed}/{self.iteration}/{task.key[0]}/{task.sample}"
        return Sampling(key, self.lm_kwargs if task.sample else self.first_kwargs, self.demos)


def scored(metric: Metric, example: dspy.Example, recording: Recording) -> tuple[Score, Failure | None]:
    """Score a recorded run; a program or a metric that raised gives reward 0 and the failure.

    Raises:
        MetricError: The metric returned something that is not a number, or cannot be called.
        RolloutError: The metric asked an LM, which refused for lack of credentials, credit or configuration.
    """
    if recording.error is not None:
        return Score(0.0), recording.failure
    try:
        value = call_metric(metric, example, recording.prediction, recording.trace)
    except Exception as error:  # a metric that stumbles over one odd prediction must not end the compile
        raise_fatal_cause(error)
        logger.debug("The metric raised on an example; it counts as failed.", exc_info=redact_error(error))
        failure = describe(error)
        return Score(0.0), Failure(f"metric raised {failure.kind}", failure.message)
    return to_score(value, example), None


def call_metric(metric: Metric, example: dspy.Example, prediction: Any, trace: Any) -> Any:
    """Call a metric that takes (example, prediction, trace) or only (example, prediction)."""
    return metric(example, prediction, trace) if takes_trace(metric) else metric(example, prediction)


def takes_trace(metric: Metric) -> bool:
    """Whether the metric has a third positional parameter.

    Raises:
        MetricError: It cannot be called with an example and a prediction.
    """
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # a builtin without a signature
        return True
    for arguments in ((None, None, None), (None, None)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 3
    raise MetricError(f"The metric {metric!r} must take (example, prediction, trace=None); it takes {signature}.")


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


def raise_if_fatal(recording: Recording) -> None:
    """Raise what would fail every other run, too, even if the program caught it.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration.
        SiriuSError: One of our own errors came through the program.
    """
    raise_fatal_cause(recording.error)
    refusals = {error.__name__ for error in FATAL}
    for step in recording.steps:
        if step.failure is not None and step.failure.kind in refusals:
            raise RolloutError(_refused(step.failure))


def raise_fatal_cause(error: BaseException | None) -> None:
    """Raise the first fatal error in a chain of causes, since programs and metrics wrap errors.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration.
        SiriuSError: One of our own errors is in the chain.
    """
    cause = error
    while cause is not None:
        if isinstance(cause, PromptTooLongError):
            return
        if isinstance(cause, SiriuSError):
            raise cause
        if isinstance(cause, FATAL):
            raise RolloutError(_refused(describe(cause))) from cause
        cause = cause.__cause__


def _refused(failure: Failure) -> str:
    return (
        f"{failure.kind}: {failure.message} All finished rollouts are kept. Mend the LM's credentials, credit or "
        "settings, then run the same `compile` again to go on from there."
    )


def parallel(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Generator[tuple[Item, Result], None, None]:
    """Map in threads that inherit the caller's context, yielding (item, result) as they finish.

    Never more than two items per thread are taken from `items` ahead of time. On the first error, and on an interrupt
    of the caller, no new item starts; what is in flight is paid for, so it is awaited and yielded before the error is
    raised. A second interrupt does not wait.
    """
    threads = num_threads or dspy.settings.num_threads or 8
    queue = iter(items)
    error: BaseException | None = None
    running: dict[Future[Result], Item] = {}
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sirius")
    try:
        while True:
            for item in islice(queue, 0 if error else 2 * threads - len(running)):
                running[pool.submit(contextvars.copy_context().run, _untraced, function, item)] = item
            if not running:
                break
            try:
                done = wait(running, return_when=FIRST_COMPLETED).done
            except KeyboardInterrupt as interrupt:
                if error is not None:
                    raise
                error, done = interrupt, set()
            for future in done:
                item = running.pop(future)
                if (failed := future.exception()) is None:
                    yield item, future.result()
                else:
                    error = error or failed
            if error is not None:
                running = {future: item for future, item in running.items() if not future.cancel()}
    finally:
        pool.shutdown(wait=error is None, cancel_futures=True)
    if error is not None:
        raise error


def _untraced(function: Callable[[Item], Result], item: Item) -> Result:
    """Run without MLflow's autolog callback, or thousands of rollouts would each become a trace.

    The callback is known by its module, so that mlflow need not be imported.
    """
    callbacks = [
        callback for callback in dspy.settings.callbacks if not type(callback).__module__.startswith("mlflow.")
    ]
    with dspy.context(callbacks=callbacks):
        return function(item)
