"""DSPy's prompt optimizers as baselines: the same program and metric, better instructions in place of better weights.

Both ask the team's own LM for new instructions unless another one is given, and get a number of metric calls: one run
of the program on one example is one. What they ask the LM beyond that shows up in the `Meter`, as for every method.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from sirius_dspy import checks
from sirius_dspy.baselines.method import prepare_student, put_lms_back, quiet, the_lm
from sirius_dspy.errors import DatasetError, MissingDependencyError, TrainingError
from sirius_dspy.plain import readable
from sirius_dspy.running.metric import Metric, call_metric, to_score
from sirius_dspy.trajectory import to_plain

_INSTRUCTION_TOKENS = 512
"""Room for the instructions of one agent, and for what is thought before."""


_SETTINGS = {
    "metric": checks.METRIC,
    "max_metric_calls": checks.whole(1),
    "num_threads": checks.optional(checks.whole(1)),
    "seed": checks.SEED,
}
"""Of what kind the settings are that both methods have."""


@dataclass(frozen=True)
class GEPA:
    """`dspy.GEPA`: reflects on failed runs and rewrites one predictor's instructions at a time.

    Attributes:
        metric: See `sirius_dspy.running.metric.Metric`.
        max_metric_calls: Runs of the program, about: GEPA finishes the round it is in.
        reflection_lm: Writes the instructions; by default the program's own LM, as for the other methods.
        num_threads: Runs at a time; DSPy's setting by default.
        seed: Of GEPA's choices.
    """

    metric: Metric
    max_metric_calls: int
    reflection_lm: dspy.LM | None = None
    num_threads: int | None = None
    seed: int = 0

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
        """See `Method.compile`.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
            UnpreparedProgramError: A predictor has no LM, or there are several LMs and no `reflection_lm`.
            DatasetError: `max_metric_calls` does not even pay for the first look at the valset.
        """
        checks.check("GEPA", vars(self), _SETTINGS | {"reflection_lm": checks.optional(checks.LM)})
        program = prepare_student(student)
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
        """The score, and the gold answer in words: what the critic of a repair sees, too."""
        reward = _reward(self.metric, gold, pred)
        expected = "\n".join(f"{name}: {value}" for name, value in readable(to_plain(gold.labels())).items())
        return dspy.Prediction(score=reward, feedback=f"The score of this run is {reward}. Expected was:\n{expected}")


@dataclass(frozen=True)
class MIPROv2:
    """`dspy.MIPROv2`: proposes instructions and demonstrations for all predictors, and searches for the best mix.

    Attributes:
        metric: See `sirius_dspy.running.metric.Metric`.
        max_metric_calls: Runs of the program at most. A half goes into demonstrations, from as many training examples
            as it pays for (each candidate set may run them all); the other into trials, each on the whole valset.
        num_candidates: Instructions and sets of demonstrations to choose from.
        max_demos: Demonstrations per predictor, own good runs and labelled examples each; 0 for instructions only.
        prompt_lm: Writes the instructions; by default the program's own LM.
        num_threads: Runs at a time; DSPy's setting by default.
        seed: Of MIPROv2's choices.
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
            TrainingError: The LM that writes instructions cannot be parsed.
            DatasetError: `max_metric_calls` does not pay for two looks at the valset and one training example.
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
            max_errors=half + len(trainset),  # a failed run scores 0, here as everywhere
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
            except AdapterParseError as error:  # of the proposals: a run that does not parse is caught inside
                raise TrainingError(
                    f"MIPROv2 gave up, since the LM that writes instructions did not keep to the format: {error} Give "
                    "it a stronger `prompt_lm`."
                ) from error
        return put_lms_back(best, program)


def _writer(lm: dspy.LM) -> dspy.LM:
    """The agents' LM, free to write instructions: an agent's limit of tokens is one for its short answers."""
    limit = lm.kwargs.get("max_tokens")
    return lm.copy(temperature=1.0, **({"max_tokens": max(limit, _INSTRUCTION_TOKENS)} if limit else {}))


def _reward(metric: Metric, example: dspy.Example, prediction: Any) -> float:
    """The reward of a run; 0 where the metric raises, as in a rollout."""
    try:
        value = call_metric(metric, example, prediction, None)
    except Exception:
        return 0.0
    return to_score(value, example).reward


def _check_calls(calls: int, least: int) -> None:
    if calls < least:
        raise DatasetError(
            f"`max_metric_calls` is {calls!r}, expected at least {least} for a valset of this size. Allow more runs, "
            "or take a smaller valset."
        )
