"""Collect: run the program on the trainset. What is in the library already is not run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sirius_dspy.errors import UnfinishedError
from sirius_dspy.optimizer.scheduling import scheduled_examples
from sirius_dspy.optimizer.session import Session
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.tracking.events import StageStarted
from sirius_dspy.trajectory import Trajectory


def collect(session: Session, iteration: int) -> None:
    """Make all samples of an iteration.

    Raises:
        SettingsError: The schedule returned something else than keys of the trainset.
        UnfinishedError: Some runs did not end, because the LM or the network failed.
        BudgetReached: There is no room for another run.
    """
    settings, examples = session.settings, scheduled_examples(session, iteration)
    done = {(run.example_key, run.sample): run for run in collected(session, iteration)}
    session.bugs["rollout"].is_resumed |= bool(done)
    solved = {key for (key, _), run in done.items() if run.succeeded(settings.threshold)}
    numbers = range(settings.collect.samples)
    for wave in [[number] for number in numbers] if settings.collect.until_solved else [numbers]:
        tasks = [
            Task(example, sample)
            for sample in wave
            for key, example in examples.items()
            if (key, sample) not in done and not (settings.collect.until_solved and key in solved)
        ]
        session.tracker.on_stage_started(StageStarted(iteration, "collect", len(tasks)))
        solved |= _run_wave(session, iteration, tasks)


def collected(session: Session, iteration: int) -> Iterator[Trajectory]:
    """The runs of this iteration that are in the library, made by the LMs that make them now."""
    for run in session.library.trajectories(run=session.run, iteration=iteration, origin="rollout"):
        if session.weights.could_have_made(run, session.weights.current):
            session.weights.note_chosen(run)
            yield run


def failed_runs(session: Session, iteration: int) -> Sequence[Trajectory]:
    """The first failed run of each example without a success, in an order that repeats."""
    first: dict[str, Trajectory] = {}
    solved = set()
    for run in collected(session, iteration):
        if run.succeeded(session.settings.threshold):
            solved.add(run.example_key)
        elif run.example_key not in first or run.sample < first[run.example_key].sample:
            first[run.example_key] = run
    return [run for key, run in sorted(first.items()) if key not in solved]


def rollouts(session: Session, iteration: int) -> Rollouts:
    """How to collect: demonstrations only for agents that have not learned anything yet."""
    settings, untaught = session.settings, session.weights.untaught
    return Rollouts(
        settings.metric,
        iteration=iteration,
        lm_kwargs={"temperature": settings.collect.temperature},
        demos={name: demos for name, demos in (settings.collect.demos or {}).items() if name in untaught},
        max_unfinished=settings.patience.max_unfinished,
        **session.rollout_options("rollout"),
    )


def _run_wave(session: Session, iteration: int, tasks: Sequence[Task]) -> set[str]:
    """Run tasks, and return the keys of the examples that they solved. Samples go round the teachers, if there are."""
    programs = session.teachers if iteration == 1 and session.teachers else [session.weights.program]
    solved: set[str] = set()
    num_done = 0
    unfinished: UnfinishedError | None = None
    for number, program in enumerate(programs):
        part = [task for task in tasks if task.sample % len(programs) == number]
        try:
            for batch in rollouts(session, iteration).run_batches(program, part):
                num_done += len(batch)
                solved |= {trajectory.example_key for trajectory in session.keep(iteration, batch)}
        except UnfinishedError as error:  # the next teacher's runs do not depend on these, the next wave may
            unfinished = error
    if unfinished is not None:
        raise unfinished
    if num_done < len(tasks):
        session.account.end_if_full(session.num_predictors)
    return solved
