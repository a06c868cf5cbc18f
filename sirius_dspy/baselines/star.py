"""STaR: a single agent is trained on its right answers and on explanations of the answers it got wrong.

References:
    Zelikman et al., STaR: Bootstrapping Reasoning With Reasoning (arXiv:2203.14465), Algorithm 1: answer; if wrong,
    answer again with the gold answer as a hint; keep the runs that end in the gold answer; fine-tune the base model on
    both, with prompts without the hint; repeat. Here, `SiriuS` runs the loop, and rationalization is its augmenter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import ReplayDivergedError, UnreadableValueError
from sirius_dspy.optimizer.settings import Collect
from sirius_dspy.optimizer.sirius import SiriuS
from sirius_dspy.plain import readable
from sirius_dspy.program import predictor_names, signature_of
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard
from sirius_dspy.repair.prompts import free_name
from sirius_dspy.running.metric import Metric
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.trajectory import Attempt, Edit, Repair, Step, Trajectory, Usage, Values, Verdict, from_plain, to_plain

HINT = "hint"
"""Input field that rationalization adds to the agent's signature."""

TRACES = r"\bhint(?:s|ed)?\b|\b(?:given|provided|known) (?:correct |gold )?answer\b|\bas (?:told|instructed)\b"
"""Phrases that mention the hint, which does not exist at inference."""


def star(metric: Metric, **settings: Any) -> SiriuS:
    """Return STaR for a program with one predictor, ideally one that reasons before it answers (`dspy.ChainOfThought`).

    Without a reasoning field, the rationalized rows are just the gold answers, so this is supervised fine-tuning.

    Args:
        metric: See `SiriuS`.
        settings: Settings of `SiriuS`. By default, there is one greedy run per example, training starts from the base
            weights, and there is no gate, because STaR always keeps the new weights. As for every method here, the best
            iteration on the valset is returned.
    """
    defaults: dict[str, Any] = {"collect": Collect(samples=1), "augmenter": Rationalizer(), "gate": None}
    return SiriuS(metric, **{**defaults, **settings})


class Rationalizer(Augmenter):
    """Calls a failed agent again, with the gold answer as a hint.

    If the metric accepts the answer, it becomes a training row with the prompt without the hint.

    Args:
        guard: Refuses rationales that mention the hint. STaR has no such filter; `None` disables it.
    """

    GUARD = LeakGuard(TRACES)

    def __init__(self, guard: Guard | None = GUARD) -> None:
        self.guard = guard

    def check(self, program: dspy.Module) -> None:
        """Check the guard.

        Raises:
            SettingsError: The guard, or one of its settings, is of the wrong kind.
        """
        checks.check(
            "Rationalizer",
            vars(self),
            {"guard": GUARD_KIND},
        )
        if self.guard is not None:
            self.guard.check(list(predictor_names(program)))

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `sirius_dspy.repair.augmenters.Augmenter.repair`; the first step of a trained agent is repeated."""
        steps = enumerate(failed.steps)
        position = next((number for number, step in steps if context.may_edit(failed, step)), None)
        if position is None:
            return RepairOutcome(Repair(failed.id, (), failed.run, failed.iteration), ())
        attempt, trajectory = self._attempt(failed, example, context, position)
        repair = Repair(failed.id, (attempt,), failed.run, failed.iteration)
        return RepairOutcome(repair, () if trajectory is None else (trajectory,))

    def _attempt(
        self, failed: Trajectory, example: dspy.Example, context: RepairContext, position: int
    ) -> tuple[Attempt, Trajectory | None]:
        step = failed.steps[position]
        try:
            asked = _rationalize(failed, step, example, context)
        except UnreadableValueError as error:
            return Attempt(position, step.predictor, "unparsed", detail=str(error)), None
        outputs = _fields(asked, signature_of(predictor_names(context.program)[step.predictor]))
        usage = sum((call.usage for call in asked.steps), Usage())
        attempt = Attempt(position, step.predictor, "unparsed", regenerated=outputs, rephrased=outputs, usage=usage)
        if outputs is None:
            return replace(attempt, detail="no rationale"), None
        if any(call.was_cut for call in asked.steps):
            return replace(attempt, detail="the rationale was cut off"), None
        if leak := self.guard and self.guard.leak(outputs, step, to_plain(example.labels()), answers=True):
            return replace(attempt, verdict="leaked", detail=leak), None
        try:
            trajectory = context.replay(failed, example, Edit(position, outputs), "rationalized")
        except ReplayDivergedError as error:
            return replace(attempt, verdict="diverged", detail=str(error)), None
        verdict: Verdict = "repaired" if trajectory.succeeded(context.threshold) else "failed"
        return replace(attempt, verdict=verdict, reward=trajectory.reward, trajectory=trajectory.id), trajectory


def _rationalize(failed: Trajectory, step: Step, example: dspy.Example, context: RepairContext) -> Recording:
    """Call the agent with its inputs and the gold answer, which demonstrations also have."""
    original = predictor_names(context.program)[step.predictor]
    signature = signature_of(original)
    name = free_name(HINT, signature)
    field = dspy.InputField(desc="the correct answer; explain how to get there, as if you had found it yourself")
    predictor = dspy.Predict(signature.append(name, field, type_=str))
    predictor.lm = original.lm
    labels = to_plain(example.labels())
    demos = context.rollouts.demos.get(step.predictor, original.demos)
    predictor.demos = [_add_hint(demo, name, list(labels)) for demo in demos]
    inputs = {
        key: from_plain(value, signature.input_fields[key].annotation) for key, value in _known_inputs(step, signature)
    }
    sampling = Sampling(context.key(failed, example, "rationalize"))
    recording = record(predictor, {**inputs, name: _hint(labels)}, sampling)
    recording.check_ended()
    return recording


def _fields(asked: Recording, signature: type[dspy.Signature]) -> Values | None:
    """Return the new answer without fields that DSPy adds to the signature."""
    outputs = asked.steps[0].outputs if asked.steps else None
    return outputs and {name: value for name, value in outputs.items() if name in signature.output_fields}


def _known_inputs(step: Step, signature: type[dspy.Signature]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in step.inputs.items() if name in signature.input_fields]


def _add_hint(demo: dspy.Example, name: str, labels: Sequence[str]) -> dspy.Example:
    """Add a demonstration's answer to it as the hint. A demonstration without an answer is unchanged."""
    labelled = {label: demo[label] for label in labels if label in demo}
    return demo.copy(**{name: _hint(labelled)}) if labelled else demo


def _hint(labels: Values) -> str:
    return "\n".join(f"{name}: {readable(value)}" for name, value in labels.items())
