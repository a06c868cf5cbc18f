"""Run a program over many examples in parallel, and yield scored trajectories as they finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import dspy

from sirius_dspy.errors import MetricError, ProgramError, UnfinishedError
from sirius_dspy.lms import load_together
from sirius_dspy.program import lms_of, predictor_names, program_fingerprint
from sirius_dspy.redact import hide, redact_error
from sirius_dspy.running.attempts import Broken, attempt_batches
from sirius_dspy.running.blind_spots import refuse_late_calls
from sirius_dspy.running.bugs import METRIC_RAISED, BugWatch, Place, find_place
from sirius_dspy.running.examples import copy_example
from sirius_dspy.running.executor import THREADS, Workers
from sirius_dspy.running.exits import exits_as_errors
from sirius_dspy.running.faults import describe_error, fault_of, fault_of_call, raise_if_systemic
from sirius_dspy.running.metric import Metric, Score, call_metric, to_score
from sirius_dspy.running.patience import Health, Patience
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.unfinished import Unfinished, report_unfinished
from sirius_dspy.running.watch import current_watch, time_run
from sirius_dspy.trajectory import Failure, Lineage, Origin, Trajectory, example_key, to_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One rollout to make."""

    example: dspy.Example
    sample: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the rollout within an iteration."""
        return example_key(self.example), self.sample


Outcomes = list[tuple[Task, Trajectory | Broken]]


class ScoredRun(NamedTuple):
    """A run with its score."""

    trajectory: Trajectory
    error: Exception | None
    """What the program or the metric raised."""
    place: Place | None = None
    """Where it was raised."""


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
        held: Called with the number of runs under way; while it returns true, no new one is begun.
        on_unfinished: Receives each run that did not end, in the caller's thread.
        max_unfinished: How many examples may have runs that did not end before `run_all` raises.
        workers: Where the program and the metric run; by default in the caller's own threads.
    """

    metric: Metric
    run: str = ""
    iteration: int = 0
    seed: int = 0
    origin: Origin = "rollout"
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
    held: Callable[[int], bool] | None = None
    on_unfinished: Callable[[Unfinished], None] | None = None
    max_unfinished: int = 0
    workers: Workers = THREADS

    def __getstate__(self) -> dict[str, Any]:
        """What a worker in another process gets: how to run and to score, and nothing that the caller watches with."""
        return {name: value for name, value in vars(self).items() if name not in _OF_THE_CALLER}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Rollouts(state["metric"])), **state)

    def run_all(self, program: dspy.Module, tasks: Iterable[Task]) -> Iterator[tuple[Task, Trajectory]]:
        """Run the tasks in parallel and yield each as it finishes; see `run_batches`."""
        for batch in self.run_batches(program, tasks):
            yield from batch

    def run_batches(self, program: dspy.Module, tasks: Iterable[Task]) -> Iterator[list[tuple[Task, Trajectory]]]:
        """Run the tasks in parallel, and yield together those that finished while the caller kept the ones before.

        A program that raises gives a trajectory with a failure. A run that did not end, because the LM or the network
        failed, gives none; that is an error only after all others are done. When a rollout fails in a way that all
        would share, or on an interrupt, no new one starts, those in flight are yielded, and then the error is raised.

        Raises:
            RolloutError: An LM refused for lack of credentials, credit or configuration, or it is out of order.
            UnfinishedError: More examples than `max_unfinished` have runs that did not end.
            MetricError: The metric did not return a number, or raised the same exception in all of the first runs.
            ProgramError: The program did.
            UnrecordableCallError: The program calls predictors where recording cannot see it.
        """
        tasks = iter(tasks)
        if (first := next(tasks, None)) is None:
            return
        load_together(lms_of(program).values())
        program_id = program_fingerprint(program)
        unfinished: dict[str, tuple[dspy.Example, Unfinished]] = {}

        with self.workers.open(_Run(self, program, program_id), self.patience) as make_run:

            def run(task: Task) -> Trajectory:
                scored = make_run(task)
                self._report_health(scored)
                self.bugs.note(scored.trajectory.failure, scored.error, scored.place)
                return scored.trajectory

            batches = attempt_batches(
                run,
                chain([first], tasks),
                self.num_threads,
                patience=self.patience,
                health=self.health,
                limit=self._limit,
                held=self.held,
                on_stop=make_run.leave,
            )
            with closing(batches):
                for batch in self._hold_back(batches):
                    if ended := [(task, outcome) for task, outcome in batch if isinstance(outcome, Trajectory)]:
                        yield ended
                    for task, outcome in batch:
                        if isinstance(outcome, Broken):
                            lost = Unfinished.of(self.lineage(task, program_id), outcome.failure)
                            unfinished[lost.example_key] = task.example, lost
                            if self.on_unfinished is not None:
                                self.on_unfinished(lost)
        report_unfinished(unfinished.values(), self.max_unfinished)

    def _limit(self) -> int:
        """How many runs may be under way."""
        allowed = self.bugs.allowance()
        return allowed if self.allowance is None else min(allowed, self.allowance())

    def _hold_back(self, batches: Iterable[Outcomes]) -> Iterator[Outcomes]:
        """Yield the outcomes, but hold them back while a bug may have caused them: such runs must not count as done."""
        held: Outcomes = []
        try:
            for batch in batches:
                held += batch
                if not self.bugs.is_suspicious:
                    ready, held = held, []
                    yield ready
        except (MetricError, ProgramError):
            raise
        except (Exception, KeyboardInterrupt):
            yield held
            raise
        self.bugs.conclude()
        yield held

    def run_one(self, program: dspy.Module, task: Task, program_id: str = "") -> Trajectory:
        """Run one task in this thread.

        Args:
            program: Left as it is.
            task: What to run.
            program_id: The program's fingerprint, where the caller has it already.

        Raises:
            RolloutError: An LM refused for lack of credentials, credit or configuration.
            UnfinishedError: The run did not end, because the LM or the network failed.
            MetricError: The metric did not return a number, or a reward for an unknown agent.
            UnrecordableCallError: The program calls predictors where recording cannot see it.
        """
        return _Run(self, program, program_id or program_fingerprint(program))(task).trajectory

    def score(self, recording: Recording, example: dspy.Example, program: dspy.Module, lineage: Lineage) -> ScoredRun:
        """Score a recorded run, and make its trajectory; a program or a metric that raised gives it a failure.

        Validation runs are scored as `dspy.Evaluate` does, without the trace: many metrics are stricter when they get
        one, to choose what to learn from.

        Args:
            recording: The run, by `record` or `replay`.
            example: The one it was made from.
            program: The one that ran.
            lineage: Where the run comes from.

        Raises:
            MetricError: The metric returned something that is not a number, or rewards for unknown agents.
            RolloutError: An LM refused for lack of credentials, credit or configuration.
            UnfinishedError: The run did not end, or the metric asked an LM, which failed.
            UnrecordableCallError: In a compile, the program returned something that calls its predictors only now.
        """
        recording.check_ended()
        prediction = hide(to_plain(recording.prediction))  # before the metric sees it
        score, failure, error = Score(self.broken_reward), recording.failure, recording.error
        if error is None:
            # A compile runs a copy of its own, whose predictors no metric can know.
            with refuse_late_calls(predictor_names(program)) if self.run else nullcontext():
                score, failure, error = self._ask_metric(recording, example)
            self._check_agents(score, program)
        trajectory = Trajectory(
            example_key=lineage.example_key,
            steps=recording.steps,
            prediction=prediction,
            reward=score.reward,
            rewards=score.rewards,
            failure=failure,
            program=lineage.program,
            run=lineage.run,
            iteration=lineage.iteration,
            sample=lineage.sample,
            seed=lineage.seed,
            origin=lineage.origin,
            parent=lineage.parent,
            edited=recording.edited,
            seconds=recording.seconds,
        )
        return ScoredRun(trajectory, error, None if error is None else find_place(error))

    def _ask_metric(
        self, recording: Recording, example: dspy.Example
    ) -> tuple[Score, Failure | None, Exception | None]:
        trace = None if self.origin == "validation" else recording.trace
        try:
            with _watched_calls(), exits_as_errors():
                value = call_metric(self.metric, copy_example(example), recording.prediction, trace)
        except Exception as error:  # a metric that fails on one odd prediction must not end the compile
            raise_if_systemic(error)
            if fault_of(error) == "transient":
                raise UnfinishedError("The metric's LM failed.") from error
            logger.debug("The metric raised on an example; it counts as failed.", exc_info=redact_error(error))
            failure = describe_error(error)
            return Score(self.broken_reward), Failure(f"{METRIC_RAISED}{failure.kind}", failure.message), error
        return to_score(value, example), None, None

    def sampling(self, task: Task) -> Sampling:
        """How the LMs are asked in this rollout."""
        key = f"{self.seed}/{self.iteration}/{task.key[0]}/{task.sample}"
        return Sampling(key, self.lm_kwargs if task.sample else self.first_kwargs, self.demos)

    def lineage(self, task: Task, program_id: str) -> Lineage:
        """Where the run of a task comes from.

        Args:
            task: The rollout.
            program_id: Fingerprint of the program.
        """
        return Lineage(task.key[0], program_id, self.run, self.iteration, task.sample, self.seed, self.origin)

    def _report_health(self, run: ScoredRun) -> None:
        """Tell the LMs' health of a run that ended."""
        error = run.error
        if error is not None and run.trajectory.prediction is None and fault_of_call(error) == "refusal":
            failure = describe_error(error)
            self.health.note_failure(f"{failure.kind}: {failure.message}", error)
        else:
            self.health.note_end()

    def _check_agents(self, score: Score, program: dspy.Module) -> None:
        if self.agents is None or not score.rewards:
            return
        allowed = {*self.agents, *predictor_names(program)}
        if unknown := sorted(set(score.rewards) - allowed):
            raise MetricError(
                f"The metric gave rewards to {unknown}, which are no agents of this program. Key `rewards` by agent or "
                f"by predictor: {sorted(allowed)}."
            )


_OF_THE_CALLER = ("health", "bugs", "allowance", "held", "on_unfinished", "workers")


@dataclass(frozen=True)
class _Run:
    """Makes the run of a task; this is what workers get."""

    rollouts: Rollouts
    program: dspy.Module
    program_id: str

    def __call__(self, task: Task) -> ScoredRun:
        lineage = self.rollouts.lineage(task, self.program_id)  # before the program may change its inputs
        with time_run():
            recording = record(self.program, copy_example(task.example).inputs(), self.rollouts.sampling(task))
            return self.rollouts.score(recording, task.example, self.program, lineage)


@contextmanager
def _watched_calls() -> Iterator[None]:
    """Let the watch hear of LM calls that do not come from a predictor of the program, such as a metric's."""
    if (watch := current_watch()) is None:
        yield
        return
    with dspy.context(callbacks=[*dspy.settings.callbacks, watch]):
        yield
