"""The order of an experiment: check everything, then cell by cell, then the tables.

    experiment = Experiment.from_file("recipes/laptop_chain_sum.toml")
    results = experiment.run("runs/chain_sum", methods=["prompted team", "SiriuS"], seeds=[0, 1, 2])
    print(results.to_markdown())

What is finished is on disk before the next thing begins, so that the same call goes on after any interruption: cells in
`stages/`, test runs in `tests.sqlite`, the work of methods in `work/`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.baselines import BudgetExceededError, Limits, Meter, Spent
from sirius_dspy.errors import RunDamagedError, RunMismatchError, SiriuSError
from sirius_dspy.experiment.cell import Cell, Outcome, Status
from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.ledger import metered, read_spent
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.experiment.methods import Bench, Entry, canonical_name, offered
from sirius_dspy.experiment.observer import Observer, Observers, Started
from sirius_dspy.experiment.recipe import CrossplayTable, Recipe
from sirius_dspy.experiment.results import Results
from sirius_dspy.experiment.task import Split, Task, answer_of, group_of, imported
from sirius_dspy.files import file_name, write_text
from sirius_dspy.identity.describe import describe
from sirius_dspy.identity.parts import FORMAT, find_changes
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.run_dir import RESTORE, RunDir, read_record_file
from sirius_dspy.program import predictor_names, program_fingerprint
from sirius_dspy.redact import redact, redact_error
from sirius_dspy.running.rollout import Rollouts
from sirius_dspy.running.rollout import Task as Rollout
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.trainers import Trainer
from sirius_dspy.trajectory import Trajectory, digest, example_key, to_plain

logger = logging.getLogger(__name__)

Offer = Callable[[Bench], dict[str, Entry]]
"""Gives the methods that there are, by name."""

_COUNT = "spent.json"
"""What a method has used so far, beside its work, so that methods that share their work share its cost."""


@dataclass(frozen=True)
class Experiment:
    """A recipe that can be run.

    Attributes:
        recipe: What to do.
        name: For titles and MLflow.
        task: The module or object with `build`, `examples` and `metric`; by default the one that the recipe names.
        offer: The methods that there are. For one of your own:
            `lambda bench: offered(bench) | {"mine": Entry(Mine(bench.task.metric), PromptedTeam(), bench.folder)}`.
    """

    recipe: Recipe
    name: str = "experiment"
    task: Any = None
    offer: Offer = field(default=offered)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a recipe, by its path or by its name in `recipes/`.

        Raises:
            ExperimentError: There is none, or it is not a recipe.
        """
        return cls(Recipe.from_file(path), name=Path(path).stem)

    def run(
        self,
        folder: str | Path,
        *,
        lm: dspy.LM | str | None = None,
        methods: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        limit: int | None = None,
        files: Mapping[str, str | Path] | None = None,
        observers: Sequence[Observer] = (),
        tracker: Tracker | None = None,
        trainer: Trainer | None = None,
        command: str = "",
    ) -> Results:
        """Run what is not finished yet, and give back all of it.

        Args:
            folder: Everything is kept here, and the same call goes on from it. More methods and seeds can be added.
            lm: Of all agents, as an object or an id (see `lm_from`); by default the recipe's.
            methods: Names; by default the recipe's.
            seeds: By default the recipe's.
            limit: Examples of each split at most, to try things out.
            files: Local data files by argument of the task's `examples`.
            observers: Are told of cells.
            tracker: Is told of compiles inside cells.
            trainer: Fine-tunes; by default through the provider of the LM.
            command: What the user typed, for the head of the tables.

        Raises:
            ExperimentError: The recipe, or what is asked of it, cannot be run; no LM was called.
            RunMismatchError: The folder belongs to another experiment, or another process works in it.
            UnpreparedProgramError: A method does not fit the program or its LM; no LM was called.
            DatasetError: The data cannot be read; no LM was called.
        """
        recipe = replace(
            self.recipe,
            methods=tuple(self.recipe.methods if methods is None else methods),
            seeds=tuple(self.recipe.seeds if seeds is None else seeds),
        )
        _check_seeds(recipe.seeds)
        task = Task.of(recipe, self.task, limit=limit, files=files or {})
        task.check()
        model, is_own = _lm(lm, recipe)
        run = _Run(
            self, recipe, task, model, is_own, RunDir(Path(folder)), Observers(observers), tracker, trainer, command
        )
        with dspy.context(adapter=_adapter(recipe), num_threads=recipe.num_threads, disable_history=True):
            return run.all()


