"""Runs an experiment: checks everything, measures each cell, and writes the tables.

    experiment = Experiment.from_file("recipes/laptop_chain_sum.toml")
    results = experiment.run("runs/chain_sum", methods=["prompted team", "SiriuS"], seeds=[0, 1, 2])
    print(render_markdown(results))

Every result is saved before the next step starts, so the same call resumes after any interruption: cells are in
`stages/`, test runs in `tests.sqlite`, and the work of methods in `work/`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.errors import RunDamagedError, RunMismatchError, SiriuSError
from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.events import CellEnded, CellStarted, ExperimentEnded, ExperimentStarted
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.experiment.measure import Measurement, Offer
from sirius_dspy.experiment.methods import canonical_name, list_methods
from sirius_dspy.experiment.recipe import CrossplayTable, Recipe
from sirius_dspy.experiment.results import Results
from sirius_dspy.experiment.task import Task, import_path
from sirius_dspy.experiment.write import write_results
from sirius_dspy.identity.describe import describe
from sirius_dspy.identity.parts import FORMAT, Change, find_changes
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.program import predictor_names
from sirius_dspy.redact import redact, redact_error
from sirius_dspy.tracking.events import Tracker, Trackers
from sirius_dspy.training.trainers import Trainer
from sirius_dspy.trajectory import digest, example_key, to_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A recipe that can be run.

    Attributes:
        recipe: Recipe of the experiment.
        name: Name for titles and MLflow.
        task: The module or object with `build`, `examples` and `metric`; by default, the recipe names it.
        offer: Returns the available methods. To add your own:
            `lambda bench: list_methods(bench) | {"mine": Entry(Mine(bench.task.metric), PromptedTeam(), ...)}`.
    """

    recipe: Recipe
    name: str = "experiment"
    task: Any = None
    offer: Offer = field(default=list_methods)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a recipe, by its path or by its name in `recipes/`.

        Raises:
            ExperimentError: The file does not exist, or is not a recipe.
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
        tracker: Tracker | None = None,
        trainer: Trainer | None = None,
        command: str = "",
        only_finished: bool = False,
    ) -> Results:
        """Run all unfinished cells, and return the results of all cells.

        Args:
            folder: Folder of the experiment; the same call resumes from it. More methods and seeds can be added.
            lm: LM of all agents, as an object or an id (see `lm_from`); the recipe's by default.
            methods: Names of methods; the recipe's by default.
            seeds: Seeds; the recipe's by default.
            limit: Maximum number of examples of each split, for a quick trial.
            files: Argument of the task's `examples` to a local data file.
            tracker: Receives the events of cells and of their compiles.
            trainer: Trainer of the agents; `ProviderTrainer()` by default.
            command: Command line of the user, for the head of the tables.
            only_finished: Whether to run nothing, and to write the tables of the cells that are finished.

        Raises:
            ExperimentError: The recipe cannot be run as requested, or nothing is finished; no LM was called.
            RunMismatchError: The folder belongs to another experiment, or another process uses it.
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
        measurement = Measurement(
            task=task,
            offer=self.offer,
            lm=model,
            folder=Path(folder),
            splits={seed: task.split(seed) for seed in recipe.seeds},
            tracker=tracker,
            trainer=trainer,
        )
        trackers = Trackers([tracker] if tracker else [])
        run = _Run(self.name, recipe, measurement, trackers, command, is_own, only_finished)
        with dspy.context(adapter=_adapter(recipe), num_threads=recipe.num_threads, disable_history=True):
            return run.all()


@dataclass
class _Run:
    """One call of `Experiment.run`."""

    name: str
    recipe: Recipe
    measurement: Measurement
    tracker: Trackers
    command: str
    is_own_lm: bool
    only_finished: bool

    def __post_init__(self) -> None:
        self.task, self.lm = self.measurement.task, self.measurement.lm
        self.folder = RunDir(self.measurement.folder, "experiment.json")

    def all(self) -> Results:
        """Check everything, run all cells, and write the results."""
        names = self._check_methods()
        with self.folder.locked():
            run, _ = self.folder.begin(self._identity(), compare=_refuse_changes)
            cells = self._choose_cells(names)
            self._narrow_to(cells)
            self.tracker.on_experiment_started(self._start_event(run, cells))
            try:
                results, files = self._work(cells)
            except BaseException as error:
                status = "failed" if isinstance(error, Exception) else "interrupted"
                message = f"{type(error).__name__}: {error}"
                self.tracker.on_experiment_ended(ExperimentEnded(status, error=message))
                raise
            self.tracker.on_experiment_ended(ExperimentEnded("finished", results, files))
        return results

    def _work(self, cells: Sequence[tuple[str, int]]) -> tuple[Results, tuple[Path, ...]]:
        """Run all cells, then the games between their programs; write the results even if a game fails."""
        results = self._results([self._cell(name, seed) for name, seed in cells])
        try:
            results = replace(results, crossplay=tuple(self._crossplays(results)))
        finally:
            files = write_results(results, self.folder.path)
        return results, files

    # Before the first LM call

    def _choose_cells(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """Return the cells of the tables.

        Raises:
            ExperimentError: Only finished cells are asked for, and there are none.
        """
        cells = [(name, seed) for name in names for seed in self.recipe.seeds]
        if not self.only_finished:
            return cells
        finished = [cell for cell in cells if self._read_cell(*cell) is not None]
        if not finished:
            raise ExperimentError(
                f"No cell of the methods {list(names)} and the seeds {list(self.recipe.seeds)} is finished in "
                f"{str(self.folder.path)!r}. Run the experiment first, or name other methods and seeds."
            )
        return finished

    def _narrow_to(self, cells: Sequence[tuple[str, int]]) -> None:
        """Leave methods and seeds without a cell out of the tables."""
        methods = tuple(dict.fromkeys(name for name, _ in cells))
        seeds = tuple(seed for seed in self.recipe.seeds if any(seed == other for _, other in cells))
        self.recipe = replace(self.recipe, methods=methods, seeds=seeds)

    def _check_methods(self) -> list[str]:
        """Return the names of the methods as they are in tables, after compiling each up to its first LM call.

        Raises:
            ExperimentError: A method is unknown, or the baseline is missing.
        """
        with tempfile.TemporaryDirectory(prefix="sirius-experiment-") as temporary:
            bench = self.measurement.bench(self.recipe.seeds[0], Path(temporary))
            entries = self.measurement.offer(bench)
            names = [canonical_name(entries, name) for name in self.recipe.methods]
            if not names or len(set(names)) < len(names):
                raise ExperimentError(
                    f"The methods are {names}, expected at least one, without duplicates, of {list(entries)}."
                )
            self.recipe = replace(self.recipe, baseline=canonical_name(entries, self.recipe.baseline))
            for name in () if self.only_finished else names:
                self.measurement.rehearse(entries[name], bench)
        return names

    def _identity(self) -> dict[str, Any]:
        student = self.task.build()
        plain: dict[str, Any] = {
            "format": FORMAT,
            **self.recipe.identity,
            "lm": describe(self.lm),
            "limit": self.task.limit,
            "program": describe(student, without_lms=predictor_names(student).values()),
            "metric": describe(self.task.metric),
            "test": digest([example_key(example) for example in self.measurement.test]),
            "trainer": describe(self.measurement.trainer),
        }
        return json.loads(json.dumps(to_plain(plain)))  # as it is read back

    def _start_event(self, run: str, cells: Sequence[tuple[str, int]]) -> ExperimentStarted:
        return ExperimentStarted(
            name=self.name,
            id=run,
            folder=self.folder.path,
            lm=self.lm.model,
            cells=tuple(cells),
            finished=tuple(cell for name, seed in cells if (cell := self._read_cell(name, seed))),
            settings=to_plain({**self.recipe.identity, "limit": self.task.limit, "lm": self.lm.model}),
        )

    # One cell

    def _cell(self, name: str, seed: int) -> Cell:
        """Return the finished cell from disk, or measure and save it."""
        finished = self._read_cell(name, seed)
        if finished is not None:
            return finished
        self.tracker.on_cell_started(CellStarted(name, seed))
        try:
            cell = self.measurement.measure(name, seed)
        except Exception as error:
            if not isinstance(error, SiriuSError):
                reason = redact_error(error)
                logger.error("The cell %r, seed %s, failed with an unexpected error.", name, seed, exc_info=reason)
            text = redact(f"{type(error).__name__}: {error}")
            cell = Cell(name, seed, "failed", error=text, trained=self.measurement.spent(name, seed))
        self.folder.finish(_stage(name, seed), cell.to_plain())
        self.tracker.on_cell_ended(CellEnded(cell))
        return cell

    def _read_cell(self, name: str, seed: int) -> Cell | None:
        """Read a finished cell from disk; a failed one does not count.

        Raises:
            RunDamagedError: The file of the cell is damaged.
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
                "backup, or delete it to measure the cell again.",
            ) from error
        return None if cell.status == "failed" else cell

    # Games between methods

    def _crossplays(self, results: Results) -> Iterator[dict[str, Any]]:
        for table in self.recipe.crossplay:
            for seed in self.recipe.seeds:
                names = [cell.method for cell in results.cells if cell.seed == seed and cell.outcomes]
                stage = f"crossplay {table.title} seed {seed} {digest([dataclasses.asdict(table), names])[:8]}"
                played = self.folder.finished(stage)
                if played is None and self.only_finished:
                    continue
                if played is None:
                    self.tracker.on_cell_started(CellStarted(f"crossplay: {table.title}", seed))
                    played = self._crossplay(table, seed, names)
                    self.folder.finish(stage, played)
                yield played

    def _crossplay(self, table: CrossplayTable, seed: int, names: Sequence[str]) -> dict[str, Any]:
        """Play with the programs of finished cells; methods that resume restore them without LM calls."""
        bench = self.measurement.bench(seed)
        players: dict[str, Any] = {name: self.measurement.compile(name, bench)[0] for name in names}
        players |= {bot: bot for bot in table.bots}
        play, read = import_path(table.path, "crossplay.path"), import_path(table.read, "crossplay.read")
        played = play(players, read(table.game), table.games, seed, temperature=table.temperature)
        return {"title": table.title, "seed": seed, "pairings": played.to_dict(), "markdown": played.to_markdown()}

    def _results(self, cells: Sequence[Cell]) -> Results:
        return Results(
            name=self.name,
            recipe=self.recipe,
            lm=self.lm.model,
            cells=tuple(cells),
            majority=self.task.majority(self.measurement.test),
            command=self.command,
            limit=self.task.limit,
            is_own_lm=self.is_own_lm,
        )


