"""Turn failed runs into good ones.

A critic who knows the answer advises one agent, the agent answers again, all traces of the correction are rephrased
away, and the program runs on from there.

References:
    Algorithm 2 of SiriuS (arXiv:2502.04780). Where it is silent or contradicts itself we choose: steps are edited one
    at a time in call order, each time from the original run; the first success ends the repair; whatever reads the
    repaired answer answers again (see `sirius_dspy.running.record.replay`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dspy
from pydantic.fields import FieldInfo

from sirius_dspy import checks
from sirius_dspy.errors import ReplayDivergedError, SettingsError, UnpreparedProgramError, UnreadableValueError
from sirius_dspy.plain import readable
from sirius_dspy.program import predictor_names, signature_of
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.repair.prompts import ATTEMPT, FEEDBACK, Critique, Rephrase, free_name, regeneration_of
from sirius_dspy.running.attempts import check_ended
from sirius_dspy.running.record import Recording, Sampling, check_shown, record, replay
from sirius_dspy.running.rollout import Rollouts, Task, own_copy
from sirius_dspy.trajectory import (
    Attempt,
    Edit,
    IsOwn,
    Repair,
    Step,
    Trajectory,
    Usage,
    Values,
    Verdict,
    every_step,
    from_plain,
    to_plain,
)


@dataclass(frozen=True)
class RepairContext:
    """What every repair of one iteration has in common."""

    program: dspy.Module
    rollouts: Rollouts
    """How runs are sampled and scored; replays are, too."""
    threshold: float
    """A run succeeded if it ended, with a reward of at least this."""
    editable: frozenset[str]
    """Predictors that may be edited: those of agents that are trained."""
    is_own: IsOwn = every_step
    """Whether an agent's own LM answered a step; editing what another LM answered teaches nobody."""

    def may_edit(self, failed: Trajectory, step: Step) -> bool:
        """Whether a new answer at this step could become a training row."""
        return step.predictor in self.editable and self.is_own(failed, step)

    def replayed(self, failed: Trajectory, example: dspy.Example, edit: Edit, key: str) -> Trajectory:
        """Run the program on from an edit, and score it: the trajectory that a repair stores, with its lineage.

        Args:
            failed: The run to repair.
            example: That it was made from.
            edit: What is answered in its place.
            key: Names the sample, so that another key gives other answers after the edit.

        Raises:
            ReplayDivergedError: The run did not repeat the recording up to the edit.
            UnfinishedError: An LM or the network failed.
            RolloutError: An LM refused for lack of credentials, credit or configuration.
        """
        sampling = Sampling(key, self.rollouts.first_kwargs, self.rollouts.demos)
        recording = replay(self.program, own_copy(example).inputs(), failed, edit, sampling)
        check_ended(recording)
        scored = self.rollouts.scored(example, recording, self.program)
        return Trajectory(
            example_key=failed.example_key,
            steps=recording.steps,
            prediction=scored.prediction,
            reward=scored.score.reward,
            rewards=scored.score.rewards,
            failure=scored.failure,
            program=failed.program,
            run=failed.run,
            iteration=failed.iteration,
            sample=failed.sample,
            seed=failed.seed,
            origin="repair",
            parent=failed.id,
            edited=recording.edited,
            seconds=recording.seconds,
        )


class Repaired(NamedTuple):
    """A repair, and the runs it made on the way."""

    repair: Repair
    trajectories: tuple[Trajectory, ...]


