"""The task of a recipe: its programs, data, metric and parser of answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
from dspy.signatures import make_signature

from sirius_dspy.examples import answer_of, check_examples
from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.recipe import Recipe, SingleTable
from sirius_dspy.imports import FAILURES, import_at
from sirius_dspy.program import predictor_names
from sirius_dspy.repair.demos import RepairDemos
from sirius_dspy.trajectory import Trajectory, example_key

Demos = Mapping[str, Sequence[dspy.Example]]

_NEEDED = ("build", "examples", "metric")


@dataclass(frozen=True)
class Split:
    """The examples of one seed."""

    train: list[dspy.Example]
    validation: list[dspy.Example]
    test: list[dspy.Example]


@dataclass(frozen=True)
class Task:
    """The task of a recipe, imported and ready to use.

    Attributes:
        recipe: Recipe with the arguments of programs and data.
        source: The module or object with `build`, `examples` and `metric`.
        limit: Maximum number of examples of each split.
        files: Argument of `examples` to a local file.
    """

    recipe: Recipe
    source: Any
    limit: int | None = None
    files: Mapping[str, str | Path] = field(default_factory=dict)

    @classmethod
    def of(
        cls, recipe: Recipe, source: Any = None, *, limit: int | None = None, files: Mapping[str, str | Path]
    ) -> Task:
        """Import the task.

        Args:
            recipe: Recipe that names the task, unless `source` is given.
            source: The module or object itself.
            limit: Maximum number of examples of each split.
            files: Argument of `examples` in `recipe.task.data` to a local file.

        Raises:
            ExperimentError: It cannot be imported, lacks a part, or accepts no such file, or the limit is not an
                integer from 1.
        """
        task = import_path(recipe.task.path, "task") if source is None else source
        if missing := [name for name in _NEEDED if not hasattr(task, name)]:
            raise ExperimentError(f"The task {recipe.task.path or task!r} lacks {missing}; it needs {_NEEDED}.")
        if limit is not None and limit < 1:
            raise ExperimentError(f"The limit is {limit!r}, expected an integer from 1.")
        if unknown := sorted(set(files) - set(recipe.task.data)):
            raise ExperimentError(f"The recipe accepts no data file {unknown}, only {list(recipe.task.data)}.")
        return cls(recipe, task, limit, dict(files))

    @property
    def metric(self) -> Callable[..., Any]:
        """The metric of the task."""
        metric: Callable[..., Any] = self.source.metric
        return metric

    def build(self, **more: Any) -> dspy.Module:
        """Build the team, untrained and without LMs; `more` overrides the recipe's arguments."""
        return self._call("build", {**self.recipe.task.build, **more})

    def single(self, table: SingleTable) -> dspy.Module:
        """Build a single agent of the recipe."""
        if table.signature:
            return dspy.Predict(make_signature(table.signature, table.instructions or None))
        return self.build(**table.build)

    def demonstrations(self, program: dspy.Module, build: Mapping[str, Any] | None = None) -> Demos:
        """Return the demonstrations for a team by predictor, from the recipe or from the task.

        Demonstrations for missing predictors are left out, because a variant may have fewer predictors.

        Args:
            program: The team.
            build: The variant's arguments of `build`, which override the recipe's. The task's `demonstrations` gets
                those of both that it accepts.
        """
        demos = {name: _examples(rows) for name, rows in self.recipe.demonstrations.items()}
        make = getattr(self.source, "demonstrations", None)
        demos = demos or (
            make(**_accepted(make, {**self.recipe.task.build, **(build or {})})) if callable(make) else {}
        )
        return {name: demos[name] for name in predictor_names(program) if demos.get(name)}

    def single_demonstrations(self, program: dspy.Module, table: SingleTable) -> Demos:
        """Return the demonstrations for a single agent, from the recipe or from the task."""
        name = next(iter(predictor_names(program)))
        if table.demonstrations:
            return {name: _examples(table.demonstrations)}
        make = getattr(self.source, "demonstrations", None)
        given = {**self.recipe.task.build, **table.build, "single": True}
        arguments = _accepted(make, given) if callable(make) else {}
        demos = make(**arguments) if callable(make) and "single" in arguments else {}
        return {name: demos[name]} if demos.get(name) else {}

    def repair_demonstrations(self) -> RepairDemos:
        """Return the task's demonstrations of repairs.

        Raises:
            ExperimentError: The task has none.
        """
        if not hasattr(self.source, "repair_demonstrations"):
            raise ExperimentError("The task has no `repair_demonstrations()`. Set `repair.demonstrations` to false.")
        demos: RepairDemos = self.source.repair_demonstrations()
        return demos

    def split(self, seed: int) -> Split:
        """Return the examples for one seed.

        Raises:
            ExperimentError: A question of the test split is also in another split.
            DatasetError: The task cannot provide the examples.
        """
        recipe = self.recipe
        training_seed = seed if recipe.resample_training else recipe.data_seed
        train = self._examples("train", recipe.sizes.train, training_seed)
        validation = self._examples("validation", recipe.sizes.validation, training_seed)
        test = self._examples("test", recipe.sizes.test, recipe.data_seed)
        seen = {group_of(example) for example in [*train, *validation]}
        if shared := sorted(group_of(example) for example in test if group_of(example) in seen):
            raise ExperimentError(
                f"{len(shared)} questions of the test split are also in training or validation, such as {shared[0]!r}. "
                "Set `resample_training` to false: the splits of this task depend on the seed."
            )
        return Split(train, validation, test)

    def majority(self, examples: Sequence[dspy.Example]) -> float | None:
        """Return the score of the best trivial rule on these examples; `None` if it is unknown."""
        if not hasattr(self.source, "majority_baseline"):
            return None
        return float(self.source.majority_baseline(examples))

    def is_readable(self, example: dspy.Example, trajectory: Trajectory) -> bool:
        """Return whether the answer of a run can be parsed."""
        if trajectory.failure is not None:
            return False
        if not self.recipe.task.parse:
            return True
        parse = import_path(self.recipe.task.parse, "task.parse")
        text = str(answer_of(trajectory) or "")
        answer = parse(text) if _num_required(parse) == 1 else parse(example, text)
        return answer is not None

    def measures(self, trajectories: Sequence[Trajectory], examples: Sequence[dspy.Example]) -> dict[str, float]:
        """Return the further measurements of the recipe; empty for runs that its report does not support."""
        if not self.recipe.task.report:
            return {}
        report = import_path(self.recipe.task.report, "task.report")
        try:
            reported = report(trajectories) if _num_required(report) == 1 else report(trajectories, examples)
        except (KeyError, TypeError):  # e.g. a single agent has no judge
            return {}
        return {name: float(getattr(reported, name)) for name in self.recipe.task.measures}

    def check(self) -> None:
        """Check all import paths.

        Raises:
            ExperimentError: A path cannot be imported; the message names the setting.
        """
        table = self.recipe.task
        sirius = self.recipe.sirius
        named = {"task.parse": table.parse, "task.report": table.report}
        named |= {"sirius.curator": sirius.curator, "sirius.difficulty": sirius.difficulty}
        for play in self.recipe.crossplay:
            named |= {"crossplay.path": play.path, "crossplay.read": play.read}
            import_path(play.read, "crossplay.read")(play.game)  # raises if the game does not exist
        for setting, path in named.items():
            if path:
                import_path(path, setting)

    def _examples(self, split: str, size: int | None, seed: int) -> list[dspy.Example]:
        arguments = {**self.recipe.task.examples, **self.files, "split": split, "seed": seed}
        examples = self._call("examples", arguments | ({} if size is None else {"size": size}))
        return check_examples(examples, split)[: self.limit]

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        function = getattr(self.source, name)
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise ExperimentError(f"`{name}` of the task was given {dict(arguments)!r}: {error}.") from error
        return function(**arguments)


def import_path(path: str, setting: str) -> Any:
    """Import a module, or the object `module:name`.

    Raises:
        ExperimentError: It cannot be imported; the message names the setting.
    """
    try:
        return import_at(path)
    except FAILURES as error:
        raise ExperimentError(
            f"`{setting}` is {path!r}, which cannot be imported ({error}). Pass `module` or `module:name`. "
            "Modules may be in the working directory; those of `programs` come with a clone of the repository."
        ) from error


def group_of(example: dspy.Example) -> str:
    """Return a key that is equal for questions that belong together, by default for equal examples."""
    return str(example.get("dspy_key") or example_key(example))


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[dspy.Example]:
    return [dspy.Example(**row) for row in rows]


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a function accepts."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _num_required(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters)
