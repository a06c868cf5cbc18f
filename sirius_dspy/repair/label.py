"""The label as the text of the step that should have written it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome, take_first_success
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard, check_guard
from sirius_dspy.repair.place import can_know, is_its_place
from sirius_dspy.repair.trial import try_outputs
from sirius_dspy.repair.walk import Edited, Walk
from sirius_dspy.trajectory import Trajectory


class LabelAugmenter(Augmenter):
    """Writes the label in the place of a step's own answer, from the last step backwards, and runs the program on.

    It is for steps with one output: the label under the real prompt is what supervised fine-tuning would train on. A
    step gets it if it gives the program's answer, or if most solved runs have the label, and nothing else, in its
    place: what another agent writes has a form of its own. And only a step that can know the answer gets it, or it
    would learn to ignore what it reads. The label stands in the step's inputs; or the step reads all inputs of the
    program, or only these; or, where the LM can tell, what other agents wrote makes the label ten times likelier than
    no text of theirs, and the agent's own answer is not twenty times likelier still. For a step that does not give the
    program's answer, the leak guard demands the first of these. If the last step that can know the label has it
    and the run still fails, the label also takes the place of the later steps, which now read it.

    Args:
        guard: Decides which steps may carry the label.
        must_know: Whether only a step that can know the answer gets the label. Turn it off for judgements, such as yes
            or no, of a small model that answers alike whatever it reads: its agents can know no other answer yet.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.

    References:
        STaR (arXiv:2203.14465) shows the label and asks again; of a model with 135M parameters, that repaired 20 of 59
        runs that the label itself repairs.
    """

    def __init__(self, *, guard: Guard | None = None, must_know: bool = True, max_repairs: int | None = None) -> None:
        self.guard = guard
        self.must_know = must_know
        self.max_repairs = max_repairs

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind, the guard's among them.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {"guard": GUARD_KIND, "must_know": checks.FLAG, "max_repairs": checks.optional(checks.whole(0))}
        checks.check(type(self).__name__, vars(self), kinds)
        check_guard(self.guard, program)

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: for each step what follows it, twice for the first that is tried."""
        return 0, 2 * sum(range(num_steps))

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        return take_first_success(failed, self._attempts(Case(failed, example, context)))

    def _attempts(self, case: Case) -> Iterator[Tried]:
        is_last = True
        for position in reversed(range(len(case.failed.steps))):
            if (outputs := self._label_of(case, position)) is None:
                continue
            walk, tried = self._write(Walk(case.failed, case), position, outputs)
            yield tried
            if tried[1] and is_last:  # later steps could not know the label, so this one should have handed it on
                is_last = False
                yield from self._hand_on(walk, position)

    def _hand_on(self, walk: Walk, position: int) -> Iterator[Tried]:
        """Write the label in the place of later steps that did not keep it."""
        while (position := position + 1) < len(walk.case.failed.steps):
            outputs = self._label_of(walk.case, position) if walk.can_edit(position) else None
            if outputs is not None and outputs != walk.case.fields_of(position):
                walk, tried = self._write(walk, position, outputs)
                yield tried

    def _write(self, walk: Walk, position: int, outputs: dict[str, Any]) -> tuple[Walk, Tried]:
        edit = Edited(walk.case, position, outputs)
        tried = walk.adopt(edit, *try_outputs(walk.case, position, outputs, self.guard or LeakGuard(), (0, 0), {}))
        return walk.go_on(edit, tried[1]) if tried[1] else walk, tried

    def _label_of(self, case: Case, position: int) -> dict[str, Any] | None:
        """Return the label as the outputs of a step whose place it is, and that can know it; `None` for others."""
        outputs = case.gold_of(position) if case.can_edit(case.failed.steps[position]) else None
        if outputs is None or not is_its_place(case, position, outputs):
            return None
        return outputs if not self.must_know or can_know(case, position, outputs) else None