@dataclass
class _Run:
    """One call of `Experiment.run`."""

    experiment: Experiment
    recipe: Recipe
    task: Task
    lm: dspy.LM
    is_own_lm: bool
    folder: RunDir
    observers: Observers
    tracker: Tracker | None
    trainer: Trainer | None
    command: str
    splits: dict[int, Split] = field(default_factory=dict)

    def all(self) -> Results:
        """Check, work, write."""
        self.splits = {seed: self.task.split(seed) for seed in self.recipe.seeds}
        names = self._checked_methods()
        with self.folder.locked():
            identity = self._begin()
            cells = [(name, seed) for name in names for seed in self.recipe.seeds]
            self.observers.on_started(self._started(identity, cells))
            with self._told():
                results = self._results([self._cell(name, seed) for name, seed in cells])
                try:
                    results = replace(results, crossplay=tuple(self._crossplays(results)))
                finally:  # what the cells say is written, whatever happens afterwards
                    files = results.write(self.folder.path)
            self.observers.on_ended(results, files)
        return results

    # Before the first LM call

    def _checked_methods(self) -> list[str]:
        """Names of the methods as the tables have them, after each was seen to come as far as its first LM call.

        Raises:
            ExperimentError: One is unknown, or the baseline is not among them.
        """
        with tempfile.TemporaryDirectory(prefix="sirius-experiment-") as temporary:
            bench = self._bench(self.recipe.seeds[0], Path(temporary), tracker=None)
            entries = self.experiment.offer(bench)
            names = [canonical_name(entries, name) for name in self.recipe.methods]
            if not names or len(set(names)) < len(names):
                raise ExperimentError(
                    f"The methods are {names}, expected at least one, and none twice of {list(entries)}."
                )
            self.recipe = replace(self.recipe, baseline=canonical_name(entries, self.recipe.baseline))
            for name in names:
                self._rehearse(entries[name], bench)
        return names

    def _rehearse(self, entry: Entry, bench: Bench) -> None:
        """Compile without any LM call, so that the method's own checks speak now and not hours later."""
        split = self.splits[bench.seed]
        try:
            with Meter(Limits(calls=0)):
                entry.method.compile(bench.student, trainset=split.train, valset=split.validation)
        except BudgetExceededError:
            return

    def _begin(self) -> str:
        """Claim the folder; gives the experiment's id.

        Raises:
            RunMismatchError: It holds another experiment.
        """
        identity = self._identity()
        path = self.folder.path / "experiment.json"
        before = read_record_file(path, RESTORE)
        if before is not None and (found := find_changes(before, identity)):
            raise RunMismatchError(
                f"{str(self.folder.path)!r} holds another experiment. What differs: {'; '.join(map(str, found))}. Give "
                "this one a folder of its own (`--out`), or repeat the other one's settings."
            )
        write_text(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
        return digest(identity)[:12]

    def _identity(self) -> dict[str, Any]:
        student = self.task.build()
        plain: dict[str, Any] = {
            "format": FORMAT,
            **self.recipe.identity,
            "lm": describe(self.lm),
            "limit": self.task.limit,
            "program": describe(student, without_lms=predictor_names(student).values()),
            "metric": describe(self.task.metric),
            "test": digest([example_key(example) for example in self._test]),
            "trainer": describe(self.trainer),
        }
        return json.loads(json.dumps(to_plain(plain)))  # as it is read back

    def _started(self, id: str, cells: Sequence[tuple[str, int]]) -> Started:
        known = [cell for name, seed in cells if (cell := self._known(name, seed))]
        settings = {**self.recipe.identity, "limit": self.task.limit, "lm": self.lm.model}
        return Started(
            self.experiment.name, id, self.folder.path, self.lm.model, tuple(cells), tuple(known), to_plain(settings)
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.observers.on_stopped(error)
            raise

    # One cell

    def _cell(self, name: str, seed: int) -> Cell:
        """The finished cell from disk, or a new one, which is on disk then."""
        known = self._known(name, seed)
        if known is not None:
            return known
        self.observers.on_cell_started(name, seed)
        try:
            cell = self._measured(name, seed)
        except Exception as error:
            if not isinstance(error, SiriuSError):
                reason = redact_error(error)
                logger.error("The cell %r, seed %s, failed in a way that nobody foresaw.", name, seed, exc_info=reason)
            text = redact(f"{type(error).__name__}: {error}")
            cell = Cell(name, seed, "failed", error=text, trained=self._spent(name, seed))
        self.folder.finish(_stage(name, seed), cell.to_plain())
        self.observers.on_cell_ended(cell)
        return cell

    def _known(self, name: str, seed: int) -> Cell | None:
        """The cell from disk; a failed one is tried again.

        Raises:
            RunDamagedError: Its file is damaged.
        """
        stage = _stage(name, seed)
        plain = self.folder.finished(stage)
        if plain is None:
            return None
        try:
            cell = Cell.from_plain(plain)
        except ValueError as error:
            raise RunDamagedError(
                f"The stage {stage!r} in {str(self.folder.path)!r} is damaged: {error}. Restore its file from a "
                "backup, or delete it to have the cell measured again.",
            ) from error
        return None if cell.status == "failed" else cell

    def _measured(self, name: str, seed: int) -> Cell:
        bench = self._bench(seed, self._work(seed), self.tracker)
        program, status, trained, error = self._compiled(name, bench)
        trajectories, tested = self._tested(name, seed, program)
        _unload(program, self.lm)
        return Cell(
            name,
            seed,
            status,
            outcomes=tuple(self._outcome(e, t) for e, t in zip(self._test, trajectories, strict=True)),
            trained=trained,
            tested=tested,
            measures=self.task.measures(trajectories),
            details=_details(program),
            error=error,
        )

    def _compiled(self, name: str, bench: Bench) -> tuple[dspy.Module, Status, Spent, str]:
        """The program of a method, or what it had when its budget ended."""
        entry = self.experiment.offer(bench)[name]
        resumes = (entry.folder / "run.json").exists()
        try:
            with metered(entry.folder / _COUNT, self.recipe.budget.limits, resumes=resumes) as ledger:
                program = self._compile(entry, bench)
        except BudgetExceededError as error:
            return self._so_far(name, bench, entry), "budget", ledger.spent, str(error)
        return program, "finished", ledger.spent, ""

    def _compile(self, entry: Entry, bench: Bench) -> dspy.Module:
        split = self.splits[bench.seed]
        return entry.method.compile(bench.student, trainset=split.train, valset=split.validation)

    def _so_far(self, name: str, bench: Bench, entry: Entry) -> dspy.Module:
        """The best of the finished iterations, which takes no LM call to find, or the program as it was before."""
        finished = 0
        while RunDir(entry.folder).iteration(finished + 1) is not None:
            finished += 1
        if not finished:
            return self._compile(replace(entry, method=entry.before), bench)
        with Meter(Limits(calls=0)):
            return self._compile(self.experiment.offer(replace(bench, most_iterations=finished))[name], bench)

    def _tested(self, name: str, seed: int, program: dspy.Module) -> tuple[list[Trajectory], Spent]:
        """One run per test example; those of an interrupted test are not made again."""
        run = digest({"cell": [name, seed], **_version(program)})[:12]
        rollouts = Rollouts(self.task.metric, run=run, seed=seed, origin="validation")
        with ExperienceLibrary(self.folder.path / "tests.sqlite") as library:
            found = {trajectory.sample: trajectory for trajectory in library.trajectories(run=run)}
            tasks = [Rollout(example, place) for place, example in enumerate(self._test) if place not in found]
            path = self._work(seed) / f"{file_name(name)}.tested.json"
            with metered(path, resumes=bool(found)) as ledger:
                for task, trajectory in rollouts.run_all(program, tasks):
                    library.add(trajectory, task.example)
                    found[task.sample] = trajectory
        return [found[place] for place in range(len(self._test))], ledger.spent

    def _outcome(self, example: dspy.Example, trajectory: Trajectory) -> Outcome:
        failure = trajectory.failure
        return Outcome(
            example=trajectory.example_key,
            group=group_of(example),
            reward=trajectory.reward,
            right=trajectory.succeeded(self.recipe.sirius.threshold),
            parsed=self.task.parsed(example, trajectory),
            answer=answer_of(trajectory),
            failure=None if failure is None else f"{failure.kind}: {failure.message}",
        )

    # Games in which the methods meet

    def _crossplays(self, results: Results) -> Iterator[dict[str, Any]]:
        for table in self.recipe.crossplay:
            for seed in self.recipe.seeds:
                names = [cell.method for cell in results.cells if cell.seed == seed and cell.outcomes]
                stage = f"crossplay {table.title} seed {seed} {digest([dataclasses.asdict(table), names])[:8]}"
                found = self.folder.finished(stage)
                if found is None:
                    self.observers.on_cell_started(f"crossplay: {table.title}", seed)
                    found = self._crossplay(table, seed, names)
                    self.folder.finish(stage, found)
                yield found

    def _crossplay(self, table: CrossplayTable, seed: int, names: Sequence[str]) -> dict[str, Any]:
        """Play with the programs of finished cells, which takes no LM call to get back where methods resume."""
        bench = self._bench(seed, self._work(seed), tracker=None)
        players: dict[str, Any] = {name: self._compiled(name, bench)[0] for name in names}
        players |= {bot: bot for bot in table.bots}
        play, read = imported(table.path, "crossplay.path"), imported(table.read, "crossplay.read")
        found = play(players, read(table.game), table.games, seed, temperature=table.temperature)
        return {"title": table.title, "seed": seed, "pairings": found.to_dict(), "markdown": found.to_markdown()}

    # Places

    @property
    def _test(self) -> list[dspy.Example]:
        """The test split, which all seeds share."""
        return self.splits[self.recipe.seeds[0]].test

    def _work(self, seed: int) -> Path:
        return self.folder.path / "work" / f"seed-{seed}"

    def _spent(self, name: str, seed: int) -> Spent:
        """What a cell that failed had used."""
        entry = self.experiment.offer(self._bench(seed, self._work(seed), None))[name]
        return read_spent(entry.folder / _COUNT)

    def _bench(self, seed: int, folder: Path, tracker: Tracker | None) -> Bench:
        return Bench(self.task, self.lm, seed, folder, tracker, self.trainer)

    def _results(self, cells: Sequence[Cell]) -> Results:
        return Results(
            name=self.experiment.name,
            recipe=self.recipe,
            lm=self.lm.model,
            cells=tuple(cells),
            majority=self.task.majority(self._test),
            command=self.command,
            limit=self.task.limit,
            is_own_lm=self.is_own_lm,
        )


def _stage(name: str, seed: int) -> str:
    return f"{name} seed {seed}"


def _check_seeds(seeds: Sequence[Any]) -> None:
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ExperimentError(f"The seeds are {list(seeds)}, expected different whole numbers from 0, at least one.")


def _lm(lm: dspy.LM | str | None, recipe: Recipe) -> tuple[dspy.LM, bool]:
    """The LM, and whether it is the recipe's own."""
    if isinstance(lm, dspy.LM):
        return lm, False
    settings = {key: value for key, value in recipe.lm.items() if key != "model"}
    own = str(recipe.lm.get("model", ""))
    return lm_from(lm or own, settings, recipe.training), lm is None or lm == own


def _adapter(recipe: Recipe) -> Adapter:
    """Without DSPy's fallback to JSON: a second call with another prompt would be trained under the first one."""
    return PlainAdapter() if recipe.adapter == "plain" else dspy.ChatAdapter(use_json_adapter_fallback=False)


def _unload(program: dspy.Module, base: dspy.LM) -> None:
    """Give back the memory of trained weights, of which there will be many; those that are asked again load again."""
    trained = {lm.model: lm for predictor in predictor_names(program).values() if (lm := predictor.lm) is not None}
    for lm in trained.values():
        if lm.model != base.model and hasattr(lm, "kill"):
            with suppress(Exception):  # a server that does not unload costs memory there, and no result here
                lm.kill()


def _version(program: dspy.Module) -> dict[str, Any]:
    """What the answers of a program depend on: instructions, weights, demonstrations."""
    predictors = predictor_names(program)
    return {
        "program": program_fingerprint(program),
        "lms": {name: getattr(predictor.lm, "model", "") for name, predictor in predictors.items()},
        "demos": describe({name: predictor.demos for name, predictor in predictors.items()}),
    }


def _details(program: dspy.Module) -> dict[str, Any]:
    """How a compile of SiriuS went, as far as tables want to know."""
    results: Mapping[str, Any] | None = getattr(program, "detailed_results", None)
    if not isinstance(results, Mapping) or "iterations" not in results:
        return {}
    first, *others = results["iterations"]
    return {
        "best_iteration": results["best_iteration"],
        "validation": [first["score"], *(entry["score"] for entry in others)],
        "rows": [{agent: found["rows"] for agent, found in entry["agents"].items()} for entry in others],
        "promoted": [entry["promoted"] for entry in others],
        "repair": [{key: entry["repair"][key] for key in ("tried", "repaired", "verdicts")} for entry in others],
        "seconds": [entry["seconds"] for entry in others],
    }