def _refuse_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], place: str, accepted: Sequence[str]
) -> list[Change]:
    """Refuse to resume another experiment; nothing may differ, so `accepted` is empty.

    Raises:
        RunMismatchError: Something differs; the message lists it.
    """
    if differing := find_changes(before, now):
        raise RunMismatchError(
            f"{place!r} holds another experiment. What differs: {'; '.join(map(str, differing))}. Choose "
            "another folder (`--out`), or use the settings of that experiment."
        )
    return []


def _stage(name: str, seed: int) -> str:
    return f"{name} seed {seed}"


def _check_seeds(seeds: Sequence[Any]) -> None:
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ExperimentError(f"The seeds are {list(seeds)}, expected at least one, all different integers from 0.")


def _lm(lm: dspy.LM | str | None, recipe: Recipe) -> tuple[dspy.LM, bool]:
    """Return the LM, and whether it is the recipe's."""
    if isinstance(lm, dspy.LM):
        return lm, False
    settings = {key: value for key, value in recipe.lm.items() if key != "model"}
    model = str(recipe.lm.get("model", ""))
    return lm_from(lm or model, settings, recipe.training), lm is None or lm == model


def _adapter(recipe: Recipe) -> Adapter:
    """Return the adapter without DSPy's JSON fallback, whose answers would be trained with the wrong prompt."""
    return PlainAdapter() if recipe.adapter == "plain" else dspy.ChatAdapter(use_json_adapter_fallback=False)
