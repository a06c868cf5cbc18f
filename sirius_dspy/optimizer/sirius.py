"""The `SiriuS` teleprompter: settings, and the checks that come before the first LM call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.examples import check_examples, check_storable
from sirius_dspy.identity.parts import PARTS, part_of
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer import prepare
from sirius_dspy.optimizer.loop import Loop
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.redact import redacting_errors
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.running.metric import Metric, check_metric
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.curate import Curator, check_adapter
from sirius_dspy.training.trainers import ProviderTrainer, Trainer

_SETTINGS = {
    "metric": checks.METRIC,
    "threshold": checks.number(),
    "iterations": checks.whole(1),
    "samples": checks.whole(1),
    "until_solved": checks.FLAG,
    "temperature": checks.number(0),
    "augmenter": checks.optional(checks.able("repair", expected="an augmenter, such as `CriticAugmenter()`")),
    "max_repairs": checks.optional(checks.whole(0)),
    "curator": checks.optional(checks.able("curate", expected="a curator, such as `Curator()`")),
    "trainer": checks.optional(checks.TRAINER),
    "agents": checks.optional(
        checks.table(
            "agent names with lists of predictor names, none empty, such as `{'team': ['solver', 'critic']}`",
            lambda names: bool(names) and checks.NAMES.fits(names),
        )
    ),
    "frozen": checks.NAMES,
    "mixed": checks.FLAG,
    "cumulative": checks.FLAG,
    "train_from": checks.choice("base", "current"),
    "cold_start": checks.optional(checks.DEMOS_BY_NAME),
    "promote": checks.FLAG,
    "tracker": checks.optional(
        checks.able("on_compile_started", expected="a tracker; for several, `Trackers([one, another])`")
    ),
    "library": checks.optional(checks.instance(ExperienceLibrary, hint=", e.g. `ExperienceLibrary('runs.sqlite')`")),
    "run_dir": checks.optional(checks.PATH),
    "num_threads": checks.optional(checks.whole(1)),
    "retries": checks.whole(0),
    "call_timeout_s": checks.optional(checks.number(above=0)),
    "run_timeout_s": checks.optional(checks.number(above=0)),
    "max_unfinished": checks.whole(0),
    "seed": checks.SEED,
    "accept_changes": checks.NAMES,
}
"""Of what kind each setting is."""

_DESCRIBED_APART = frozenset(
    ["metric", "augmenter", "curator", "trainer", "agents", "frozen", "cold_start", "tracker", "library"]
)
"""Settings that are parts of the identity by themselves, or change nothing in what is learnt."""

_FREE = frozenset(["iterations", "num_threads", "run_dir", "accept_changes", "retries", "max_unfinished"])
"""Settings that may differ when a compile is resumed; limits of time, which end in `_s`, may, too."""

Demos = Mapping[str, Sequence[dspy.Example]]

DEFAULT_AUGMENTER = CriticAugmenter()
"""The paper's repair, one critique and one new answer per step."""


