"""Part of the solution as help: how the text of a step begins, more of it with each try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome, take_first_success
from sirius_dspy.repair.case import Case, usage_of, was_cut
from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.label import can_know
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard
from sirius_dspy.repair.prompts import free_name
from sirius_dspy.repair.reliance import mean_difference
from sirius_dspy.repair.targets import Target, find_targets, reads, wrote
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.trajectory import Attempt, Trajectory

HINT = "hint"
"""Input field that is added to the agent's own signature."""

TRACES = LeakGuard.TRACES.replace(r"\b(feedback", r"\b(hint(?:s|ed)?|feedback")
"""What no repaired text may speak of."""


class HintAugmenter(Augmenter):
    """Lets one agent answer again with part of the solution in sight, as little as suffices.

    What a step should write is known for a step that gives the answer and can know it (see `LabelAugmenter`): the
    label. For another step it is the sentence of its own inputs in which the label stands, if there is one, because
    finding it may be that agent's work. The hint tells how this text begins: first its first letter and its length,
    then a share of its words. The hint is in no training row, and the leak guard refuses answers that carry the label
    ahead.

    Args:
        shares: Shares of the text that the hints reveal, one try each; 0 reveals the first letter and the length.
        temperature: Of the new answer.
        guard: Decides which answers give too much away; by default a `LeakGuard` that knows of hints.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.

    References:
        AdaBack (arXiv:2506.18110) reveals a prefix of the target, as long as needed; SAGE and HiLL (arXiv:2604.00698)
        give hints to problems that no sample solves.
    """

    def __init__(
        self,
        *,
        shares: Sequence[float] = (0.0, 0.5),
        temperature: float = 0.7,
        guard: Guard | None = None,
        max_repairs: int | None = None,
    ) -> None:
        self.shares = shares
        self.temperature = temperature
        self.guard = guard
        self.max_repairs = max_repairs

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {
            "shares": checks.several(checks.number(0, below=1), "a list of shares below 1, such as `[0, 0.5]`"),
            "temperature": checks.number(0),
            "guard": GUARD_KIND,
            "max_repairs": checks.optional(checks.whole(0)),
        }
        checks.check(type(self).__name__, vars(self), kinds)

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: for each step and share an answer and what follows it."""
        return 0, len(self.shares) * sum(1 + position for position in range(num_steps))

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        return take_first_success(failed, self._attempts(Case(failed, example, context)))

    def _attempts(self, case: Case) -> Iterator[Tried]:
        walk, position = _Walk(case.failed, case), 0
        while position < len(walk.case.failed.steps):
            target = walk.target_of(position)
            for number, share in enumerate(self.shares if target else ()):
                edit, tried = self._try_hint(walk, position, write_hint(target, share), number)
                yield tried
                if edit is not None and wrote(edit.outputs, target):
                    walk = walk.go_on(edit, tried[1][0])
                    break
            position += 1

    def _try_hint(self, walk: _Walk, position: int, hint: str, number: int) -> tuple[_Edit | None, Tried]:
        case = walk.case
        signature = case.signature_of(case.failed.steps[position])
        name = free_name(HINT, signature)
        hinted = signature.append(name, dspy.InputField(desc="use it, but do not mention it"), type_=str)
        try:
            inputs = {**case.inputs_of(position), name: hint}
        except UnreadableValueError as error:
            return None, (case.attempt(position, "unparsed", feedback=hint, detail=str(error)), ())
        answered = self._ask(case, position, hinted, inputs, number)
        outputs = case.fields_of(position, answered)
        fields: dict[str, Any] = {"feedback": hint, "usage": usage_of(answered)}
        if outputs is None or was_cut(answered):
            return None, (case.attempt(position, "unparsed", **fields, detail="no new answer"), ())
        tried = case.try_outputs(position, outputs, self.guard or LeakGuard(TRACES), (number, 0), fields)
        edit = _Edit(case, position, outputs, inputs, hinted)
        return edit if tried[1] else None, walk.adopt(edit, *tried)

    def _ask(
        self, case: Case, position: int, hinted: type[dspy.Signature], inputs: dict[str, Any], number: int
    ) -> Recording:
        predictor = dspy.Predict(hinted)
        predictor.lm = case.lm_of(case.failed.steps[position])
        sampling = Sampling(case.key("hint", position, number), {"temperature": self.temperature})
        recording = record(predictor, inputs, sampling)
        recording.check_ended()
        return recording


@dataclass(frozen=True)
class _Edit:
    """A step that answered with a hint in sight."""

    case: Case
    position: int
    outputs: dict[str, Any]
    inputs: dict[str, Any]
    signature: type[dspy.Signature]

    def log_probs(self) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """How likely the answer is with the hint, and without it."""
        helped = self.case.log_probs(self.position, self.outputs, inputs=self.inputs, signature=self.signature)
        return helped, self.case.log_probs(self.position, self.outputs)


@dataclass(frozen=True)
class _Walk:
    """The way through a failed run: what was put right so far, and how the program went on from there."""

    failed: Trajectory
    case: Case
    edits: tuple[_Edit, ...] = ()

    def target_of(self, position: int) -> str:
        """Return what the step should write; empty if that is unknown or done, or if the step cannot know it."""
        target, step = self._targets.get(position), self.case.failed.steps[position]
        is_same = position < len(self.failed.steps) and self.failed.steps[position].predictor == step.predictor
        if target is None or not is_same or not self.case.can_edit(step) or self._is_right(position):
            return ""
        if target.is_copied:
            return "" if self._is_misled(position) else target.text
        return target.text if can_know(self.case, position, self.case.gold_of(position) or {}) else ""

    def _is_right(self, position: int) -> bool:
        return wrote(self.case.fields_of(position), self._targets[position].text)

    def _is_misled(self, position: int) -> bool:
        """Whether the step reads what a step before it should not have written."""
        steps = self.case.failed.steps
        wrong = [steps[other] for other in self._targets if other < position and not self._is_right(other)]
        return any(reads(steps[position], step) for step in wrong)

    @cached_property
    def _targets(self) -> dict[int, Target]:
        return find_targets(self.case)

    def adopt(self, edit: _Edit, attempt: Attempt, runs: tuple[Trajectory, ...]) -> Tried:
        """Make the runs of an edit those of all edits so far, which repair the failed run together."""
        if self.edits and runs:
            first = replace(runs[0], edited=self.edits[0].position)
            runs = tuple(replace(run, parent=self.failed.id) for run in (first, *runs[1:]))
            attempt = replace(attempt, trajectory=runs[0].id)
        if attempt.verdict == "repaired":
            pairs = [made.log_probs() for made in (*self.edits, edit)]
            attempt = replace(attempt, reliance=mean_difference(pairs))
        return attempt, runs

    def go_on(self, edit: _Edit, run: Trajectory) -> _Walk:
        """Keep an edit that wrote what it should, and go on in the run that it led to."""
        return _Walk(self.failed, replace(self.case, failed=run), (*self.edits, edit))


def write_hint(target: str, share: float) -> str:
    """Write a hint that reveals a share of a text.

    Args:
        target: The text.
        share: 0 reveals its first letter and its length; more reveals that share of its words, or of the letters of a
            single one, but never all.
    """
    words = target.split()
    if share <= 0:
        length = f"{len(words)} words" if len(words) > 1 else f"{len(target)} letters"
        return f"It begins with {target[0]!r} and has {length}."
    units, joint = (words, " ") if len(words) > 1 else (list(target), "")
    shown = min(max(1, round(share * len(units))), max(1, len(units) - 1))
    return f"It begins with {joint.join(units[:shown])!r}."
