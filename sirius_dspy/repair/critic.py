"""The paper's augmentation: a critic who knows the answer advises one agent, and the agent answers again.

All traces of the correction are rephrased away, and the program runs on from there.

References:
    Algorithm 2 of SiriuS (arXiv:2502.04780). Where it is silent or contradicts itself we choose: steps are edited one
    at a time in call order (or in that of their credit), each time from the original run; the first success ends the
    repair; whatever reads the repaired answer answers again (see `sirius_dspy.running.replay.replay`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import dspy
from pydantic.fields import FieldInfo

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError, UnreadableValueError
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome, take_first_success
from sirius_dspy.repair.case import Case, answer_text, fields_text, output_text, usage_of, was_cut
from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.critic_training import CriticTraining, LearningCritic
from sirius_dspy.repair.demos import RepairDemos
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard, check_guard
from sirius_dspy.repair.prompts import ATTEMPT, FEEDBACK, Critique, Rephrase, free_name, regeneration_of
from sirius_dspy.repair.trial import replay_unless_leaked
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.trajectory import Trajectory, Usage, Values, to_plain

_SETTINGS = {
    "critic": checks.optional(checks.LM),
    "training": checks.optional(checks.instance(CriticTraining, hint=", such as `CriticTraining()`")),
    "rephraser": checks.optional(checks.LM),
    "max_feedback": checks.whole(0),
    "max_regenerations": checks.whole(1),
    "temperature": checks.number(0),
    "rephrase": checks.FLAG,
    "show_earlier": checks.FLAG,
    "demos": checks.optional(checks.instance(RepairDemos)),
    "guard": GUARD_KIND,
    "max_repairs": checks.optional(checks.whole(0)),
}
"""Of what kind each setting of a `CriticAugmenter` is."""


class CriticAugmenter(Augmenter):
    """The paper's augmentation: critique, regenerate, rephrase, replay.

    Args:
        critic: The LM that gives feedback; by default the edited agent's own. A stronger one repairs more.
        training: Fine-tunes the critic during a compile on its advice that helped, such as `CriticTraining()`. It needs
            a `critic` that the trainer can fine-tune; `None` leaves the critic as it is.
        rephraser: The LM that rephrases; by default the edited agent's own, as in the paper's code.
        max_feedback: Critiques per step (the paper's max_f).
        max_regenerations: New answers per critique (the paper's max_re).
        temperature: Of all tries after the first, which at temperature 0 would only repeat it.
        rephrase: Ask for a rephrased text. Without it, what the agent wrote is used as it is, and the leak guard alone
            stands between feedback and training set.
        show_earlier: Show an agent its earlier answer when it answers again, as the paper does. A tiny model copies it:
            SmolLM2-135M, told where to look, repaired 25 of 105 failed extractions with it and 66 without.
        demos: Shown to the critic, the agents and the rephraser during repairs.
        guard: Decides which edits give too much away.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.
    """

    def __init__(
        self,
        critic: dspy.LM | None = None,
        *,
        training: CriticTraining | None = None,
        rephraser: dspy.LM | None = None,
        max_feedback: int = 1,
        max_regenerations: int = 1,
        temperature: float = 1.0,
        rephrase: bool = True,
        show_earlier: bool = True,
        demos: RepairDemos | None = None,
        guard: Guard | None = None,
        max_repairs: int | None = None,
    ) -> None:
        self.critic = critic
        self.training = training
        self.rephraser = rephraser
        self.max_feedback = max_feedback
        self.max_regenerations = max_regenerations
        self.temperature = temperature
        self.rephrase = rephrase
        self.show_earlier = show_earlier
        self.demos = demos
        self.guard = guard
        self.max_repairs = max_repairs

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: for each step a critique, an answer, a rephrased text and a rerun."""
        tries = self.max_feedback * (1 + self.max_regenerations * (1 + self.rephrase))
        return tries, sum(tries + position for position in range(num_steps))

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind, and demonstrations that would be silently ignored.

        Raises:
            SettingsError: The message names the setting.
            UnpreparedProgramError: Demonstrations are for unknown predictors.
        """
        checks.check(type(self).__name__, vars(self), _SETTINGS)
        if self.max_feedback * self.max_regenerations > 1 and not self.temperature > 0:
            raise SettingsError(
                f"`temperature` of {type(self).__name__} is {self.temperature!r}, so all tries would be the same. "
                "Choose one above 0, or one try."
            )
        self._check_training()
        self._demos.check(program, show_earlier=self.show_earlier)
        check_guard(self.guard, program)

    def learning_critic(self) -> LearningCritic | None:
        """See `Augmenter.learning_critic`."""
        return None if self.critic is None or self.training is None else LearningCritic(self.critic, self.training)

    def with_critic(self, lm: dspy.LM, *, alone: bool = False) -> Self:
        """See `Augmenter.with_critic`. The new critic was trained without demonstrations, so it gets none."""
        changed = copy.copy(self)
        changed.critic = lm
        changed.demos = replace(self._demos, critique=())
        return changed

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        return take_first_success(failed, self._attempts(Case(failed, example, context)))

    def _check_training(self) -> None:
        if self.training is None:
            return
        self.training.check()
        if self.critic is None:
            raise SettingsError(
                f"`training` of {type(self).__name__} is set, but `critic` is None: each agent advises itself, and "
                "there is no critic to train. Pass an LM that can be fine-tuned as `critic`."
            )

    @property
    def _demos(self) -> RepairDemos:
        return self.demos or RepairDemos()

    def _attempts(self, case: Case) -> Iterator[Tried]:
        for position in case.context.order(case.failed):
            if not case.can_edit(case.failed.steps[position]):
                continue
            for feedback_try in range(self.max_feedback):
                critique = self._critique(case, position, feedback_try)
                feedback = output_text(critique, "feedback")
                if not feedback:
                    yield case.attempt(position, "unparsed", usage=usage_of(critique), detail="no feedback"), ()
                    continue
                usage = usage_of(critique)
                for regeneration_try in range(self.max_regenerations):
                    tries = (feedback_try, regeneration_try)
                    yield self._try_feedback(case, position, feedback, tries, usage)
                    usage = Usage()  # the critique is paid once

    def _try_feedback(self, case: Case, position: int, feedback: str, tries: tuple[int, int], usage: Usage) -> Tried:
        try:
            regeneration = self._regenerate(case, position, feedback, tries)
        except UnreadableValueError as error:
            return case.attempt(position, "unparsed", feedback=feedback, usage=usage, detail=str(error)), ()
        outputs = case.fields_of(position, regeneration)
        usage += usage_of(regeneration)
        fields: dict[str, Any] = {"feedback": feedback, "regenerated": outputs, "usage": usage}
        if outputs is None:
            return case.attempt(position, "unparsed", **fields, detail="no new answer"), ()
        if was_cut(regeneration):
            return case.attempt(position, "unparsed", **fields, detail="the new answer was cut off"), ()
        if case.is_unchanged(position, outputs):
            return case.attempt(position, "unchanged", **fields), ()
        rephrased, spent = self._rephrase(case, position, outputs, tries)
        fields |= {"rephrased": rephrased, "usage": usage + spent}
        return replay_unless_leaked(case, position, rephrased, self.guard or LeakGuard(), tries, fields)

    def _critique(self, case: Case, position: int, feedback_try: int) -> Recording:
        inputs = critique_inputs(case.failed, case.example, position)
        lm = self.critic or case.lm_of(case.failed.steps[position])
        key = case.key("critique", position, feedback_try)
        return self._ask(Critique, inputs, lm, key, feedback_try, demos=self._demos.critique)

    def _regenerate(self, case: Case, position: int, feedback: str, tries: tuple[int, int]) -> Recording:
        step, signature = case.failed.steps[position], case.signature_of(case.failed.steps[position])
        inputs = case.inputs_of(position)
        if self.show_earlier:
            inputs[free_name(ATTEMPT, signature)] = answer_text(step)
        inputs[free_name(FEEDBACK, signature)] = feedback
        return self._ask(
            regeneration_of(signature, show_earlier=self.show_earlier),
            inputs,
            case.lm_of(step),
            case.key("regenerate", position, *tries),
            sum(tries),
            demos=self._demos.regenerate.get(step.predictor, ()),
        )

    def _rephrase(
        self, case: Case, position: int, outputs: Values, tries: tuple[int, int]
    ) -> tuple[dict[str, Any], Usage]:
        """The outputs with their free text rephrased; answers, numbers and choices stay as they are."""
        step, usage, rephrased = case.failed.steps[position], Usage(), dict(outputs)
        fields = case.signature_of(step).output_fields
        for name, value in outputs.items() if self.rephrase else ():
            if name in case.answer_fields(step, outputs) or not _is_free_text(fields[name], value):
                continue
            inputs = {"task": fields_text(step.inputs), "text": value}
            key = case.key(f"rephrase/{name}", position, *tries)
            lm = self.rephraser or case.lm_of(step)
            asked = self._ask(Rephrase, inputs, lm, key, sum(tries), demos=self._demos.rephrase)
            usage += usage_of(asked)
            rephrased[name] = "" if was_cut(asked) else output_text(asked, "rewritten")
            rephrased[name] = rephrased[name] or value
        return rephrased, usage

    def _ask(
        self,
        signature: type[dspy.Signature],
        inputs: Mapping[str, Any],
        lm: dspy.LM,
        key: str,
        retry: int,
        *,
        demos: Sequence[dspy.Example],
    ) -> Recording:
        """One LM call through DSPy, recorded for its price and with its failure as data."""
        predictor = dspy.Predict(signature)
        predictor.lm = lm
        predictor.demos = list(demos)
        recording = record(predictor, inputs, Sampling(key, {"temperature": self.temperature} if retry else {}))
        recording.check_ended()
        return recording


def critique_inputs(failed: Trajectory, example: dspy.Example, position: int) -> dict[str, str]:
    """Return what the critic reads about one step of a failed run: the inputs of `Critique`."""
    step = failed.steps[position]
    return {
        "task": fields_text(to_plain(example.inputs())),
        "team": "\n\n".join(f"[{other.predictor}]\n{answer_text(other)}" for other in failed.steps),
        "agent": step.predictor,
        "agent_inputs": fields_text(step.inputs),
        "agent_answer": answer_text(step),
        "correct_answer": fields_text(to_plain(example.labels())),
    }


def _is_free_text(field: FieldInfo, value: Any) -> bool:
    return field.annotation is str and isinstance(value, str) and bool(value.strip())