class SiriuS(Teleprompter):
    """Makes each agent of a program better by fine-tuning it on the program's own good runs.

    One iteration: run the program on the trainset (several samples per example), repair what failed, fine-tune each
    agent on its own steps of the good runs, and keep the new weights if the whole program is not worse on the valset.

    Args:
        metric: `metric(example, prediction, trace=None)`, giving a number, a bool, or a `dspy.Prediction` with `score`
            and, where agents have rewards of their own (a game), `rewards={agent: number}`.
        threshold: A run succeeded if its reward is at least this; one that broke never did. 1.0 fits right-or-wrong
            metrics.
        iterations: T in the paper.
        samples: Runs per example and iteration (max_sol in the paper). The first uses the LMs as they are, the others
            `temperature`.
        until_solved: Stop sampling an example at its first success. Cheaper; without it, training sees more variety.
        temperature: Of all samples after the first.
        augmenter: Repairs one failed run of each example that no sample solved; `None` turns repair off.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all. A repair takes up to three LM calls
            and a rerun for each step of a run.
        curator: Chooses the rows to train on.
        trainer: Fine-tunes an agent; by default through the provider of its LM.
        agents: Agent name to predictor names that share one set of weights; every other predictor is an agent itself.
        frozen: Agents that are never trained, e.g. a judge or an opponent.
        mixed: Train one model on the rows of all agents (an ablation of the paper).
        cumulative: Train on the good runs of all iterations so far; the paper leaves open which, and by default it is
            this iteration's alone. Agents succeed on what they find easy; what was repaired once stays in this way.
        train_from: `base` trains every iteration from the weights the student came with, as the paper does; `current`
            from the last promoted ones.
        cold_start: Predictor name to demonstrations, shown while collecting to agents that still have the weights they
            came with, and never in a training prompt. For models too weak to succeed without.
        promote: Keep new weights only if the program's mean reward on the valset does not drop; where it does, agents
            are tried one by one. Without it, new weights are always kept.
        tracker: Is told what happens; `Trackers([...])` for several.
        library: Where runs are kept; by default a SQLite file in `run_dir`.
        run_dir: Everything that was finished is here, and the same `compile` call goes on from it after any
            interruption. By default a new folder under `sirius_runs/`.
        num_threads: Runs at a time; DSPy's setting by default.
        accept_changes: What may differ from the compile that `run_dir` belongs to, by the names that
            `RunMismatchError` lists, e.g. `["metric"]`: only you know that a change does not matter to what is done.
        retries: Tries after the first for an LM call that fails in the LM or the network, with growing waits that are
            never shorter than the server asks for. Those that the LM object makes by itself count.
        call_timeout_s: Seconds that one LM call may take; `None` is for ever.
        run_timeout_s: Seconds that one run of the program may take; `None` is for ever.
        max_unfinished: Examples whose runs or repairs may stay without an end in one stage before the compile stops
            and names them. Validation is always complete.
        seed: Decides rollout ids, the order of rows, and what a trainer does with it.

    Examples:
        ```python
        optimizer = SiriuS(metric=exact_match, iterations=2)
        compiled = optimizer.compile(program, trainset=train, valset=validation)
        print(compiled.detailed_results["best_score"])
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
        samples: int = 4,
        until_solved: bool = False,
        temperature: float = 1.0,
        augmenter: Augmenter | None = DEFAULT_AUGMENTER,
        max_repairs: int | None = None,
        curator: Curator | None = None,
        trainer: Trainer | None = None,
        agents: Mapping[str, Sequence[str]] | None = None,
        frozen: Sequence[str] = (),
        mixed: bool = False,
        cumulative: bool = False,
        train_from: Literal["base", "current"] = "base",
        cold_start: Demos | None = None,
        promote: bool = True,
        tracker: Tracker | None = None,
        library: ExperienceLibrary | None = None,
        run_dir: str | Path | None = None,
        num_threads: int | None = None,
        accept_changes: Sequence[str] = (),
        retries: int = 4,
        call_timeout_s: float | None = 600.0,
        run_timeout_s: float | None = 3600.0,
        max_unfinished: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.threshold = threshold
        self.iterations = iterations
        self.samples = samples
        self.until_solved = until_solved
        self.temperature = temperature
        self.augmenter = augmenter
        self.max_repairs = max_repairs
        self.curator = curator
        self.trainer = trainer
        self.agents = agents
        self.frozen = frozen
        self.mixed = mixed
        self.cumulative = cumulative
        self.train_from = train_from
        self.cold_start = cold_start
        self.promote = promote
        self.tracker = tracker
        self.library = library
        self.run_dir = run_dir
        self.num_threads = num_threads
        self.accept_changes = accept_changes
        self.retries = retries
        self.call_timeout_s = call_timeout_s
        self.run_timeout_s = run_timeout_s
        self.max_unfinished = max_unfinished
        self.seed = seed

    def get_params(self) -> dict[str, Any]:
        """The scalar settings, in a new dict: `mlflow.dspy.autolog` writes into what it gets."""
        return {name: value for name, value in vars(self).items() if isinstance(value, str | bool | int | float)}

    def counted(self) -> dict[str, Any]:
        """The plain settings that a compile cannot be resumed without."""
        left_out = _DESCRIBED_APART | _FREE
        return {name: value for name, value in vars(self).items() if name not in left_out and not name.endswith("_s")}

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
            trainset: Examples with inputs; what else they hold is the gold answer, shown to metric and critic alone.
            teacher: One or more programs with the student's predictor names; they make the runs of the first iteration
                in its place.
            valset: Decides what is promoted, and which iteration is returned. By default the trainset, with a warning.

        Returns:
            A compiled copy with the weights of the best iteration, and `detailed_results`, a plain dict.

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
                again. Call again to go on.
            UnfinishedError: Some runs did not end, because the LM or the network failed. Call again to run them.
            TrainingError: A fine-tuning job failed. Call again to go on.
        """
        job = self._prepared(student, trainset, teacher, valset)
        with job.run_dir.locked(), job.told(), redacting_errors(), job.serving(), dspy.context(disable_history=True):
            return job.run()

    def _prepared(self, student: Any, trainset: Any, teacher: Any, valset: Any) -> Loop:
        self._check_settings()
        prepare.check_student(student)
        train = check_examples(trainset, "trainset")
        if valset is None:
            prepare.warn_about_valset()
        val = train if valset is None else check_examples(valset, "valset")
        check_storable(train, "trainset")
        check_storable(val, "valset")
        check_metric(self.metric)
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        check_adapter(adapter)
        agents = prepare.resolve_agents(student, self.agents, mixed=self.mixed, frozen=self.frozen)
        frozen = prepare.check_frozen(self.frozen, agents)
        lms = prepare.starting_lms(student, agents)
        teachers = prepare.check_teachers(teacher, student)
        for program in teachers or [student]:
            prepare.check_inputs(program, train, "trainset")
        prepare.check_inputs(student, val, "valset")
        prepare.remember_lms([student, *teachers], self.augmenter)
        prepare.check_demos(self.cold_start or {}, student)
        if (check := getattr(self.augmenter, "check", None)) is not None:  # a third party's may have none
            check(student)
        if (check := getattr(self.curator, "check", None)) is not None:
            check()
        trainer = self.trainer or ProviderTrainer()
        for agent in agents:
            if agent not in frozen:
                trainer.check(agent, lms[agent])
        trained = {agent: names for agent, names in agents.items() if agent not in frozen}
        prepare.check_media(student, train, trained, lms, getattr(trainer, "trains_on_images", lambda lm: False))
        return Loop(
            settings=self,
            student=student,
            trainset=train,
            valset=val,
            teachers=teachers,
            agents=agents,
            frozen=frozen,
            start=lms,
            trainer=trainer,
            adapter=prepare.adapter_name(adapter),
            run_dir=RunDir(self._folder()),
        )

    def _folder(self) -> Path:
        default = Path("sirius_runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        return Path(self.run_dir or default).absolute()  # the results name it, and `chdir` must not move it

    def _check_settings(self) -> None:
        """Refuse settings of the wrong kind, and those that contradict each other.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("SiriuS", vars(self), _SETTINGS)
        if self.samples > 1 and not self.temperature > 0:
            raise SettingsError(
                f"`temperature` is {self.temperature!r}, so all {self.samples} samples would be the same. Choose one "
                "above 0, or `samples=1`."
            )
        if self.mixed and self.agents:
            raise SettingsError(
                f"`mixed=True` trains one model for all agents, but `agents` groups them as {dict(self.agents)}. Leave "
                "one of the two out."
            )
        if unknown := sorted(path for path in self.accept_changes if part_of(path) not in PARTS):
            raise SettingsError(
                f"`accept_changes` names {unknown}, expected names that begin with one of {sorted(PARTS)}."
            )
