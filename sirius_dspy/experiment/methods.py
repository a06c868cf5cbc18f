"""The methods that a recipe can name, as objects that are ready to compile. Creating them is cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.baselines import (
    GEPA,
    BootstrapFinetune,
    MajorityVote,
    Method,
    MIPROv2,
    PromptedTeam,
    SingleAgent,
    ablations,
    star,
)
from sirius_dspy.baselines.ablations import with_start
from sirius_dspy.credit.credit import Credit
from sirius_dspy.experiment.altered import OtherProgram, UntrainedAgent
from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.experiment.recipe import Recipe, SingleTable, SiriusTable, StarTable
from sirius_dspy.experiment.task import Demos, Task, import_path
from sirius_dspy.files import file_name
from sirius_dspy.local import LocalLM
from sirius_dspy.optimizer import prepare
from sirius_dspy.optimizer.gate import ValsetGate
from sirius_dspy.optimizer.schedule import EasyToHard
from sirius_dspy.optimizer.settings import Collect
from sirius_dspy.optimizer.sirius import SiriuS
from sirius_dspy.program import predictor_names
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.repair.hint import HintAugmenter
from sirius_dspy.repair.label import LabelAugmenter
from sirius_dspy.repair.ladder import LadderAugmenter
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.repair.resample import ResampleAugmenter
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.curate import Curator
from sirius_dspy.training.preferences import PreferenceTrainer
from sirius_dspy.training.trainers import ProviderTrainer, Trainer

PREFIX = "SiriuS: "
"""Prefix of the names of ablations."""


@dataclass(frozen=True)
class Bench:
    """The inputs of all methods for one seed.

    Attributes:
        task: The task with its recipe.
        lm: LM of all agents.
        seed: Seed of sampling and training.
        folder: Folder below which methods keep their work.
        tracker: Receives the events of compiles of SiriuS and STaR.
        trainer: Trainer of the agents; `ProviderTrainer()` by default.
        most_iterations: Number of finished iterations if the budget ended the work, otherwise `None`.
    """

    task: Task
    lm: dspy.LM
    seed: int
    folder: Path
    tracker: Tracker | None = None
    trainer: Trainer | None = None
    most_iterations: int | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe of the task."""
        return self.task.recipe

    @property
    def chosen_trainer(self) -> Trainer:
        """Return the trainer of all methods; a local LM has its training settings itself."""
        train_kwargs = {} if isinstance(self.lm, LocalLM) else dict(self.recipe.training)
        return self.trainer or ProviderTrainer(train_kwargs)

    @cached_property
    def student(self) -> dspy.Module:
        """Build the untrained team with the LM."""
        team = self.task.build()
        team.set_lm(self.lm)
        return team


@dataclass(frozen=True)
class Entry:
    """A method in an experiment.

    Attributes:
        method: Method that creates the program.
        before: Method whose program is tested if the budget ends before the method has a result.
        folder: Folder of its work. Methods that share a folder, such as SiriuS and its variants with one untrained
            agent, share the cost.
    """

    method: Method
    before: Method
    folder: Path


def list_methods(bench: Bench) -> dict[str, Entry]:
    """Return all available methods for a task by name.

    Raises:
        ExperimentError: The recipe describes a method that cannot be created.
        UnpreparedProgramError: The agents of the recipe do not fit the program.
    """
    entries = {**_single_methods(bench), **_team_methods(bench, {}, bench.folder)}
    for name, variant in bench.recipe.variants.items():
        program = bench.task.build(**variant.build)
        entry = choose_method(_team_methods(bench, variant.build, bench.folder / file_name(name)), variant.method)
        entries[name] = dataclasses.replace(
            entry, method=OtherProgram(program, entry.method), before=OtherProgram(program, entry.before)
        )
    return entries


def choose_method(entries: Mapping[str, Entry], name: str) -> Entry:
    """Find a method by name, ignoring case and the differences between spaces, hyphens and underscores.

    Raises:
        ExperimentError: The method does not exist; the message lists the available ones.
    """
    return entries[canonical_name(entries, name)]


def canonical_name(entries: Mapping[str, Entry], name: str) -> str:
    """Return the name of a method as it is in tables; see `choose_method`."""
    names = {_fold(listed): listed for listed in entries}
    if _fold(name) not in names:
        raise ExperimentError(f"There is no method {name!r} for this task. Choose from {list(entries)}.")
    return names[_fold(name)]


def _fold(name: str) -> str:
    return name.casefold().removeprefix(PREFIX.casefold()).replace("-", " ").replace("_", " ").strip()


# The two families


def _single_methods(bench: Bench) -> dict[str, Entry]:
    tables = {"": bench.recipe.single, " reasoning": bench.recipe.reasoning}
    return {
        name: entry
        for suffix, table in tables.items()
        if table is not None
        for name, entry in _methods_of_single(bench, table, suffix).items()
    }


