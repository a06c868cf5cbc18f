"""What a user chooses for a compile, apart from program and data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.credit.credit import Credit
from sirius_dspy.errors import SettingsError
from sirius_dspy.identity.parts import PARTS, part_of
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.budget import Budget
from sirius_dspy.optimizer.gate import Gate
from sirius_dspy.optimizer.schedule import Schedule
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.suitable import SuitableAugmenter
from sirius_dspy.running.executor import Executor
from sirius_dspy.running.metric import Metric
from sirius_dspy.running.patience import Patience
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.curate import Curator
from sirius_dspy.training.trainers import Trainer

Demos = Mapping[str, Sequence[dspy.Example]]
"""Predictor name to demonstrations."""


@dataclass(frozen=True)
class Collect:
    """How the program is run on the trainset in each iteration.

    Attributes:
        samples: Runs per example (max_sol in the paper). The first uses the LMs as they are, the others `temperature`.
        temperature: Temperature of all samples after the first.
        until_solved: Whether to stop sampling an example at its first success. This is cheaper; without it, training
            sees more variety.
        demos: Predictor name to demonstrations, for models that are too weak to succeed without. They are shown while
            collecting to agents that still have the weights they came with, and never appear in a training prompt.
        warm_start: Whether to fine-tune each agent on its demonstrations first, so that the program that collects in
            the first iteration has learned from them instead of reading them. A small model learns more from a dozen
            examples than it can read from them. The gate decides about these weights as about all others.
        keep_demos: Whether the rows of a warm start are in the training set of every iteration.
        schedule: Chooses the examples of each iteration, such as `EasyToHard()`; `None` runs all of them.
    """

    samples: int = 4
    temperature: float = 1.0
    until_solved: bool = False
    demos: Demos | None = None
    warm_start: bool = False
    keep_demos: bool = True
    schedule: Schedule | None = None

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("Collect", vars(self), _COLLECT)
        if self.samples > 1 and not self.temperature > 0:
            raise SettingsError(
                f"`temperature` of Collect is {self.temperature!r}, so all {self.samples} samples of an example would "
                "be the same. Choose a temperature above 0, or `Collect(samples=1)`."
            )
        if self.warm_start and not any((self.demos or {}).values()):
            raise SettingsError(
                "`warm_start` of Collect is True, but there are no demonstrations to fine-tune on. Pass "
                "`Collect(demos={'solver': [example, ...]}, warm_start=True)`."
            )
        if self.schedule is not None:
            self.schedule.check()


_COLLECT = {
    "samples": checks.whole(1),
    "temperature": checks.number(0),
    "until_solved": checks.FLAG,
    "demos": checks.optional(checks.DEMOS_BY_NAME),
    "warm_start": checks.FLAG,
    "keep_demos": checks.FLAG,
    "schedule": checks.optional(checks.instance(Schedule, hint=", such as `EasyToHard()`")),
}


@dataclass(frozen=True)
class SharedWeights:
    """Give all predictors that are not frozen one set of weights: the paper's ablation with one model for all roles.

    Attributes:
        name: Name of the agent that owns the weights.
    """

    name: str = "mixed"

    def check(self) -> None:
        """Refuse a name that is none.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("SharedWeights", vars(self), {"name": checks.TEXT})


AgentGroups = Mapping[str, Sequence[str]] | SharedWeights
"""Agent name to the predictors that share its weights, or all of them together."""


@dataclass(frozen=True)
class Settings:
    """The settings of one `SiriuS` object when its `compile` or `plan` was called; see there."""

    metric: Metric
    threshold: float
    iterations: int
    collect: Collect
    credit: Credit | None
    augmenter: Augmenter | None
    curator: Curator
    trainer: Trainer
    gate: Gate | None
    agents: AgentGroups | None
    frozen: Sequence[str]
    budget: Budget | None
    patience: Patience
    tracker: Tracker | None
    library: ExperienceLibrary | None
    run_dir: str | Path | None
    accept_changes: Sequence[str]
    num_threads: int | None
    executor: Executor | None
    seed: int

    def resolve(self, lms: Iterable[dspy.LM]) -> Settings:
        """Return the settings with the augmenter that suits the LMs of the trained agents, if none was chosen."""
        if not isinstance(self.augmenter, SuitableAugmenter):
            return self
        return replace(self, augmenter=self.augmenter.for_lms(lms))

    def check(self) -> None:
        """Refuse settings of the wrong kind, and those that contradict each other.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("SiriuS", self.to_dict(), _SETTINGS)
        self.collect.check()
        self.patience.check()
        self.curator.check()
        if self.credit is not None:
            self.credit.check()
        if isinstance(self.agents, SharedWeights):
            self.agents.check()
        if self.budget is not None:
            self.budget.check()
        if self.gate is not None:
            self.gate.check()
        if self.executor is not None:
            self.executor.check()
        if unknown := sorted(path for path in self.accept_changes if part_of(path) not in PARTS):
            raise SettingsError(
                f"`accept_changes` names {unknown}; the parts of a compile are {sorted(PARTS)}. Copy the names from "
                "the `RunMismatchError`."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, their objects as they are."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def scalars(self) -> dict[str, Any]:
        """The settings that trackers show as parameters, those of `collect`, curator and trainer among them."""
        of_parts = {"cumulative": self.curator.cumulative, "train_from": self.trainer.train_from}
        simple = {**self.to_dict(), **vars(self.collect), **of_parts}
        return {name: value for name, value in simple.items() if isinstance(value, str | bool | int | float)}

    @property
    def broken_reward(self) -> float:
        """What stands for the reward of a run that broke.

        It is below the threshold, so that SQL and exports that compare rewards with it count no broken run.
        """
        return 0.0 if self.threshold > 0 else self.threshold - 1.0


_SETTINGS = {
    "metric": checks.METRIC,
    "threshold": checks.number(),
    "iterations": checks.whole(1),
    "collect": checks.instance(Collect, hint=", such as `Collect(samples=4)`"),
    "credit": checks.optional(checks.instance(Credit, hint=", such as `Credit(alternatives=4)`")),
    "augmenter": checks.optional(checks.instance(Augmenter, hint=", such as `CriticAugmenter()`")),
    "curator": checks.instance(Curator, hint=", such as `Curator()`"),
    "trainer": checks.instance(Trainer, hint=", such as `ProviderTrainer()`"),
    "gate": checks.optional(checks.instance(Gate, hint=", such as `ValsetGate()`")),
    "agents": checks.optional(
        checks.either(
            checks.instance(SharedWeights),
            checks.table(
                "agent names with lists of predictor names, none empty, such as `{'team': ['solver', 'critic']}`",
                lambda names: bool(names) and checks.NAMES.fits(names),
            ),
        )
    ),
    "frozen": checks.NAMES,
    "budget": checks.optional(checks.instance(Budget, hint=", such as `Budget(calls=10_000)`")),
    "patience": checks.instance(Patience, hint=", such as `Patience(retries=4)`"),
    "tracker": checks.optional(checks.instance(Tracker, hint="; for several, `Trackers([one, another])`")),
    "library": checks.optional(checks.instance(ExperienceLibrary, hint=", e.g. `ExperienceLibrary('runs.sqlite')`")),
    "run_dir": checks.optional(checks.PATH),
    "accept_changes": checks.NAMES,
    "num_threads": checks.optional(checks.whole(1)),
    "executor": checks.optional(checks.instance(Executor, hint=", such as `ProcessExecutor(4)`")),
    "seed": checks.SEED,
}
"""The kind that each setting must be of."""
