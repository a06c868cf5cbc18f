"""DSPy's prompt optimizers as baselines. They improve instructions instead of weights, for the same program and metric.

By default, the team's LM writes the new instructions. The budget is a number of metric calls, which are runs of the
program on one example. Other calls of the LM are counted by the `Meter`, as for every method.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from sirius_dspy import checks
from sirius_dspy.baselines.method import Demos, prepare_student, put_lms_back, quiet, the_lm, with_max_tokens
from sirius_dspy.errors import DatasetError, MissingDependencyError, TrainingError
from sirius_dspy.plain import readable
from sirius_dspy.running.metric import Metric, call_metric, to_score
from sirius_dspy.trajectory import to_plain

_INSTRUCTION_TOKENS = 512
"""Maximum number of tokens for the instructions of one agent, including the reasoning before them."""


_SETTINGS = {
    "metric": checks.METRIC,
    "max_metric_calls": checks.whole(1),
    "num_threads": checks.optional(checks.whole(1)),
    "seed": checks.SEED,
}
"""The kind of each setting that both methods have."""


@dataclass(frozen=True)
class GEPA:
    """`dspy.GEPA`: reflects on failed runs and rewrites one predictor's instructions at a time.

    Attributes:
        metric: See `sirius_dspy.running.metric.Metric`.
        max_metric_calls: Approximate number of runs of the program; GEPA finishes its current round.
        demos: Demonstrations in the prompts, by predictor name. GEPA leaves them there and rewrites the instructions.
        reflection_lm: LM that writes the instructions; by default, the program's LM.
        num_threads: Runs at a time; DSPy's setting by default.
        seed: Seed of GEPA's random choices.
    """

    metric: Metric
    max_metric_calls: int
    demos: Demos = field(default_factory=dict)
    reflection_lm: dspy.LM | None = None
    num_threads: int | None = None
    seed: int = 0

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
            UnpreparedProgramError: A predictor has no LM, or there are several LMs and no `reflection_lm`.
            DatasetError: `max_metric_calls` is too small for the first evaluation on the valset.
        """
        kinds = {"demos": checks.DEMOS_BY_NAME, "reflection_lm": checks.optional(checks.LM)}
        checks.check("GEPA", vars(self), _SETTINGS | kinds)
        program = prepare_student(student, self.demos)
        _check_calls(self.max_metric_calls, len(valset))
        optimizer = dspy.GEPA(
            metric=self._with_feedback,
            max_metric_calls=self.max_metric_calls,
            reflection_lm=self.reflection_lm or _writer(the_lm(program)),
            num_threads=self.num_threads,
            seed=self.seed,
        )
        with quiet():
            return put_lms_back(optimizer.compile(program, trainset=trainset, valset=valset), program)

    def _with_feedback(
        self,
        gold: dspy.Example,
        pred: Any,
        trace: Any = None,
        pred_name: Any = None,
        pred_trace: Any = None,
        program_trace: Any = None,
    ) -> Any:
        """Return the score and the gold answer, which the critic of a repair also sees."""
        reward = _reward(self.metric, gold, pred)
        expected = "\n".join(f"{name}: {value}" for name, value in readable(to_plain(gold.labels())).items())
        return dspy.Prediction(score=reward, feedback=f"The score of this run is {reward}. Expected was:\n{expected}")


@dataclass(frozen=True)
class MIPROv2:
    """`dspy.MIPROv2`: proposes instructions and demonstrations for all predictors, and searches for the best mix.

    Attributes:
        metric: See `sirius_dspy.running.metric.Metric`.
        max_metric_calls: Maximum number of runs of the program. One half is for demonstrations, from as many training
            examples as possible (each candidate set may run them all); the other half is for trials on the whole
            valset.
        num_candidates: Number of instructions, and of sets of demonstrations, to choose from.
        max_demos: Maximum number of demonstrations per predictor, for successful runs and labeled examples each; 0
            optimizes instructions only.
        prompt_lm: LM that writes the instructions; by default, the program's LM.
        num_threads: Runs at a time; DSPy's setting by default.
        seed: Seed of MIPROv2's random choices.
    """

    metric: Metric
    max_metric_calls: int
    num_candidates: int = 6
    max_demos: int = 4
    prompt_lm: dspy.LM | None = None
    num_threads: int | None = None
    seed: int = 0

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`.

        Raises:
            MissingDependencyError: optuna is not installed.
            SettingsError: A setting is of the wrong kind or out of its range.
            UnpreparedProgramError: A predictor has no LM, or there are several LMs.
            TrainingError: A reply of the LM that writes instructions cannot be parsed.
            DatasetError: `max_metric_calls` is too small for two evaluations on the valset and one training example.
        """
        if importlib.util.find_spec("optuna") is None:
            raise MissingDependencyError("MIPROv2 needs optuna. Run `pip install 'optuna>=3.4'`, or use `GEPA`.")
        kinds = {
            "num_candidates": checks.whole(1),
            "max_demos": checks.whole(0),
            "prompt_lm": checks.optional(checks.LM),
        }
        checks.check("MIPROv2", vars(self), _SETTINGS | kinds)
        program = prepare_student(student)
        _check_calls(self.max_metric_calls, 4 * max(len(valset), self.num_candidates))
        half = self.max_metric_calls // 2
        optimizer = dspy.MIPROv2(
            metric=lambda example, prediction, trace=None: _reward(self.metric, example, prediction),
            prompt_model=self.prompt_lm or _writer(the_lm(program)),
            task_model=the_lm(program),
            auto=None,
            num_candidates=self.num_candidates,
            max_bootstrapped_demos=self.max_demos,
            max_labeled_demos=self.max_demos,
            num_threads=self.num_threads,
            max_errors=half + len(trainset),  # a failed run scores 0, as for every method
            metric_threshold=None,
            track_stats=False,
            seed=self.seed,
        )
        with quiet():
            try:
                best = optimizer.compile(
                    program,
                    trainset=trainset[: half // self.num_candidates],
                    valset=valset,
                    num_trials=half // len(valset) - 1,
                    minibatch=False,
                )
            except AdapterParseError as error:  # a proposal does not parse; for a run, DSPy catches this
                raise TrainingError(
                    f"MIPROv2 failed, because the LM that writes instructions did not follow the format: {error} Pass "
                    "a stronger `prompt_lm`."
                ) from error
        return put_lms_back(best, program)


def _writer(lm: dspy.LM) -> dspy.LM:
    """Return the agents' LM with a higher token limit, because agents write only short answers."""
    limit = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens")
    writer = lm.copy(temperature=1.0)
    return with_max_tokens(writer, max(limit, _INSTRUCTION_TOKENS)) if limit else writer


def _reward(metric: Metric, example: dspy.Example, prediction: Any) -> float:
    """Return the reward of a run; 0 if the metric raises, as in a rollout."""
    try:
        value = call_metric(metric, example, prediction, None)
    except Exception:
        return 0.0
    return to_score(value, example).reward


def _check_calls(calls: int, least: int) -> None:
    if calls < least:
        raise DatasetError(
            f"`max_metric_calls` is {calls!r}, expected at least {least} for a valset of this size. Allow more runs, "
            "or use a smaller valset."
        )