def _methods_of_single(bench: Bench, table: SingleTable, suffix: str) -> dict[str, Entry]:
    alone = bench.task.single(table)
    demos = bench.task.single_demonstrations(alone, table)
    before = SingleAgent(alone, max_tokens=table.max_tokens)
    folder = bench.folder / file_name(f"STaR{suffix}")
    learner = star(bench.task.metric, **_star_settings(bench, demos), run_dir=folder)
    entries = {
        f"single agent{suffix}": Entry(before, before, bench.folder / file_name(f"single{suffix}")),
        f"STaR{suffix}": Entry(SingleAgent(alone, learner, table.max_tokens), before, folder),
    }
    if demos:
        prompted = SingleAgent(alone, PromptedTeam(_shown(bench, demos)), table.max_tokens)
        place = bench.folder / file_name(f"single-demonstrations{suffix}")
        entries[f"single agent{suffix} with demonstrations"] = Entry(prompted, prompted, place)
    return entries


def _team_methods(bench: Bench, build: Mapping[str, Any], folder: Path) -> dict[str, Entry]:
    team = bench.task.build(**build)
    demos = bench.task.demonstrations(team, build)
    before = PromptedTeam()
    entries = {"prompted team": Entry(before, before, folder / "team")}
    if demos:
        prompted = PromptedTeam(_shown(bench, demos))
        entries["prompted team with demonstrations"] = Entry(prompted, prompted, folder / "team-demonstrations")
    entries |= _dspy_methods(bench, team, demos, folder)
    entries |= _sirius_methods(bench, team, demos, folder)
    vote = bench.recipe.vote
    voters = choose_method(entries, vote.method)
    method = MajorityVote(vote.votes, voters.method, vote.temperature)
    return entries | {"majority vote": dataclasses.replace(voters, method=method)}


def _dspy_methods(bench: Bench, team: dspy.Module, demos: Demos, folder: Path) -> dict[str, Entry]:
    recipe, metric, seed = bench.recipe, bench.task.metric, bench.seed
    runs = _metric_calls(recipe, team)
    shown = _shown(bench, demos) if recipe.sirius.cold_start else {}
    methods: dict[str, Method] = {
        name: BootstrapFinetune(
            metric,
            folder / file_name(name),
            threshold=recipe.sirius.threshold,
            shared=shared,
            demos=shown,
            trainer=bench.chosen_trainer,
            num_threads=recipe.num_threads,
            seed=seed,
        )
        for name, shared in (("BootstrapFinetune", False), ("BootstrapFinetune shared", True))
    }
    prompts = recipe.prompts
    methods["GEPA"] = GEPA(metric, runs, shown, num_threads=recipe.num_threads, seed=seed)
    methods["MIPROv2"] = MIPROv2(
        metric, runs, prompts.num_candidates, prompts.max_demos, num_threads=recipe.num_threads, seed=seed
    )
    return {name: Entry(method, PromptedTeam(), folder / file_name(name)) for name, method in methods.items()}


def _sirius_methods(bench: Bench, team: dspy.Module, demos: Demos, folder: Path) -> dict[str, Entry]:
    full = _sirius_settings(bench, demos)
    changes: dict[str, dict[str, Any]] = {"SiriuS": {}} | {
        PREFIX + name: change for name, change in ablations(team, full).items()
    }
    if PREFIX + "no warm start" in changes:
        changes[PREFIX + "no warm start"] = {"collect": _prompted(bench, full["collect"])}
    if isinstance(bench.lm, LocalLM) and bench.trainer is None:
        trainer = PreferenceTrainer(train_from=bench.recipe.sirius.train_from)
        changes[PREFIX + "preferences"] = {"trainer": trainer}
    if bench.recipe.repair.ladder:
        changes["SiriuS as published"] = _as_published(bench, full["collect"])
    entries: dict[str, Entry] = {}
    for name, change in changes.items():
        settings = _limit_iterations({**full, **change}, bench.most_iterations)
        optimizer = SiriuS(bench.task.metric, **settings, run_dir=folder / file_name(name))
        entries[name] = Entry(optimizer, PromptedTeam(), folder / file_name(name))
    agents = prepare.resolve_agents(team, full["agents"])
    trained = [agent for agent in agents if agent not in full["frozen"]]
    for agent in trained if len(trained) > 1 else ():
        untrained = UntrainedAgent(entries["SiriuS"].method, agent)
        entries[f"{PREFIX}untrained {agent}"] = dataclasses.replace(entries["SiriuS"], method=untrained)
    return entries


# Settings of the methods


def _sirius_settings(bench: Bench, demos: Demos) -> dict[str, Any]:
    table = bench.recipe.sirius
    return {
        "iterations": table.iterations,
        **_common_settings(bench, demos, table),
        "trainer": with_start(bench.chosen_trainer, table.train_from),
        "augmenter": _augmenter(bench),
        "credit": _credit(bench),
        "agents": dict(table.agents) or None,
        "frozen": tuple(table.frozen),
    }