class Augmenter(ABC):
    """Makes successful runs from failed ones. Subclass it and define `repair`.

    What an LM raises may come out of `repair`: a compile waits, tries again, and repairs the run later if the LM does
    not recover. Nothing of a repair is stored before it ends.
    """

    max_repairs: int | None = None
    """Failed runs to repair in one iteration at most; `None` for all."""

    @abstractmethod
    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> Repaired:
        """Try to repair one failed run. Called from several threads at once."""

    def choose(self, failed: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Choose the failed runs of an iteration that are worth a repair; here the first `max_repairs`.

        Args:
            failed: The first failed run of each example that no sample solved, in an order that repeats.
        """
        return failed[: self.max_repairs]

    def check(self, program: dspy.Module) -> None:
        """Refuse, before anything is paid for, settings or a program that do not fit; here none is refused.

        Raises:
            SettingsError: The message names the setting.
            UnpreparedProgramError: The program does not fit.
        """

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """The least and the greatest number of LM calls that one repair makes, reruns included, for a plan.

        Args:
            num_steps: Steps of a run.
        """
        return 1, 4 * num_steps


@dataclass(frozen=True)
class RepairDemos:
    """Demonstrations of repairs, for models too small to repair without; no training prompt ever has them.

    Each example has the fields of the signature that it demonstrates, outputs included.
    """

    critique: Sequence[dspy.Example] = ()
    """Of `sirius_dspy.repair.prompts.Critique`, for all agents; the field `agent` says for which."""
    regenerate: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)
    """Predictor name to demonstrations: the predictor's own fields, `feedback`, and `earlier_answer` if it is shown."""
    rephrase: Sequence[dspy.Example] = ()
    """Of `sirius_dspy.repair.prompts.Rephrase`."""

    def check(self, program: dspy.Module, *, show_earlier: bool = True) -> None:
        """Refuse what is no demonstration, and what would be silently ignored.

        Args:
            program: Whose predictors may be repaired.
            show_earlier: As of the augmenter.

        Raises:
            SettingsError: The message names the setting.
            UnpreparedProgramError: Demonstrations are for unknown predictors.
        """
        kinds = {"critique": checks.DEMOS, "regenerate": checks.DEMOS_BY_NAME, "rephrase": checks.DEMOS}
        checks.check("RepairDemos", vars(self), kinds)
        predictors = predictor_names(program)
        if unknown := sorted(set(self.regenerate) - set(predictors)):
            raise UnpreparedProgramError(
                f"`RepairDemos.regenerate` names {unknown}; the predictors are {list(predictors)}."
            )
        check_shown("RepairDemos.critique", self.critique, Critique)
        check_shown("RepairDemos.rephrase", self.rephrase, Rephrase)
        for name, shown in self.regenerate.items():
            signature = regeneration_of(signature_of(predictors[name]), show_earlier=show_earlier)
            check_shown(f"RepairDemos.regenerate[{name!r}]", shown, signature)


_SETTINGS = {
    "critic": checks.optional(checks.LM),
    "rephraser": checks.optional(checks.LM),
    "max_feedback": checks.whole(0),
    "max_regenerations": checks.whole(1),
    "temperature": checks.number(0),
    "rephrase": checks.FLAG,
    "show_earlier": checks.FLAG,
    "demos": checks.optional(checks.instance(RepairDemos)),
    "guard": checks.optional(checks.GUARD),
    "max_repairs": checks.optional(checks.whole(0)),
}
"""Of what kind each setting of a `CriticAugmenter` is."""


class CriticAugmenter(Augmenter):
    """The paper's augmentation: critique, regenerate, rephrase, replay.

    Args:
        critic: The LM that gives feedback; by default the edited agent's own. A stronger one repairs more.
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
        rephraser: dspy.LM | None = None,
        max_feedback: int = 1,
        max_regenerations: int = 1,
        temperature: float = 1.0,
        rephrase: bool = True,
        show_earlier: bool = True,
        demos: RepairDemos | None = None,
        guard: LeakGuard | None = None,
        max_repairs: int | None = None,
    ) -> None:
        self.critic = critic
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
        self._demos.check(program, show_earlier=self.show_earlier)
        if callable(check := getattr(self.guard, "check", None)):  # one of the user's own may have none
            check(list(predictor_names(program)))

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> Repaired:
        """See `Augmenter.repair`."""
        attempts: list[Attempt] = []
        trajectories: list[Trajectory] = []
        for attempt, trajectory in self._attempts(_Case(failed, example, context)):
            attempts.append(attempt)
            if trajectory is not None:
                trajectories.append(trajectory)
            if attempt.verdict == "repaired":
                break
        repair = Repair(failed.id, tuple(attempts), failed.run, failed.iteration)
        return Repaired(repair, tuple(trajectories))

    @property
    def _demos(self) -> RepairDemos:
        return self.demos or RepairDemos()

    def _attempts(self, case: _Case) -> Iterator[tuple[Attempt, Trajectory | None]]:
        for position, step in enumerate(case.failed.steps):
            if not case.can_edit(step):
                continue
            for feedback_try in range(self.max_feedback):
                critique = self._critique(case, position, feedback_try)
                feedback = _output(critique, "feedback")
                if not feedback:
                    yield case.attempt(position, "unparsed", usage=_usage(critique), detail="no feedback"), None
                    continue
                usage = _usage(critique)
                for regeneration_try in range(self.max_regenerations):
                    tries = (feedback_try, regeneration_try)
                    yield self._regenerated(case, position, feedback, tries, usage)
                    usage = Usage()  # the critique is paid once

    def _regenerated(
        self, case: _Case, position: int, feedback: str, tries: tuple[int, int], usage: Usage
    ) -> tuple[Attempt, Trajectory | None]:
        try:
            regeneration = self._regenerate(case, position, feedback, tries)
        except UnreadableValueError as error:
            return case.attempt(position, "unparsed", feedback=feedback, usage=usage, detail=str(error)), None
        outputs = case.fields_of(position, regeneration)
        usage += _usage(regeneration)
        known: dict[str, Any] = {"feedback": feedback, "regenerated": outputs, "usage": usage}
        if outputs is None:
            return case.attempt(position, "unparsed", **known, detail="no new answer"), None
        if _was_cut(regeneration):
            return case.attempt(position, "unparsed", **known, detail="the new answer was cut off"), None
        if outputs == case.fields_of(position):
            return case.attempt(position, "unchanged", **known), None
        rephrased, spent = self._rephrased(case, position, outputs, tries)
        known |= {"rephrased": rephrased, "usage": usage + spent}
        if leak := self._leak(case, position, rephrased):
            return case.attempt(position, "leaked", **known, detail=leak), None
        return case.replayed(position, rephrased, tries, known)

    def _critique(self, case: _Case, position: int, feedback_try: int) -> Recording:
        step = case.failed.steps[position]
        inputs = {
            "task": _lines(to_plain(case.example.inputs())),
            "team": "\n\n".join(f"[{other.predictor}]\n{_written(other)}" for other in case.failed.steps),
            "agent": step.predictor,
            "agent_inputs": _lines(step.inputs),
            "agent_answer": _written(step),
            "correct_answer": _lines(to_plain(case.example.labels())),
        }
        key = case.key("critique", position, feedback_try)
        return self._ask(
            Critique, inputs, self.critic or case.lm_of(step), key, feedback_try, demos=self._demos.critique
        )

    def _regenerate(self, case: _Case, position: int, feedback: str, tries: tuple[int, int]) -> Recording:
        step, signature = case.failed.steps[position], case.signature_of(case.failed.steps[position])
        fields = signature.input_fields
        inputs = {
            name: from_plain(value, fields[name].annotation) for name, value in step.inputs.items() if name in fields
        }
        if self.show_earlier:
            inputs[free_name(ATTEMPT, signature)] = _written(step)
        inputs[free_name(FEEDBACK, signature)] = feedback
        return self._ask(
            regeneration_of(signature, show_earlier=self.show_earlier),
            inputs,
            case.lm_of(step),
            case.key("regenerate", position, *tries),
            sum(tries),
            demos=self._demos.regenerate.get(step.predictor, ()),
        )

    def _rephrased(
        self, case: _Case, position: int, outputs: Values, tries: tuple[int, int]
    ) -> tuple[dict[str, Any], Usage]:
        """The outputs with their free text rephrased; answers, numbers and choices stay as they are."""
        step, usage, rephrased = case.failed.steps[position], Usage(), dict(outputs)
        fields = case.signature_of(step).output_fields
        for name, value in outputs.items() if self.rephrase else ():
            if name in case.answer_fields(step, outputs) or not _is_free_text(fields[name], value):
                continue
            inputs = {"task": _lines(step.inputs), "text": value}
            key = case.key(f"rephrase/{name}", position, *tries)
            lm = self.rephraser or case.lm_of(step)
            asked = self._ask(Rephrase, inputs, lm, key, sum(tries), demos=self._demos.rephrase)
            usage += _usage(asked)
            rephrased[name] = "" if _was_cut(asked) else _output(asked, "rewritten")
            rephrased[name] = rephrased[name] or value
        return rephrased, usage

    def _leak(self, case: _Case, position: int, outputs: Values) -> str:
        step, labels = case.failed.steps[position], to_plain(case.example.labels())
        answers = bool(case.answer_fields(step, outputs))
        return (self.guard or LeakGuard()).leak(outputs, step, labels, answers=answers)

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
        check_ended(recording)
        return recording


@dataclass(frozen=True)
class _Case:
    """One failed run under repair."""

    failed: Trajectory
    example: dspy.Example
    context: RepairContext

    def can_edit(self, step: Step) -> bool:
        """Whether the step belongs to a trained agent and holds something to improve on."""
        wrote_something = step.outputs is not None or (step.failure is not None and step.failure.completion is not None)
        return self.context.may_edit(self.failed, step) and wrote_something

    def signature_of(self, step: Step) -> type[dspy.Signature]:
        return signature_of(predictor_names(self.context.program)[step.predictor])

    def fields_of(self, position: int, answered: Recording | None = None) -> dict[str, Any] | None:
        """The output fields of the failed step, or of a new answer to it, without what DSPy adds to them."""
        step = self.failed.steps[position]
        outputs = step.outputs if answered is None else answered.steps[0].outputs if answered.steps else None
        fields = self.signature_of(step).output_fields
        return None if outputs is None else {name: value for name, value in outputs.items() if name in fields}

    def lm_of(self, step: Step) -> dspy.LM:
        return predictor_names(self.context.program)[step.predictor].lm or dspy.settings.lm

    def key(self, stage: str, position: int, *tries: int) -> str:
        rollout = self.context.rollouts.sampling(Task(self.example, self.failed.sample)).key
        return "/".join([rollout, stage, str(position), *map(str, tries)])

    def answer_fields(self, step: Step, outputs: Values) -> set[str]:
        """Output fields that are the program's answer: named like a label, or, without any, those of the last step."""
        named = set(outputs) & set(self.example.labels().keys())
        if named or self.failed.failure is not None or step is not self.failed.steps[-1]:
            return named
        predicted = self.failed.prediction if isinstance(self.failed.prediction, dict) else {}
        return set(outputs) & set(predicted) or set(outputs)

    def attempt(self, position: int, verdict: Verdict, **known: Any) -> Attempt:
        return Attempt(position, self.failed.steps[position].predictor, verdict, **known)

    def replayed(
        self, position: int, outputs: Values, tries: tuple[int, int], known: dict[str, Any]
    ) -> tuple[Attempt, Trajectory | None]:
        """Run the program on from the edited step and score it."""
        key = self.key("replay", position, *tries)
        try:
            trajectory = self.context.replayed(self.failed, self.example, Edit(position, outputs), key)
        except ReplayDivergedError as error:
            return self.attempt(position, "diverged", **known, detail=str(error)), None
        verdict: Verdict = "repaired" if trajectory.succeeded(self.context.threshold) else "failed"
        return (
            self.attempt(position, verdict, **known, reward=trajectory.reward, trajectory=trajectory.id),
            trajectory,
        )


def _is_free_text(field: FieldInfo, value: Any) -> bool:
    return field.annotation is str and isinstance(value, str) and bool(value.strip())


def _output(recording: Recording, name: str) -> str:
    outputs = recording.steps[0].outputs if recording.steps else None
    return str(readable((outputs or {}).get(name)) or "").strip()


def _was_cut(recording: Recording) -> bool:
    """Whether an answer is not whole, though it parses."""
    return any(step.was_cut for step in recording.steps)


def _usage(recording: Recording) -> Usage:
    return sum((step.usage for step in recording.steps), Usage())


def _written(step: Step) -> str:
    """What an agent wrote, also where it did not parse."""
    if step.outputs is not None:
        return _lines(step.outputs)
    return (step.failure and step.failure.completion) or ""


def _lines(values: Values) -> str:
    shown = readable(dict(values))
    if len(shown) == 1:
        return str(next(iter(shown.values())))
    return "\n".join(f"{name}: {value}" for name, value in shown.items())
