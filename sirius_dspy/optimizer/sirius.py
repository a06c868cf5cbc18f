"""The `SiriuS` teleprompter: settings, a plan of the work, and the work."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from sirius_dspy.credit.credit import Credit
from sirius_dspy.examples import check_examples, check_storable
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer import prepare
from sirius_dspy.optimizer.budget import Budget
from sirius_dspy.optimizer.gate import Gate, ValsetGate
from sirius_dspy.optimizer.loop import Loop
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.optimizer.settings import AgentGroups, Collect, Settings
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.suitable import SuitableAugmenter
from sirius_dspy.running.executor import Executor
from sirius_dspy.running.metric import Metric, check_metric
from sirius_dspy.running.patience import Patience
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.curate import Curator
from sirius_dspy.training.prompts import check_adapter
from sirius_dspy.training.suitable import SuitableTrainer
from sirius_dspy.training.tools import check_tools
from sirius_dspy.training.trainers import Trainer

COLLECT = Collect()
AUGMENTER = SuitableAugmenter()
CURATOR = Curator()
TRAINER = SuitableTrainer()
GATE = ValsetGate()
PATIENCE = Patience()


class SiriuS(Teleprompter):
    """Fine-tunes each agent of a program on the program's own successful runs.

    One iteration runs the program on the trainset (several samples per example), repairs what failed, fine-tunes each
    agent on its own steps of the successful runs, and keeps the new weights if the program is not worse on the valset.

    Args:
        metric: `metric(example, prediction, trace=None)`, which returns a number, a bool, or a `dspy.Prediction` with
            `score` and, where agents have rewards of their own (a game), `rewards={agent: number}`.
        threshold: A run succeeded if its reward is at least this; a run that broke never did. 1.0 fits right-or-wrong
            metrics.
        iterations: T in the paper.
        collect: How the program is run on the trainset: samples, temperature, demonstrations, and the schedule that
            chooses the examples of each iteration.
        credit: How much each step of a run mattered, by replay: to leave out rows, to weigh them, and to begin repairs
            at the right step; `None`, the default, is off, because it takes many calls.
        augmenter: Repairs one failed run of each example that no sample solved; `None` turns repair off. By default, a
            `LadderAugmenter` if all trained agents have small local models, which cannot criticize, and otherwise the
            paper's `CriticAugmenter`.
        curator: Chooses the rows to train on.
        trainer: Fine-tunes the agents; the default, `SuitableTrainer()`, trains each as its LM needs: on this machine,
            at OpenAI or a server with its API, with vLLM, or through its DSPy provider.
        gate: Decides which new weights are kept; `None` keeps all of them.
        agents: Agent name to the predictors that share one set of weights; every other predictor is an agent of its
            own. `SharedWeights()` gives all of them one set.
        frozen: Agents that are never trained, such as a judge or an opponent.
        budget: Limits on LM calls, tokens, money and time; `None` is no limit.
        patience: How long to wait for LMs that fail or keep silent, and how often to try.
        tracker: Receives compile events; pass several as `Trackers([...])`. With `None`, a terminal shows progress
            (`RichProgress`) and everything else stays quiet; `Tracker()` is quiet everywhere.
        library: Where runs are kept; by default a SQLite file in `run_dir`.
        run_dir: Every result is saved here before the next step starts, and the same `compile` call resumes from it
            after any interruption. By default a new folder under `sirius_runs/`.
        accept_changes: What may differ from the compile that `run_dir` belongs to, by the names that a
            `RunMismatchError` lists, e.g. `["metric"]`. Only you know that a change does not matter to what is done.
        num_threads: Runs at a time; DSPy's setting by default.
        executor: Where the program, the metric and repairs run, such as `ProcessExecutor(4)`; `None`, the default,
            stands for threads of this process. The results are the same.
        seed: Decides rollout ids, the order of rows, and what a trainer does with it.

    Examples:
        ```python
        optimizer = SiriuS(metric=exact_match, iterations=2)
        print(optimizer.plan(program, trainset=train, valset=validation))
        compiled = optimizer.compile(program, trainset=train, valset=validation)
        print(compiled.detailed_results.best_score)
        ```

    References:
        Algorithms 1 and 2 of SiriuS (arXiv:2502.04780).
    """

    def __init__(
        self,
        metric: Metric,
        *,
        threshold: float = 1.0,
        iterations: int = 2,
        collect: Collect = COLLECT,
        credit: Credit | None = None,
        augmenter: Augmenter | None = AUGMENTER,
        curator: Curator = CURATOR,
        trainer: Trainer = TRAINER,
        gate: Gate | None = GATE,
        agents: AgentGroups | None = None,
        frozen: Sequence[str] = (),
        budget: Budget | None = None,
        patience: Patience = PATIENCE,
        tracker: Tracker | None = None,
        library: ExperienceLibrary | None = None,
        run_dir: str | Path | None = None,
        accept_changes: Sequence[str] = (),
        num_threads: int | None = None,
        executor: Executor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.threshold = threshold
        self.iterations = iterations
        self.collect = collect
        self.credit = credit
        self.augmenter = augmenter
        self.curator = curator
        self.trainer = trainer
        self.gate = gate
        self.agents = agents
        self.frozen = frozen
        self.budget = budget
        self.patience = patience
        self.tracker = tracker
        self.library = library
        self.run_dir = run_dir
        self.accept_changes = accept_changes
        self.num_threads = num_threads
        self.executor = executor
        self.seed = seed

    @property
    def settings(self) -> Settings:
        """The settings as they are now, as one frozen value."""
        return Settings(**vars(self))

    def get_params(self) -> dict[str, Any]:
        """The scalar settings, in a new dict: `mlflow.dspy.autolog` writes into what it gets."""
        return dict(self.settings.scalars)

    def compile(  # type: ignore[override]  # BetterTogether passes only arguments that are spelled out
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        teacher: dspy.Module | list[dspy.Module] | None = None,
        valset: list[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Train the agents of a program.

        Args:
            student: The program; it is left untouched.
            trainset: Examples with inputs; what else they hold is the gold answer, which only metric and critic see.
            teacher: One or more programs with the student's predictor names, which make the runs of the first iteration
                in its place.
            valset: Decides which weights are kept, and which iteration is returned. By default the trainset, with a
                warning.

        Returns:
            A compiled copy with the weights of the best iteration, and a `CompileResult` as `detailed_results`.

        Raises:
            UnpreparedProgramError: The program, its LMs or the adapter do not fit; nothing was paid for.
            SettingsError: A setting is of the wrong kind or out of its range; nothing was paid for.
            DatasetError: The examples do not fit; nothing was paid for.
            MetricError: The metric returned something that is not a finite number, or raised in all of the first runs.
            ProgramError: The program raised the same exception in all of the first runs.
            RunMismatchError: `run_dir` belongs to a compile with other settings, data or program.
            RunDirError: `run_dir` cannot be used: it is no folder, may not be written to, or the disk is full.
            RunDamagedError: A file in it is missing or damaged; the message says what can be done.
            LibraryError: The library cannot be used, or is not the one, or not as whole, as when the compile began.
            NoSuccessError: No run succeeded in the first iteration.
            RolloutError: The LM refused for credentials, credit or configuration, or failed or kept silent again and
                again. Call again to resume.
            UnfinishedError: Some runs did not end, because the LM or the network failed. Call again to run them.
            TrainingError: A fine-tuning job failed. Call again to resume.
        """
        return Loop(self._prepare(student, trainset, teacher, valset)).run()

    def plan(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        teacher: dspy.Module | list[dspy.Module] | None = None,
        valset: list[dspy.Example] | None = None,
    ) -> Plan:
        """Check everything, and say what `compile` with the same arguments would do and cost. No LM is asked.

        Returns:
            A frozen plan: agents, their LMs, what will be trained, and for each stage the number of LM calls, tokens,
            fine-tuning jobs, seconds and dollars. It prints as a table.

        Raises:
            UnpreparedProgramError: As for `compile`.
            SettingsError: As for `compile`.
            DatasetError: As for `compile`.
            MetricError: As for `compile`.
        """
        plan = self._prepare(student, trainset, teacher, valset)
        _ = plan.stages  # estimated now: once the compile has run, its own runs would be among the earlier ones
        return plan

    def _prepare(self, student: Any, trainset: Any, teacher: Any, valset: Any) -> Plan:
        """Check everything."""
        settings = self.settings
        settings.check()
        check_metric(settings.metric)
        prepare.check_student(student)
        train = check_examples(trainset, "trainset")
        if valset is None:
            prepare.warn_about_valset()
        val = train if valset is None else check_examples(valset, "valset")
        check_storable(train, "trainset")
        check_storable(val, "valset")
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        check_adapter(adapter)
        teachers = prepare.check_teachers(teacher, student)
        for program in teachers or [student]:
            prepare.check_inputs(program, train, "trainset")
        prepare.check_inputs(student, val, "valset")
        agents = prepare.resolve_agents(student, settings.agents, frozen=settings.frozen)
        frozen = prepare.check_frozen(settings.frozen, agents)
        start = prepare.starting_lms(student, agents)
        settings = settings.resolve(lm for agent, lm in start.items() if agent not in frozen)
        plan = Plan(
            settings=settings,
            student=student,
            trainset=train,
            valset=val,
            teachers=teachers,
            agents=agents,
            frozen=frozen,
            start=start,
            adapter=adapter,
            run_dir=RunDir(_folder(settings.run_dir)),
        )
        check_tools(student, train, plan.trained, plan.start, adapter, settings.trainer)
        prepare.check_parts(plan.student, settings, plan.trained, plan.start, teachers)
        prepare.check_schedule(settings.collect.schedule, plan.unique_trainset, settings.iterations)
        prepare.check_media(student, train, plan.trained, plan.start, settings.trainer)
        prepare.warn_about_adapter(adapter, plan.start.values())
        prepare.check_executor(settings, [student, *teachers], train)
        prepare.remember_lms([student, *teachers], settings.augmenter)
        return plan


def _folder(run_dir: str | Path | None) -> Path:
    default = Path("sirius_runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return Path(run_dir or default).absolute()  # the results name it, and `chdir` must not move it