def _as_published(bench: Bench, collect: Collect) -> dict[str, Any]:
    """Return what differs in the method of the paper, which has a critic, no credit and no order of the examples."""
    published = dataclasses.replace(_prompted(bench, collect), schedule=None)
    return {"augmenter": _critic(bench), "collect": published, "credit": None}


def _prompted(bench: Bench, collect: Collect) -> Collect:
    """Return the settings without a warm start: prompts show demonstrations, as many as those of other methods."""
    return dataclasses.replace(collect, demos=_shown(bench, collect.demos or {}) or None, warm_start=False)


def _star_settings(bench: Bench, demos: Demos) -> dict[str, Any]:
    table = bench.recipe.star
    settings = {"iterations": table.iterations, **_common_settings(bench, demos, table)}
    return _limit_iterations(settings, bench.most_iterations)


def _common_settings(bench: Bench, demos: Demos, table: SiriusTable | StarTable) -> dict[str, Any]:
    """Return the settings that SiriuS and STaR have in common, from their own table where there is one."""
    common = bench.recipe.sirius
    return {
        "threshold": common.threshold,
        "collect": Collect(
            samples=table.samples,
            temperature=table.temperature,
            until_solved=getattr(table, "until_solved", False),
            demos=_demos_of(bench, demos),
            warm_start=common.warm_start and bool(demos),
            schedule=_schedule(common),
        ),
        "curator": _curator(bench.recipe, cumulative=table.cumulative),
        "gate": ValsetGate() if table.promote else None,
        "trainer": bench.chosen_trainer,
        "tracker": bench.tracker,
        "num_threads": bench.recipe.num_threads,
        "seed": bench.seed,
    }


def _demos_of(bench: Bench, demos: Demos) -> Demos | None:
    """Return the demonstrations that agents start from: all to train on, or some to read."""
    table = bench.recipe.sirius
    if table.warm_start:
        return demos or None
    return (_shown(bench, demos) or None) if table.cold_start else None


def _shown(bench: Bench, demos: Demos) -> Demos:
    """Return the demonstrations that prompts show."""
    return {name: list(given[: bench.recipe.task.shown]) for name, given in demos.items()}


def _schedule(table: SiriusTable) -> EasyToHard | None:
    if not table.shares:
        return None
    difficulty = import_path(table.difficulty, "sirius.difficulty") if table.difficulty else None
    return EasyToHard(difficulty, tuple(table.shares))


def _curator(recipe: Recipe, *, cumulative: bool) -> Curator:
    table = recipe.sirius
    make = import_path(table.curator, "sirius.curator") if table.curator else Curator
    curator: Curator = make(max_per_example=table.max_per_example, max_rows=table.max_rows, cumulative=cumulative)
    return curator


def _limit_iterations(settings: dict[str, Any], most_iterations: int | None) -> dict[str, Any]:
    if most_iterations is None:
        return settings
    return {**settings, "iterations": min(settings["iterations"], most_iterations)}


def _augmenter(bench: Bench) -> Augmenter | None:
    table = bench.recipe.repair
    if not table.enabled:
        return None
    return _ladder(bench) if table.ladder else _critic(bench)


def _ladder(bench: Bench) -> LadderAugmenter:
    table = bench.recipe.repair
    rungs = (ResampleAugmenter(), HintAugmenter(), LabelAugmenter(must_know=table.must_know))
    return LadderAugmenter(rungs, drop_reliant=table.drop_reliant, max_repairs=bench.recipe.sirius.max_repairs)


def _credit(bench: Bench) -> Credit | None:
    table = bench.recipe.credit
    return None if table is None else Credit(**dataclasses.asdict(table))


def _critic(bench: Bench) -> CriticAugmenter:
    table = bench.recipe.repair
    return CriticAugmenter(
        critic=_helper(bench, table.critic),
        rephraser=_helper(bench, table.rephraser),
        max_feedback=table.max_feedback,
        max_regenerations=table.max_regenerations,
        temperature=table.temperature,
        rephrase=table.rephrase,
        show_earlier=table.show_earlier,
        guard=LeakGuard(answering=table.answering),
        demos=bench.task.repair_demonstrations() if table.demonstrations else None,
        max_repairs=bench.recipe.sirius.max_repairs,
    )


def _helper(bench: Bench, name: str) -> dspy.LM | None:
    """Return the LM that helps in repairs; `None` means the agent's LM."""
    if name == "own":
        return None
    return bench.lm if name == "base" else lm_from(name, {}, {})


def _metric_calls(recipe: Recipe, team: dspy.Module) -> int:
    """Return the number of runs of a prompt optimizer; 0, which it refuses, if neither recipe nor budget sets it."""
    if recipe.prompts.max_metric_calls is not None:
        return recipe.prompts.max_metric_calls
    return (recipe.budget.calls or 0) * 4 // (5 * len(predictor_names(team)))
