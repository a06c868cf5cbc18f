"""The loop of one compile: collect, repair, curate, fine-tune, promote, and again.

This is the only place that knows the order. Everything that was paid for is on disk before the next thing begins:
rollouts and repairs in the experience library, fine-tuning jobs and finished iterations in the run directory. So a
resumed compile is the same code: each stage first looks what is there.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy

from sirius_dspy.dspy_internals import mark_compiled
from sirius_dspy.errors import AugmenterError, NoSuccessError, UnfinishedError, UnpreparedProgramError
from sirius_dspy.examples import keys_digest, unique
from sirius_dspy.identity.describe import describe, describe_lms
from sirius_dspy.identity.parts import FORMAT
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.summary import Summary
from sirius_dspy.lms import Launches, OutsideLMCallback, follow_context, follow_no_context, keep_settings
from sirius_dspy.optimizer import prepare
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.program import copy_program, lms_of, predictor_names
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.attempts import Broken, attempt_all
from sirius_dspy.running.bugs import BugWatch
from sirius_dspy.running.patience import Health, Patience
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.running.standing import Standing, floor_of
from sirius_dspy.running.unfinished import Unfinished, report_unfinished
from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Curated,
    Evaluated,
    IterationEnded,
    Repaired,
    RolledOut,
    StageStarted,
    Trackers,
    Trained,
    TrainingProgress,
)
from sirius_dspy.training.curate import Curator, TrainingSet
from sirius_dspy.training.trainers import Trainer, TrainingRequest
from sirius_dspy.trajectory import Repair, Step, Trajectory, example_key, to_plain

if TYPE_CHECKING:  # the optimizer imports this module
    from sirius_dspy.optimizer.sirius import SiriuS

logger = logging.getLogger(__name__)

LMs = dict[str, dspy.LM]
"""Agent name to LM."""


@dataclass
class Loop:
    """One call of `SiriuS.compile`: what it was given, and how far it is."""

    settings: SiriuS
    student: dspy.Module
    trainset: list[dspy.Example]
    valset: list[dspy.Example]
    teachers: list[dspy.Module]
    agents: prepare.Agents
    frozen: frozenset[str]
    start: LMs
    trainer: Trainer
    adapter: str
    run_dir: RunDir
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.program = copy_program(self.student)
        self.teachers = [copy_program(teacher) for teacher in self.teachers]
        self.demos = {name: predictor.demos for name, predictor in predictor_names(self.program).items()}
        self.own = lms_of(self.program)
        self.trained: dict[tuple[str, str], dspy.LM] = {}
        self.launches = Launches()
        self.chosen: dict[str, set[str]] = defaultdict(set)
        self.identity = self._identity()
        self.run_id = ""  # until the run directory says whose it is
        self.library = self.settings.library or ExperienceLibrary(self.run_dir.library)
        self.tracker = Trackers([self.settings.tracker] if self.settings.tracker else [])
        self.lms: LMs = dict(self.start)
        self.train_examples = unique(self.trainset)
        self.patience = Patience(self.settings.retries, self.settings.call_timeout_s, self.settings.run_timeout_s)
        self.health = Health()
        self.bugs = {"rollout": BugWatch(), "validation": BugWatch()}

    # The whole

    def run(self) -> dspy.Module:
        """Iterate, and give back the best program."""
        if not self.history:
            self.history.append(self._baseline())
        for iteration in range(1, self.settings.iterations + 1):
            self.seconds = {}
            entry = self.run_dir.iteration(iteration)
            if entry is None:
                self.run_dir.reopen()
                entry = self._iterate(iteration)
                if entry is None:
                    break
                self.run_dir.finish(f"iteration-{iteration}", entry)
            self.lms = {agent: self._trained_lm(agent, model) for agent, model in entry["lms"].items()}
            self.history.append(entry)
            self._remember_chosen(entry["chosen_in_forward"])
            self.launches.keep({*entry["lms"].values(), *self._best()["lms"].values()})
            self.tracker.on_iteration_ended(IterationEnded(iteration, entry["metrics"], entry["lms"]))
        return self._result()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the tracker of the beginning and of every way to end."""
        resumed = self._begin()
        self.tracker.on_compile_started(self._started(resumed))
        logger.info("SiriuS works in %s", self.run_dir.path)
        try:
            yield
        except BaseException as error:
            status = "failed" if isinstance(error, Exception) else "interrupted"
            self.tracker.on_compile_ended(
                CompileEnded(status, results=self._results(), error=f"{type(error).__name__}: {error}")
            )
            raise
        self.tracker.on_compile_ended(CompileEnded("finished", self._best()["iteration"], results=self._results()))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Kill at the end what was launched on the way, but for the LMs of the compiled program."""
        needed: set[str] = set()
        try:
            yield
            needed |= set(self._best()["lms"].values())
        finally:
            self.launches.keep(needed)

    def _begin(self) -> bool:
        """Claim the run directory, and see that the library is the one that the compile began with, and whole."""
        if self.run_dir.identity() is None:  # so that a compile that has begun always has a note
            self.run_dir.note_library(self.library.library_id, self.library.url)
        self.run_id, resumed = self.run_dir.begin(self.identity, self.settings.accept_changes)
        if resumed and (noted := self.run_dir.noted_library()) is not None:
            self.library.check(noted["library_id"], self.run_id)
            if noted["url"] != self.library.url:  # it was moved
                self.run_dir.note_library(noted["library_id"], self.library.url)
        return resumed

    def _baseline(self) -> dict[str, Any]:
        """Iteration 0: the student as it came."""
        standing = self._evaluate(0, self.start, "program", candidate=0)
        return {
            "iteration": 0,
            "score": standing.mean(),
            "standing": standing.to_plain(),
            "num_val": len(self.valset),
            "lms": _models(self.start),
        }

    def _iterate(self, iteration: int) -> dict[str, Any] | None:
        """Collect, repair, curate, fine-tune, promote; `None` if there was nothing to learn from."""
        with self._timed("collect"):
            self._collect(iteration)
        with self._timed("repair"):
            self._repair(iteration)
        with self._timed("curate"):
            training_sets = self._curate(iteration)
        if not any(training_set.rows for training_set in training_sets.values()):
            self._nothing_learnt(iteration, training_sets)
            return None
        with self._timed("train"):
            self._check_rows(iteration, training_sets)
            jobs = {agent: self._train(iteration, rows) for agent, rows in training_sets.items() if rows.rows}
        trained = {agent: self._trained_lm(agent, job["lm"]) for agent, job in jobs.items()}
        with self._timed("evaluate"):
            promoted, standing = self._promote(iteration, trained)
        lms = self.lms | promoted
        return self._entry(iteration, standing, lms, jobs, training_sets)

    # The stages

    def _collect(self, iteration: int) -> None:
        """Run the program on the trainset, all samples of it; what is in the library already is not run again."""
        programs = self.teachers if iteration == 1 and self.teachers else [self.program]
        self._install(self.lms)
        known = {(found.example_key, found.sample): found for found in self._collected(iteration)}
        self.bugs["rollout"].is_resumed |= bool(known)
        solved = {key for (key, _), found in known.items() if found.succeeded(self.settings.threshold)}
        waves = [[sample] for sample in range(self.settings.samples)]
        if not self.settings.until_solved:
            waves = [[sample for wave in waves for sample in wave]]
        for wave in waves:
            tasks = [
                Task(example, sample)
                for sample in wave
                for key, example in self.train_examples.items()
                if (key, sample) not in known and not (self.settings.until_solved and key in solved)
            ]
            self.tracker.on_stage_started(StageStarted(iteration, "collect", len(tasks)))
            unfinished: UnfinishedError | None = None
            for number, program in enumerate(programs):  # samples go round the teachers
                own = [task for task in tasks if task.sample % len(programs) == number]
                try:
                    for task, trajectory in self._rollouts(iteration).run_all(program, own):
                        solved |= {task.key[0]} if self._keep(iteration, task, trajectory) else set()
                except UnfinishedError as error:  # the next teacher's runs do not depend on these, the next wave may
                    unfinished = error
            if unfinished is not None:
                raise unfinished

    def _keep(self, iteration: int, task: Task, trajectory: Trajectory) -> bool:
        self.library.add(trajectory, task.example)
        self._note_chosen(trajectory)
        succeeded = trajectory.succeeded(self.settings.threshold)
        self.tracker.on_rolled_out(RolledOut(iteration, trajectory, succeeded))
        return succeeded

    def _repair(self, iteration: int) -> None:
        """Repair one failed run of each example that no sample solved."""
        augmenter = self.settings.augmenter
        if augmenter is None:
            return
        done = {repair.parent for repair in self.library.repairs(run=self.run_id, iteration=iteration)}
        failed = [found for found in self._failed(iteration) if found.id not in done]
        context = RepairContext(
            self.program, self._rollouts(iteration), self.settings.threshold, self._editable(), self._is_own
        )
        self.tracker.on_stage_started(StageStarted(iteration, "repair", len(failed)))

        def repaired(trajectory: Trajectory) -> Any:
            found = augmenter.repair(trajectory, self.train_examples[trajectory.example_key], context)
            self._check_repair(found.repair)
            return found

        unfinished: list[tuple[dspy.Example, Unfinished]] = []
        outcomes = attempt_all(repaired, failed, self.settings.num_threads, patience=self.patience, health=self.health)
        with closing(outcomes):  # an interrupt keeps this frame alive, but must not leave repairs under way
            for trajectory, outcome in outcomes:
                if isinstance(outcome, Broken):
                    broken = Unfinished.of(trajectory.repair_lineage, outcome.failure)
                    unfinished.append((self.train_examples[trajectory.example_key], broken))
                    self.library.add_unfinished(broken)
                    continue
                repair, trajectories = outcome
                self.library.add_repair(repair, trajectories)
                self.tracker.on_repaired(Repaired(iteration, repair, trajectories, trajectory))
        report_unfinished(unfinished, self.settings.max_unfinished)

    def _check_repair(self, repair: Repair) -> None:
        """Refuse an edit of what is no part of the program, before the repair is stored.

        Raises:
            AugmenterError: The message names the predictor.
        """
        known = [name for names in self.agents.values() for name in names]
        for attempt in repair.attempts:
            if attempt.predictor not in known:
                raise AugmenterError(
                    f"The augmenter {type(self.settings.augmenter).__name__} edited a step of {attempt.predictor!r}, "
                    f"which is no predictor of the program. Let it edit steps of {sorted(self._editable())} only, the "
                    "predictors in `context.editable`."
                )

    def _failed(self, iteration: int) -> list[Trajectory]:
        """The first failed run of each example without a success, up to `max_repairs`, in an order that repeats."""
        first: dict[str, Trajectory] = {}
        solved = set()
        for found in self._collected(iteration):
            if found.succeeded(self.settings.threshold):
                solved.add(found.example_key)
            elif found.example_key not in first or found.sample < first[found.example_key].sample:
                first[found.example_key] = found
        failed = [found for key, found in sorted(first.items()) if key not in solved]
        return failed[: self.settings.max_repairs]

    def _curate(self, iteration: int) -> dict[str, TrainingSet]:
        """Write each trained agent's rows."""
        trained = {agent: names for agent, names in self.agents.items() if agent not in self.frozen}
        curator = self.settings.curator or Curator()
        self.tracker.on_stage_started(StageStarted(iteration, "curate", len(trained)))
        sets = curator.curate(
            self.program,
            self._teaching(iteration),
            trained,
            threshold=self.settings.threshold,
            seed=self.settings.seed + iteration,
            is_own=self._is_own,
        )
        for agent, rows in sets.items():
            path = self.run_dir.training_file(iteration, agent)
            with self.run_dir.usable():
                rows.write(path)
            self.tracker.on_curated(Curated(iteration, agent, len(rows.rows), rows.dropped, path))
        return sets

    def _teaching(self, iteration: int) -> Iterator[Trajectory]:
        """The runs to choose rows from, good and bad."""
        first = 1 if self.settings.cumulative else iteration
        for number in range(first, iteration + 1):
            yield from self.library.trajectories(run=self.run_id, iteration=number, origin=("rollout", "repair"))

    def _check_rows(self, iteration: int, sets: Mapping[str, TrainingSet]) -> None:
        """Refuse sets that are too small for the trainer before the first of the iteration's jobs is paid for."""
        check = getattr(self.trainer, "check_rows", None)
        for agent, rows in sets.items():
            if check is not None and rows.rows and self.run_dir.job(iteration, agent) is None:
                check(agent, self._base(agent), len(rows.rows))

    def _base(self, agent: str) -> dspy.LM:
        """What the agent's next job starts from."""
        return (self.start if self.settings.train_from == "base" else self.lms)[agent]

    def _train(self, iteration: int, rows: TrainingSet) -> dict[str, Any]:
        """Fine-tune one agent, unless that is done; the result is on disk before the next begins."""
        if (finished := self.run_dir.job(iteration, rows.agent)) is not None:
            return finished
        self.run_dir.check_writable()  # the job is paid for, and its result must not be lost
        self.tracker.on_stage_started(StageStarted(iteration, "train", 1))
        base = self._base(rows.agent)
        losses: list[float] = []

        def on_progress(step: int, total: int, loss: float) -> None:
            losses.append(loss)
            self.tracker.on_training_progress(TrainingProgress(iteration, rows.agent, step, total, loss))

        began = time.perf_counter()
        workdir = self.run_dir.weights(iteration, rows.agent)
        lm = self.trainer.train(
            TrainingRequest(rows.agent, base, rows.chat, workdir, self.settings.seed + iteration, on_progress)
        )
        job = {
            "agent": rows.agent,
            "iteration": iteration,
            "lm": lm.model,
            "base": base.model,
            "rows": len(rows.rows),
            "losses": losses,
            "seconds": time.perf_counter() - began,
        }
        self.trained[rows.agent, lm.model] = lm
        self.run_dir.finish(f"train-{iteration}-{rows.agent}", job)
        weights = workdir if workdir.exists() else None
        self.tracker.on_trained(
            Trained(iteration, rows.agent, base.model, lm.model, len(rows.rows), losses, job["seconds"], weights)
        )
        return job

    def _promote(self, iteration: int, trained: LMs) -> tuple[LMs, Standing]:
        """Which new weights to keep, and how good the program is with them.

        All together if the program is not worse with them; else agent by agent, each kept if it does no harm.
        """
        found = self._evaluate(iteration, self.lms | trained, "program", candidate=0)
        before = _standing(self.history[-1])
        if not self.settings.promote or self._is_as_good(found, before):
            return trained, found
        kept: LMs = {}
        if len(trained) == 1:
            return kept, before
        best = before
        for number, (agent, lm) in enumerate(trained.items(), start=1):
            found = self._evaluate(iteration, self.lms | kept | {agent: lm}, agent, candidate=number)
            if self._is_as_good(found, best):
                kept, best = kept | {agent: lm}, found
        return kept, best

    def _is_as_good(self, found: Standing, before: Standing) -> bool:
        floor = floor_of([found, before, *map(_standing, self.history)])
        return found.rank(floor) >= before.rank(floor)

    def _evaluate(self, iteration: int, lms: LMs, label: str, *, candidate: int) -> Standing:
        """Score the program on the valset, its LMs used as they are; these runs are kept, and never trained on.

        Raises:
            UnfinishedError: Some runs did not end; a mean over the others would be that of another valset.
        """
        self._install(lms)
        rollouts = Rollouts(
            self.settings.metric,
            run=self.run_id,
            iteration=iteration,
            seed=self.settings.seed,
            origin="validation",
            first_kwargs={},
            **self._shared("validation"),
        )
        found = {
            trajectory.example_key: trajectory
            for trajectory in self.library.trajectories(
                run=self.run_id, iteration=iteration, origin="validation", sample=candidate
            )
            if self._is_of(trajectory, lms)
        }
        for trajectory in found.values():
            self._note_chosen(trajectory)
        self.bugs["validation"].is_resumed |= bool(found)
        tasks = [Task(item, candidate) for key, item in unique(self.valset).items() if key not in found]
        self.tracker.on_stage_started(StageStarted(iteration, "evaluate", len(tasks)))
        for task, trajectory in rollouts.run_all(self.program, tasks):
            self._keep(iteration, task, trajectory)
            found[task.key[0]] = trajectory
        standing = Standing.of([found[example_key(example)] for example in self.valset])
        score = standing.mean(floor_of([standing, *map(_standing, self.history)]))
        self.tracker.on_evaluated(Evaluated(iteration, score, len(self.valset), label))
        return standing

    # Parts of the stages

    def _rollouts(self, iteration: int) -> Rollouts:
        """How to collect: cold-start demonstrations only for agents that have not learnt anything yet."""
        untaught = {
            name
            for agent, names in self.agents.items()
            for name in names
            if self.lms[agent].model == self.start[agent].model
        }
        demos = {name: shown for name, shown in (self.settings.cold_start or {}).items() if name in untaught}
        return Rollouts(
            self.settings.metric,
            run=self.run_id,
            iteration=iteration,
            seed=self.settings.seed,
            lm_kwargs={"temperature": self.settings.temperature},
            demos=demos,
            max_unfinished=self.settings.max_unfinished,
            **self._shared("rollout"),
        )

    def _shared(self, origin: str) -> dict[str, Any]:
        """What the rollouts of all stages have in common."""
        return {
            "num_threads": self.settings.num_threads,
            # So that whoever compares rewards with the threshold, in SQL or an export, counts no broken run.
            "broken_reward": 0.0 if self.settings.threshold > 0 else self.settings.threshold - 1.0,
            "agents": frozenset(self.agents) | frozenset(self.demos),
            "patience": self.patience,
            "health": self.health,
            "bugs": self.bugs[origin],
            "on_unfinished": self.library.add_unfinished,
        }

    def _collected(self, iteration: int) -> Iterator[Trajectory]:
        """The rollouts of this iteration that are in the library, made by the LMs that make them now."""
        for found in self.library.trajectories(run=self.run_id, iteration=iteration, origin="rollout"):
            if self._is_of(found, self.lms):
                self._note_chosen(found)
                yield found

    def _is_of(self, trajectory: Trajectory, lms: LMs) -> bool:
        """Whether the LMs of a stored run are these: a shared library may hold another run of this compile.

        Until something was trained, that cannot be: the LMs at the start are part of a compile's identity.
        """
        if trajectory.iteration == 0 or (trajectory.iteration == 1 and trajectory.origin == "rollout"):
            return True
        models = {name: lms[agent].model for agent, names in self.agents.items() for name in names}
        return all(
            step.lm == models.get(step.predictor, step.lm) or step.lm in self.chosen[step.predictor]
            for step in trajectory.steps
        )

    def _is_own(self, trajectory: Trajectory, step: Step) -> bool:
        """Whether its agent's LM of that time answered a step, or a teacher did in its place."""
        if self._is_taught(trajectory) and (trajectory.origin == "rollout" or step.source == "recorded"):
            return True
        agent = next((agent for agent, names in self.agents.items() if step.predictor in names), None)
        return agent is not None and step.lm in self._models_of(trajectory, agent)

    def _is_taught(self, trajectory: Trajectory) -> bool:
        """Whether teachers made the run, or the failed one that it repairs."""
        return bool(self.teachers) and trajectory.iteration == 1 and trajectory.origin != "validation"

    def _models_of(self, trajectory: Trajectory, agent: str) -> set[str]:
        """The weights with which the agent answered in this run; in a validation run, they may be new ones."""
        models = {self.history[trajectory.iteration - 1]["lms"][agent]} if trajectory.iteration else set()
        if trajectory.origin != "validation":
            return models
        new = {lm.model for (owner, _), lm in self.trained.items() if owner == agent}
        return models | new | {self.start[agent].model}

    def _note_chosen(self, trajectory: Trajectory) -> None:
        """Note which LMs `forward` chooses for a predictor in place of its own."""
        if self._is_taught(trajectory):
            return
        for step in trajectory.steps:
            if step.predictor in self.own and not self._is_own(trajectory, step):
                self.chosen[step.predictor].add(step.lm)

    def _remember_chosen(self, chosen: Mapping[str, Sequence[str]]) -> None:
        for name, models in chosen.items():
            self.chosen[name].update(models)

    def _editable(self) -> frozenset[str]:
        return frozenset(name for agent, names in self.agents.items() if agent not in self.frozen for name in names)

    def _install(self, lms: LMs) -> None:
        """Put LMs into the working copy. New weights were trained without demonstrations, so they get none.

        Predictors that share weights keep the settings of their own LMs. One without an LM stays without until it is
        trained, so that `forward` can choose another one by `dspy.context`, and can do so afterwards as well.
        """
        predictors = predictor_names(self.program)
        for agent, names in self.agents.items():
            base = self.start[agent]
            taught = lms[agent].model != base.model
            lm = self.launches.launch(agent, lms[agent]) if taught else base
            for name in names:
                predictor, own = predictors[name], self.own[name]
                predictor.lm = keep_settings(lm, base, own or dspy.settings.lm) if taught else own
                predictor.demos = [] if taught else self.demos[name]
                (follow_context if taught and own is None else follow_no_context)(predictor)

    def _trained_lm(self, agent: str, model: str) -> dspy.LM:
        """The LM with this id, which is the agent's first one or came out of one of its fine-tuning jobs."""
        if self.start[agent].model == model:
            return self.start[agent]
        if (agent, model) not in self.trained:  # the job was done before a restart
            self.trained[agent, model] = self._restored_lm(agent, model)
        return self.trained[agent, model]

    def _restored_lm(self, agent: str, model: str) -> dspy.LM:
        for iteration in range(self.settings.iterations, 0, -1):
            job = self.run_dir.job(iteration, agent)
            if job is not None and job["lm"] == model:
                base = self._trained_lm(agent, job["base"])
                return self.trainer.restore(base, model, self.run_dir.weights(iteration, agent))
        raise UnpreparedProgramError(
            f"The run directory {str(self.run_dir.path)!r} has no fine-tuning job that made {model!r} of agent "
            f"{agent!r}: files of it are missing. Choose another `run_dir`."
        )

    def _nothing_learnt(self, iteration: int, sets: Mapping[str, TrainingSet]) -> None:
        """Explain a first iteration without a single row; a later one ends the compile with the best so far.

        Raises:
            NoSuccessError: In the first iteration.
        """
        if iteration > 1:
            warnings.warn(
                f"Iteration {iteration} gave no training row; the compile ends with the best program so far.",
                UserWarning,
                stacklevel=4,
            )
            return
        if dropped := sum((Counter(found.dropped) for found in sets.values()), Counter[str]()):
            raise NoSuccessError(self._all_dropped(dropped))
        runs = list(self._collected(iteration))
        kinds = Counter(found.failure.kind for found in runs if found.failure is not None)
        best = max((found.reward for found in runs if found.failure is None), default=None)
        reasons = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(3)) or "none raised"
        raise NoSuccessError(
            f"None of {len(runs)} runs reached the threshold {self.settings.threshold} (best reward {best}; failures: "
            f"{reasons}), and repair did not help, so there is nothing to learn from. Try demonstrations for a cold "
            "start (`cold_start={'predictor': [examples]}`), a stronger `teacher=`, more `samples`, easier examples, a "
            f"critic LM, or a lower `threshold`. The runs are in {self.library.url!r}."
        )

    def _all_dropped(self, dropped: Counter[str]) -> str:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.most_common())
        return (
            f"Runs reached the threshold {self.settings.threshold}, but none of their steps could become a training "
            f"row; dropped were {reasons}. 'does not parse back' means that the adapter "
            f"{self.adapter.rpartition('.')[2]} cannot write the outputs so that it reads them again; 'cut off' that "
            f"`max_tokens` is too small. The runs are in {self.library.url!r}."
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - began

    # What is told and kept

    def _identity(self) -> dict[str, Any]:
        """What makes two compiles the same; `iterations` is left out, so that a finished one can be prolonged."""
        settings, predictors = self.settings, predictor_names(self.student)
        return {
            "format": FORMAT,
            "program": describe(self.student, without_lms=predictors.values()),
            "lms": describe_lms(predictors),
            "demos": {name: describe(predictor.demos) for name, predictor in predictors.items()},
            "metric": describe(settings.metric),
            "settings": settings.counted(),
            "agents": {agent: list(names) for agent, names in self.agents.items()},
            "frozen": sorted(self.frozen),
            "adapter": self.adapter,
            "adapter_settings": describe(dspy.settings.adapter or dspy.ChatAdapter()),
            "augmenter": describe(settings.augmenter),
            "curator": describe(settings.curator or Curator()),
            "trainer": describe(self.trainer),
            "cold_start": describe(settings.cold_start or {}),
            "teachers": [describe(program) for program in self.teachers],
            "trainset": keys_digest(self.trainset),
            "valset": keys_digest(self.valset),
        }

    def _started(self, resumed: bool) -> CompileStarted:
        return CompileStarted(
            run=self.run_id,
            run_dir=self.run_dir.path,
            library_url=self.library.url,
            params=self.settings.get_params(),
            agents=self.agents,
            lms=_models(self.start),
            adapter=self.adapter,
            num_train=len(self.trainset),
            num_val=len(self.valset),
            trainset=[to_plain(example) for example in self.trainset],
            valset=[to_plain(example) for example in self.valset],
            resumed=resumed,
        )

    def _entry(
        self, iteration: int, standing: Standing, lms: LMs, jobs: dict[str, Any], sets: Mapping[str, TrainingSet]
    ) -> dict[str, Any]:
        """What an iteration did, as plain values."""
        summary = Summary(self.library, self.run_id, iteration, threshold=self.settings.threshold, agents=self.agents)
        agents = {
            agent: {
                "rows": len(rows.rows),
                "dropped": dict(rows.dropped),
                "losses": jobs.get(agent, {}).get("losses", []),
                "lm": jobs.get(agent, {}).get("lm"),
                "base": jobs.get(agent, {}).get("base"),
                "seconds": jobs.get(agent, {}).get("seconds", 0.0),
            }
            for agent, rows in sets.items()
        }
        score = standing.mean(floor_of([standing, *map(_standing, self.history)]))
        return {
            "iteration": iteration,
            "score": score,
            "standing": standing.to_plain(),
            "num_val": len(self.valset),
            "lms": _models(lms),
            "promoted": {agent: lms[agent].model == job["lm"] for agent, job in jobs.items()},
            "metrics": {"val/score": score, **summary.metrics(agents), **summary.prices(self.seconds)},
            "agents": agents,
            "chosen_in_forward": {name: sorted(models) for name, models in sorted(self.chosen.items()) if models},
            "repair": summary.repair,
            "seconds": dict(self.seconds),
            "usage": summary.usage_dict,
        }

    def _best(self) -> dict[str, Any]:
        floor = floor_of(map(_standing, self.history))
        # The first of equals, so the least trained.
        return max(self.history, key=lambda entry: _standing(entry).rank(floor))

    def _scored_history(self) -> list[dict[str, Any]]:
        """The iterations with scores that compare: a broken run counts the same in all of them."""
        floor = floor_of(map(_standing, self.history))
        return [{**entry, "score": _standing(entry).mean(floor)} for entry in self.history]

    def _results(self) -> dict[str, Any]:
        history = self._scored_history()
        results: dict[str, Any] = {
            "run": self.run_id,
            "run_dir": str(self.run_dir.path),
            "library": self.library.url,
            "adapter": self.adapter,
            "seed": self.settings.seed,
            "threshold": self.settings.threshold,
            "agents": {agent: list(names) for agent, names in self.agents.items()},
            "iterations": history,
        }
        if history:
            best = history[self.history.index(self._best())]
            results |= {"best_iteration": best["iteration"], "best_score": best["score"]}
        return results

    def _result(self) -> dspy.Module:
        best = self._best()
        self._install({agent: self._trained_lm(agent, model) for agent, model in best["lms"].items()})
        compiled = copy_program(self.program)
        for name, predictor in predictor_names(compiled).items():
            if not self.chosen[name]:
                follow_no_context(predictor)
        if any(self.own[name] is None and models for name, models in self.chosen.items()):
            compiled.callbacks.append(OutsideLMCallback())
        results = self._results()
        self.run_dir.finish("results", results)
        mark_compiled(compiled)
        vars(compiled)["detailed_results"] = results
        return compiled


def _standing(entry: Mapping[str, Any]) -> Standing:
    """How good the program was after an iteration."""
    return Standing(**entry["standing"])


def _models(lms: LMs) -> dict[str, str]:
    return {agent: lm.model for agent, lm in lms.items()}
