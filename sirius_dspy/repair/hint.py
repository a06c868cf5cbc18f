"""Part of the solution as help: how the text of a step begins, more of it with each try."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome, take_first_success
from sirius_dspy.repair.case import Case, usage_of, was_cut
from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard, check_guard
from sirius_dspy.repair.prompts import free_name
from sirius_dspy.repair.targets import Target, wrote
from sirius_dspy.repair.trial import try_outputs
from sirius_dspy.repair.walk import Edited, Walk
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.trajectory import Trajectory

HINT = "hint"
"""Input field that is added to the agent's own signature."""


class HintAugmenter(Augmenter):
    """Lets one agent after another answer again with part of the solution in sight, as little as suffices.

    What a step should write is known for a step that usually writes the label and can know it (see `LabelAugmenter`):
    the label. For another step it is the sentence of its own inputs in which the label stands, if there is one, because
    finding it may be that agent's work. If a later step finds this sentence by itself, the earlier one has to find what
    leads there: the only other sentence that has a name or number of it.

    The hint tells how this text begins: first its first letter and its length, then a share of its words. Last, where
    solved runs show that the agent usually copies a sentence, the text itself takes the place of its answer. An agent
    that thinks first, as those of `dspy.ChainOfThought` do, is told the text and writes its thoughts itself. Steps are
    helped from the first to the last. A step that wrote the text stays so while later ones are helped, and a step that
    reads a wrong text gets no help to copy. Of the steps between those that were helped, only those become rows that
    wrote what they should. The hint is in no training row, and the leak guard refuses answers that
    carry the label ahead.

    Args:
        shares: Shares of the text that the hints reveal, one try each. 0 reveals the first letter and the length, 1 is
            the text itself. After another edit, 1 is also the label, where the step reads it.
        temperature: Of the new answer.
        guard: Decides which answers give too much away; by default a `LeakGuard`.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.

    References:
        AdaBack (arXiv:2506.18110) reveals a prefix of the target, as long as needed; SAGE and HiLL (arXiv:2604.00698)
        give hints to problems that no sample solves.
    """

    def __init__(
        self,
        *,
        shares: Sequence[float] = (0.0, 0.5, 1.0),
        temperature: float = 0.7,
        guard: Guard | None = None,
        max_repairs: int | None = None,
    ) -> None:
        self.shares = shares
        self.temperature = temperature
        self.guard = guard
        self.max_repairs = max_repairs

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind, the guard's among them.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {
            "shares": checks.several(checks.number(0, 1), "a list of shares from 0 to 1, such as `[0, 0.5, 1]`"),
            "temperature": checks.number(0),
            "guard": GUARD_KIND,
            "max_repairs": checks.optional(checks.whole(0)),
        }
        checks.check(type(self).__name__, vars(self), kinds)
        check_guard(self.guard, program)

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: for each step and share an answer and what follows it."""
        return 0, len(self.shares) * sum(1 + position for position in range(num_steps))

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        return take_first_success(failed, self._attempts(Case(failed, example, context)))

    def _attempts(self, case: Case) -> Iterator[Tried]:
        walk, position = Walk(case.failed, case), 0
        while position < len(walk.case.failed.steps):
            if (target := walk.target_of(position)) is not None:
                walk = yield from self._help(walk, position, target)
            position += 1

    def _help(self, walk: Walk, position: int, target: Target) -> Generator[Tried, None, Walk]:
        """Help one step with more and more of the text, until it writes it; the walk then goes on from there."""
        for number, share in enumerate(self._shares(walk, position)):
            edit, tried = self._try_share(walk, position, target, share, number)
            yield tried
            if edit is not None and wrote(edit.outputs, target):
                return walk.go_on(edit, tried[1])
        return walk

    def _shares(self, walk: Walk, position: int) -> Sequence[float]:
        """The shares to reveal; the whole text only where the step usually writes copies, or thinks first."""
        return [share for share in self.shares if share < 1 or walk.copies(position)]

    def _try_share(
        self, walk: Walk, position: int, target: Target, share: float, number: int
    ) -> tuple[Edited | None, Tried]:
        writes_more = walk.case.writes_more(position)
        if share < 1 or writes_more:
            hint = write_hint(target.text, share, f"`{target.field}`" if writes_more else "It")
            return self._try_hint(walk, position, hint, number)
        return self._try_edit(walk, Edited(walk.case, position, walk.whole_text_of(position)), number, {})

    def _try_hint(self, walk: Walk, position: int, hint: str, number: int) -> tuple[Edited | None, Tried]:
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
        return self._try_edit(walk, Edited(case, position, outputs, inputs, hinted), number, fields)

    def _try_edit(self, walk: Walk, edit: Edited, number: int, fields: dict[str, Any]) -> tuple[Edited | None, Tried]:
        guard = self.guard or LeakGuard()
        tried = try_outputs(edit.case, edit.position, edit.outputs, guard, (number, 0), fields)
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


def write_hint(target: str, share: float, subject: str = "It") -> str:
    """Write a hint that reveals a share of a text.

    Args:
        target: The text.
        share: 0 reveals its first letter and its length, 1 the text; what is between reveals that share of its words,
            or of the letters of a single one, but never all.
        subject: What the hint calls the text.
    """
    if share >= 1:
        return f"{subject} is {target!r}."
    words = target.split()
    if share <= 0:
        unit = "word" if len(words) > 1 else "letter" if target.isalpha() else "character"
        number = len(words) if len(words) > 1 else len(target)
        return f"{subject} begins with {target[0]!r} and has {number} {unit}{'s' if number > 1 else ''}."
    units, joint = (words, " ") if len(words) > 1 else (list(target), "")
    shown = min(max(1, round(share * len(units))), max(1, len(units) - 1))
    return f"{subject} begins with {joint.join(units[:shown])!r}."
