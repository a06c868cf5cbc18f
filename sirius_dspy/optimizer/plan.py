"""What a compile will do: everything that was checked, and what each stage will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dspy
from rich.console import Console
from rich.table import Table

from sirius_dspy.errors import LibraryError
from sirius_dspy.examples import keys_digest, unique
from sirius_dspy.identity.describe import describe, describe_lms
from sirius_dspy.identity.parts import FORMAT
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.estimate import Estimator, StagePlan, total
from sirius_dspy.optimizer.estimate_jobs import JobPlan, tell_jobs
from sirius_dspy.optimizer.prepare import Agents, adapter_name
from sirius_dspy.optimizer.ranges import Range
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.optimizer.settings import Settings
from sirius_dspy.program import predictor_names
from sirius_dspy.repair.critic_training import CRITIC
from sirius_dspy.trajectory import example_key

PRINTED_WIDTH = 110
"""Characters of a printed plan."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A compile that was checked and has not begun. Print it, or look at its parts; nothing was paid for.

    Attributes:
        settings: Those of the optimizer.
        student: The program.
        trainset: Examples to learn from.
        valset: Examples that decide what is kept.
        teachers: Programs that make the runs of the first iteration.
        agents: Agent name to the predictors that share its weights.
        frozen: Agents that are not trained.
        start: Agent name to the LM that it starts from.
        adapter: DSPy's adapter, which writes the prompts.
        run_dir: Where everything will be kept.
    """

    settings: Settings
    student: dspy.Module
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example]
    teachers: Sequence[dspy.Module]
    agents: Agents
    frozen: frozenset[str]
    start: Mapping[str, dspy.LM]
    adapter: dspy.Adapter
    run_dir: RunDir

    @cached_property
    def unique_trainset(self) -> Mapping[str, dspy.Example]:
        """The trainset by content key: equal examples are run once."""
        return unique(self.trainset)

    @cached_property
    def unique_valset(self) -> Mapping[str, dspy.Example]:
        """The valset by content key."""
        return unique(self.valset)

    @cached_property
    def valset_keys(self) -> tuple[str, ...]:
        """The content key of each example of the valset, in its order; every evaluation looks its runs up by them."""
        return tuple(example_key(example) for example in self.valset)

    @property
    def trained(self) -> Agents:
        """The agents that will be trained."""
        return {agent: names for agent, names in self.agents.items() if agent not in self.frozen}

    @property
    def trainable_lms(self) -> dict[str, dspy.LM]:
        """Name of each agent that will be trained, the critic among them, to the LM that it starts from."""
        augmenter = self.settings.augmenter
        critic = None if augmenter is None else augmenter.learning_critic()
        return {agent: self.start[agent] for agent in self.trained} | ({} if critic is None else {CRITIC: critic.lm})

    @property
    def editable(self) -> frozenset[str]:
        """Predictors whose steps may be repaired: those of trained agents."""
        return frozenset(name for names in self.trained.values() for name in names)

    @property
    def lms(self) -> dict[str, str]:
        """Agent name to the id of the LM that it starts from."""
        return {agent: lm.model for agent, lm in self.start.items()}

    @property
    def prices(self) -> Mapping[str, tuple[float, float]]:
        """The user's own prices."""
        return {} if self.settings.budget is None else self.settings.budget.prices

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes two compiles the same; `iterations` is left out, so that a finished one can be prolonged."""
        settings, predictors = self.settings, predictor_names(self.student)
        return {
            "format": FORMAT,
            "program": describe(self.student, without_lms=predictors.values()),
            "lms": describe_lms(predictors),
            "demos": {name: describe(predictor.demos) for name, predictor in predictors.items()},
            "metric": describe(settings.metric),
            "settings": {"threshold": settings.threshold, "seed": settings.seed},
            "collect": describe(settings.collect),
            "agents": {agent: list(names) for agent, names in self.agents.items()},
            "frozen": sorted(self.frozen),
            "adapter": adapter_name(self.adapter),
            "adapter_settings": describe(self.adapter),
            "credit": describe(settings.credit),
            "augmenter": describe(settings.augmenter),
            "curator": describe(settings.curator),
            "trainer": describe(settings.trainer.trains_like),
            "gate": describe(settings.gate),
            "teachers": [describe(program) for program in self.teachers],
            "trainset": keys_digest(self.trainset),
            "valset": keys_digest(self.valset),
        }

    @cached_property
    def stages(self) -> tuple[StagePlan, ...]:
        """What each stage takes: by earlier runs of the program in the library, else by the program itself.

        Programs that loop or branch, and repairs, can only be told from earlier runs; without any, ranges are wide.
        """
        library = self._library()
        try:
            return tuple(Estimator(self, library).stages())
        finally:
            if library is not None:
                library.close()

    @property
    def total(self) -> Mapping[str, Range | None]:
        """`calls`, `tokens`, `seconds` and `usd` of the whole compile; `None` where a part is unknown."""
        return total(self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, without the program and the examples."""
        return {
            "program": type(self.student).__name__,
            "run_dir": str(self.run_dir.path),
            "agents": {agent: list(names) for agent, names in self.agents.items()},
            "trained": list(self.trained),
            "lms": self.lms,
            "num_train": len(self.unique_trainset),
            "num_val": len(self.unique_valset),
            "stages": [_stage_dict(stage) for stage in self.stages],
            "total": {name: _range_dict(value) for name, value in self.total.items()},
        }

    def __str__(self) -> str:
        console = Console(width=PRINTED_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip() + "\n"

    def table(self) -> Table:
        """The plan as a table of Rich."""
        jobs = [job for stage in self.stages for job in stage.jobs]
        trained = ", ".join(f"{agent} ({self.start[agent].model})" for agent in self.trained)
        table = Table(
            title=f"{type(self.student).__name__}: {len(self.unique_trainset)} training examples, "
            f"{len(self.unique_valset)} for validation",
            caption="\n".join([f"Trains {trained}. Everything is kept in {self.run_dir.path}.", *tell_jobs(jobs)]),
            caption_justify="left",
        )
        for column in ("Iteration", "Stage", "Units", "LM calls", "Tokens", "Seconds", "US dollars"):
            table.add_column(column, justify="left" if column == "Stage" else "right")
        for stage in self.stages:
            table.add_row(str(stage.iteration), stage.stage, str(stage.units), *_cells(vars(stage)))
        table.add_section()
        table.add_row("", "all", "", *_cells(self.total))
        return table

    def _library(self) -> ExperienceLibrary | None:
        """The library, if there is one already; a plan creates nothing."""
        try:
            return self.settings.library or ExperienceLibrary.existing(self.run_dir.library)
        except LibraryError:
            return None


def _cells(values: Mapping[str, Any]) -> list[str]:
    usd, seconds = values["usd"], values["seconds"]
    money = "unknown" if usd is None else f"{usd.likely:,.2f}" if usd.high else "0"
    return [str(values["calls"]), str(values["tokens"]), "unknown" if seconds is None else str(seconds), money]


def _range_dict(value: Range | None) -> dict[str, float] | None:
    return None if value is None else dict(vars(value))


def _stage_dict(stage: StagePlan) -> dict[str, Any]:
    ranges = {name: _range_dict(getattr(stage, name)) for name in ("units", "calls", "tokens", "seconds", "usd")}
    return {"iteration": stage.iteration, "stage": stage.stage, **ranges, "jobs": list(map(_job_dict, stage.jobs))}


def _job_dict(job: JobPlan) -> dict[str, Any]:
    ranges = {name: _range_dict(getattr(job, name)) for name in ("rows", "row_tokens", "tokens", "usd")}
    return {"agent": job.agent, "lm": job.lm, "epochs": job.epochs, "price": job.price, **ranges}
