"""DSPy's fine-tuning optimizer as a baseline, with the same trainer as the other methods.

`dspy.BootstrapFinetune` runs each example once, keeps the runs that the metric accepts, and fine-tunes on all of their
steps. Its algorithm is unchanged. This wrapper avoids what would prevent a comparison: DSPy changes the student in
place, starts all jobs at once, stops at the first example whose run raises, counts a run that does not parse as a
success (its score is -1, and any number but 0 is true), and identifies the predictor of a step by its position in the
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import dspy
from dspy.utils.exceptions import AdapterParseError

from sirius_dspy import checks, dspy_internals
from sirius_dspy.baselines.method import Demos, prepare_student, quiet
from sirius_dspy.errors import NoSuccessError, SiriuSError, UnfinishedError, UnpreparedProgramError
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.program import predictor_names, signature_of
from sirius_dspy.running.faults import fault_of, raise_if_systemic
from sirius_dspy.running.metric import Metric, call_metric, to_score
from sirius_dspy.training.prompts import check_adapter
from sirius_dspy.training.trainers import ProviderTrainer, Trainer, TrainingRequest

_SETTINGS = {
    "metric": checks.METRIC,
    "run_dir": checks.PATH,
    "threshold": checks.number(),
    "shared": checks.FLAG,
    "demos": checks.DEMOS_BY_NAME,
    "trainer": checks.instance(Trainer, hint=", such as `ProviderTrainer()`"),
    "num_threads": checks.optional(checks.whole(1)),
    "seed": checks.SEED,
}
"""The kind of each setting of `BootstrapFinetune`."""


@dataclass(frozen=True)
class BootstrapFinetune:
    """`dspy.BootstrapFinetune`, trained through a `Trainer`.

    Attributes:
        metric: See `sirius_dspy.running.metric.Metric`.
        run_dir: Folder of the weights; finished jobs in it are not repeated.
        threshold: A run succeeds if its reward is at least this value.
        shared: Whether all predictors share one set of weights (DSPy's `multitask`); by default, each has its own.
        demos: Demonstrations in the prompts while collecting, but not in training prompts, like `Collect.demos`.
        trainer: Trainer of the agents; `ProviderTrainer()` by default.
        num_threads: Number of parallel runs; DSPy's setting by default.
        seed: Seed of the trainer; DSPy's order of the rows does not depend on it.
    """

    metric: Metric
    run_dir: str | Path
    threshold: float = 1.0
    shared: bool = False
    demos: Demos = field(default_factory=dict)
    trainer: Trainer = field(default_factory=ProviderTrainer)
    num_threads: int | None = None
    seed: int = 0

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`; the valset is not used, as DSPy does not.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
            UnpreparedProgramError: The LMs or the adapter cannot be trained, or DSPy would assign a predictor's rows to
                another one.
            NoSuccessError: No run succeeded.
            RolloutError: The LM failed because of credentials, credit or configuration.
            UnfinishedError: An LM failed during a run.
            TrainingError: A job failed.
        """
        checks.check("BootstrapFinetune", vars(self), _SETTINGS)
        program = prepare_student(student, self.demos)
        check_adapter(dspy.settings.adapter or dspy.ChatAdapter())
        for name, predictor in predictor_names(program).items():
            self.trainer.check(name, cast(dspy.LM, predictor.lm))
        whole = _FailsAsOne(program)
        optimizer = _Optimizer(self, whole)
        with quiet():
            try:
                optimizer.compile(whole, trainset=trainset)
            except ValueError as error:  # DSPy raises this for runs that raised
                raise whole.fatal or error from error
        return program

    def good(self, example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
        """Adapt the metric to DSPy."""
        return to_score(call_metric(self.metric, example, prediction, trace), example).reward >= self.threshold


class _FailsAsOne(dspy.Module):
    """Wraps the program, and raises every failure of a run as the one error that DSPy's collector handles."""

    def __init__(self, program: dspy.Module) -> None:
        super().__init__()
        self.program = program
        self.fatal: SiriuSError | None = None

    def forward(self, **inputs: Any) -> Any:
        try:
            return self.program(**inputs)
        except Exception as error:
            self._note(error)
            reply = error.lm_response if isinstance(error, AdapterParseError) else str(error)
            signature = signature_of(next(iter(predictor_names(self.program).values())))
            raise AdapterParseError(adapter_name="none", signature=cast(Any, signature), lm_response=reply) from error

    def _note(self, error: Exception) -> None:
        """Store an error that affects every example; DSPy would count it as one failed example."""
        try:
            raise_if_systemic(error)
        except SiriuSError as fatal:
            self.fatal = fatal
        else:
            if fault_of(error) == "transient":
                self.fatal = self.fatal or UnfinishedError(
                    f"An LM failed while BootstrapFinetune collected runs: {type(error).__name__}: {error} DSPy would "
                    "count that as a wrong answer. Run the same `compile` again."
                )


class _Optimizer(dspy_internals.BootstrapFinetune):
    """DSPy's optimizer with the success rule and the trainer of this package."""

    def __init__(self, settings: BootstrapFinetune, whole: _FailsAsOne) -> None:
        num_predictors = len(predictor_names(whole.program))
        super().__init__(
            metric=settings.good,
            multitask=settings.shared,
            exclude_demos=True,
            num_threads=max(settings.num_threads or dspy.settings.num_threads or 8, num_predictors),
        )
        self.settings = settings
        self.whole = whole

    def choose_runs(self, runs: list[Any], place: int | None) -> list[Any]:
        """Drop failed runs, whose score DSPy takes for true."""
        if self.whole.fatal is not None:
            raise self.whole.fatal
        good = [item for item in runs if item["score"] is True]
        if not good:
            raise NoSuccessError(
                f"None of {len(runs)} runs reached the threshold {self.settings.threshold}, so BootstrapFinetune "
                "has nothing to train on. Pass demonstrations (`demos=`), a better LM, or easier examples."
            )
        if place is not None:
            _check_places(good, place, self.whole.program)
        return good

    def finetune_lms(self, finetune_dict: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dspy.LM]:  # type: ignore[override]  # static there, called on the instance
        """Train one LM after the other with the trainer of this package."""
        names = list(predictor_names(self.whole.program))
        trained: dict[Any, dspy.LM] = {}
        for number, ((lm, place), job) in enumerate(finetune_dict.items()):
            agent = f"shared-{number}" if place is None else names[place]
            trained[lm, place] = self._train(agent, lm, job["train_data"])
        return trained

    def _train(self, agent: str, lm: dspy.LM, rows: Sequence[Mapping[str, Any]]) -> dspy.LM:
        workdir = RunDir(Path(self.settings.run_dir)).weights(1, agent)
        request = TrainingRequest(agent, lm, rows, workdir, self.settings.seed, lambda step, total, loss: None)
        return self.settings.trainer.train(request)


def _check_places(runs: Sequence[Mapping[str, Any]], place: int, program: dspy.Module) -> None:
    """Refuse programs whose n-th call is not always of the n-th predictor, because DSPy would mix up their rows.

    Raises:
        UnpreparedProgramError: Another predictor makes that call.
    """
    name, predictor = list(predictor_names(program).items())[place]
    if any(place < len(run["trace"]) and run["trace"][place][0] is not predictor for run in runs):
        raise UnpreparedProgramError(
            f"BootstrapFinetune trains predictor {name!r} on call number {place + 1} of each run, which another "
            "predictor makes in this program. Use `BootstrapFinetune(shared=True)`, one set of weights for all."
        )
