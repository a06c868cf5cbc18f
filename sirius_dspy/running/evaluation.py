"""Score a program on a dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import dspy

from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.examples import check_examples
from sirius_dspy.program import lms_of
from sirius_dspy.redact import redact_errors
from sirius_dspy.running.executor import Executor, started
from sirius_dspy.running.metric import Metric, check_metric
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.running.standing import Standing
from sirius_dspy.running.truncation import drop_truncation_warnings
from sirius_dspy.stats import Interval, wilson_interval
from sirius_dspy.trajectory import Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one program on one dataset.

    Attributes:
        trajectories: One per example, in the order of the dataset.
    """

    trajectories: tuple[Trajectory, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """One per example."""
        return tuple(trajectory.reward for trajectory in self.trajectories)

    @property
    def score(self) -> float:
        """Mean reward; a run that broke counts 0, or the lowest reward of all runs where that is less."""
        return Standing.of(self.trajectories).mean()

    @property
    def num_failed(self) -> int:
        """Runs that gave no answer at all: the program raised, e.g. because a reply did not parse."""
        return sum(trajectory.failure is not None for trajectory in self.trajectories)

    def interval(self, threshold: float = 1.0) -> Interval:
        """Wilson's 95 % interval of the share of runs that succeeded."""
        successes = sum(trajectory.succeeded(threshold) for trajectory in self.trajectories)
        return wilson_interval(successes, len(self.trajectories))


def evaluate(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: Metric,
    *,
    demos: Mapping[str, Sequence[dspy.Example]] | None = None,
    num_threads: int | None = None,
    executor: Executor | None = None,
) -> Evaluation:
    """Run a program once on every example, its LMs used as they are, and score it as `dspy.Evaluate` does.

    An LM that fails for a moment is asked again; a score is always that of all examples.

    Args:
        program: Left as it is.
        examples: At least one.
        metric: See `sirius_dspy.running.metric.Metric`.
        demos: Predictor name to demonstrations shown instead of the predictor's own.
        num_threads: Runs at a time; DSPy's setting by default.
        executor: Where the runs are made, such as `ProcessExecutor(4)`; `None` stands for threads of this process.

    Raises:
        UnpreparedProgramError: The program is not a `dspy.Module`.
        DatasetError: There are no examples, or they are no `dspy.Example` with inputs.
        SettingsError: The program or the metric cannot be sent to the executor's processes.
        MetricError: The metric cannot be called, did not return a number, or raised in all of the first runs.
        ProgramError: The program did.
        RolloutError: An LM refused for credentials, credit or configuration, or is out of order.
        UnfinishedError: Some runs did not end, because an LM or the network failed.
    """
    if not isinstance(program, dspy.Module):
        raise UnpreparedProgramError(f"The program is {program!r}, expected a `dspy.Module`.")
    checked = check_examples(examples, "examples")
    check_metric(metric)
    if executor is not None:
        executor.check()
        executor.check_parts({"program": program, "metric": metric}, lms_of(program).values())
    tasks = [Task(example, position) for position, example in enumerate(checked)]  # equal examples stay apart
    # Without history, as in a compile: by its growth, recording finds calls of threads that a program starts, and a
    # metric may call predictors of the program as well.
    context = dspy.context(disable_history=True)
    with redact_errors(), drop_truncation_warnings(), context, started(executor) as workers:
        rollouts = Rollouts(metric, origin="validation", demos=demos or {}, num_threads=num_threads, workers=workers)
        runs = {task.sample: trajectory for task, trajectory in rollouts.run_all(program, tasks)}
    _report_cut_replies(runs.values())
    return Evaluation(tuple(runs[position] for position in range(len(tasks))))


def _report_cut_replies(runs: Iterable[Trajectory]) -> None:
    """Log one line for all replies that were cut off, where DSPy would warn of each."""
    cut = [step.was_cut for run in runs for step in run.steps]
    if any(cut):
        logger.warning("%d of %d replies were cut off at the LM's `max_tokens`.", sum(cut), len(cut))
