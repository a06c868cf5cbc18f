"""Measures a cell: compiles a method's program within its budget, and tests it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.baselines import BudgetExceededError, Limits, Meter
from sirius_dspy.examples import answer_of
from sirius_dspy.experiment.cell import CRITIC_DETAILS, Cell, Outcome, Status
from sirius_dspy.experiment.ledger import count_usage, read_spent
from sirius_dspy.experiment.methods import Bench, Entry
from sirius_dspy.experiment.task import Split, Task, group_of
from sirius_dspy.files import file_name
from sirius_dspy.identity.describe import describe
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.optimizer.spent import Spent
from sirius_dspy.program import predictor_names, program_fingerprint
from sirius_dspy.running.rollout import Rollouts
from sirius_dspy.running.rollout import Task as Rollout
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.trainers import Trainer
from sirius_dspy.trajectory import Trajectory, digest

Offer = Callable[[Bench], dict[str, Entry]]
"""Returns the available methods by name."""

_COUNT = "spent.json"
"""File with the usage of a method. It is in the folder of its work, so methods that share work share its cost."""


@dataclass(frozen=True)
class Measurement:
    """Compiles and tests methods.

    Attributes:
        task: The task to solve.
        offer: Returns the available methods.
        lm: LM of all agents.
        folder: Folder of the experiment.
        splits: Seed to its examples; all seeds share the test split.
        tracker: Receives the events of compiles.
        trainer: Trainer of the agents; `ProviderTrainer()` by default.
    """

    task: Task
    offer: Offer
    lm: dspy.LM
    folder: Path
    splits: dict[int, Split]
    tracker: Tracker | None
    trainer: Trainer | None

    @property
    def test(self) -> list[dspy.Example]:
        """The examples of the test split."""
        return next(iter(self.splits.values())).test

    def bench(self, seed: int, folder: Path | None = None, tracker: Tracker | None = None) -> Bench:
        """Return the inputs of all methods for one seed.

        Args:
            seed: Seed of sampling and training.
            folder: Folder of their work; by default in the folder of the experiment.
            tracker: Receives the events of their compiles; `None` by default.
        """
        return Bench(self.task, self.lm, seed, folder or self._work(seed), tracker, self.trainer)

    def measure(self, name: str, seed: int) -> Cell:
        """Compile and test a method."""
        program, status, trained, error = self.compile(name, self.bench(seed, tracker=self.tracker))
        trajectories, tested = self._run_tests(name, seed, program)
        _unload(program, self.lm)
        return Cell(
            name,
            seed,
            status,
            outcomes=tuple(self._outcome(e, t) for e, t in zip(self.test, trajectories, strict=True)),
            trained=trained,
            tested=tested,
            measures=self.task.measures(trajectories, self.test),
            details=_details(program),
            error=error,
        )

    def compile(self, name: str, bench: Bench) -> tuple[dspy.Module, Status, Spent, str]:
        """Return the program of a method at its end or at the limit of its budget, with status, usage and error."""
        entry = self.offer(bench)[name]
        resumes = (entry.folder / "run.json").exists()
        try:
            with count_usage(entry.folder / _COUNT, self.task.recipe.budget.limits, resumes=resumes) as ledger:
                program = self._compile(entry, bench)
        except BudgetExceededError as error:
            return self._compile_so_far(name, bench, entry), "budget", ledger.spent, str(error)
        return program, "finished", ledger.spent, ""

    def rehearse(self, entry: Entry, bench: Bench) -> None:
        """Compile up to the first LM call, so that the checks of the method fail now and not hours later."""
        try:
            with Meter(Limits(calls=0)):
                self._compile(entry, bench)
        except BudgetExceededError:
            return

    def spent(self, name: str, seed: int) -> Spent:
        """Return the usage of a failed cell."""
        return read_spent(self.offer(self.bench(seed))[name].folder / _COUNT)

    def _work(self, seed: int) -> Path:
        return self.folder / "work" / f"seed-{seed}"

    def _compile(self, entry: Entry, bench: Bench) -> dspy.Module:
        split = self.splits[bench.seed]
        return entry.method.compile(bench.student, trainset=split.train, valset=split.validation)

    def _compile_so_far(self, name: str, bench: Bench, entry: Entry) -> dspy.Module:
        """Return the best of the finished iterations, without LM calls, or the initial program."""
        finished = 0
        while RunDir(entry.folder).iteration(finished + 1) is not None:
            finished += 1
        if not finished:
            return self._compile(replace(entry, method=entry.before), bench)
        with Meter(Limits(calls=0)):
            return self._compile(self.offer(replace(bench, most_iterations=finished))[name], bench)

    def _run_tests(self, name: str, seed: int, program: dspy.Module) -> tuple[list[Trajectory], Spent]:
        """Run every test example once; runs of an interrupted test are not repeated."""
        run = digest({"cell": [name, seed], **_version(program)})[:12]
        rollouts = Rollouts(self.task.metric, run=run, seed=seed, origin="validation")
        with ExperienceLibrary(self.folder / "tests.sqlite") as library:
            runs = {trajectory.sample: trajectory for trajectory in library.trajectories(run=run)}
            tasks = [Rollout(example, place) for place, example in enumerate(self.test) if place not in runs]
            path = self._work(seed) / f"{file_name(name)}.tested.json"
            with count_usage(path, resumes=bool(runs)) as ledger:
                for batch in rollouts.run_batches(program, tasks):
                    library.add_runs([run for _, run in batch], [task.example for task, _ in batch])
                    runs |= {task.sample: run for task, run in batch}
        return [runs[place] for place in range(len(self.test))], ledger.spent

    def _outcome(self, example: dspy.Example, trajectory: Trajectory) -> Outcome:
        failure = trajectory.failure
        return Outcome(
            example=trajectory.example_key,
            group=group_of(example),
            reward=trajectory.reward,
            right=trajectory.succeeded(self.task.recipe.sirius.threshold),
            parsed=self.task.is_readable(example, trajectory),
            answer=answer_of(trajectory),
            failure=None if failure is None else f"{failure.kind}: {failure.message}",
        )


def _unload(program: dspy.Module, base: dspy.LM) -> None:
    """Unload trained weights, because there will be many; they are loaded again when needed."""
    trained = {lm.model: lm for predictor in predictor_names(program).values() if (lm := predictor.lm) is not None}
    for lm in trained.values():
        if lm.model != base.model and hasattr(lm, "kill"):
            with suppress(Exception):  # a server that does not unload only wastes memory
                lm.kill()


def _version(program: dspy.Module) -> dict[str, Any]:
    """Return what the answers of a program depend on: instructions, weights and demonstrations."""
    predictors = predictor_names(program)
    return {
        "program": program_fingerprint(program),
        "lms": {name: getattr(predictor.lm, "model", "") for name, predictor in predictors.items()},
        "demos": describe({name: predictor.demos for name, predictor in predictors.items()}),
    }


def _details(program: dspy.Module) -> dict[str, Any]:
    """Return the details of a compile of SiriuS that tables contain."""
    results = getattr(program, "detailed_results", None)
    if not isinstance(results, CompileResult):
        return {}
    trained = [entry for entry in results.iterations if entry.iteration > 0]
    return {
        "best_iteration": results.best_iteration,
        "validation": [entry.score for entry in results.iterations],
        "rows": [{name: agent.rows for name, agent in entry.agents.items()} for entry in trained],
        "promoted": [dict(entry.promoted) for entry in trained],
        "repair": [{key: entry.repair[key] for key in ("tried", "repaired", "verdicts")} for entry in trained],
        "seconds": [dict(entry.seconds) for entry in trained],
        "critics": [
            {"iteration": entry.iteration} | {key: getattr(entry.critic, key) for key in CRITIC_DETAILS}
            for entry in trained
            if entry.critic is not None
        ],
    }
