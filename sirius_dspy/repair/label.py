"""The label as the text of the step that should have written it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import dspy

from sirius_dspy import checks
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome, take_first_success
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard
from sirius_dspy.repair.place import can_know, is_its_place
from sirius_dspy.repair.trial import try_outputs
from sirius_dspy.trajectory import Trajectory, Values


class LabelAugmenter(Augmenter):
    """Writes the label in the place of a step's own answer, from the last step backwards, and runs the program on.

    It is for steps with one output: the label under the real prompt is what supervised fine-tuning would train on. A
    step gets it if it gives the program's answer, or if most solved runs have the label, and nothing else, in its
    place: what another agent writes has a form of its own. And only a step that can know the answer gets it, or it
    would learn to ignore what it reads. The label stands in the step's inputs; or the step reads all inputs of the
    program, or only these; or, where the LM can tell, what other agents wrote makes the label ten times likelier than
    no text of theirs, and the agent's own answer is not twenty times likelier still. For a step that does not give the
    program's answer, the leak guard demands the first of these.

    Args:
        guard: Decides which steps may carry the label.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.

    References:
        STaR (arXiv:2203.14465) shows the label and asks again; of a model with 135M parameters, that repaired 20 of 59
        runs that the label itself repairs.
    """

    def __init__(self, *, guard: Guard | None = None, max_repairs: int | None = None) -> None:
        self.guard = guard
        self.max_repairs = max_repairs

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {"guard": GUARD_KIND, "max_repairs": checks.optional(checks.whole(0))}
        checks.check(type(self).__name__, vars(self), kinds)

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: for each step, what follows it."""
        return 0, sum(range(num_steps))

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        return take_first_success(failed, self._attempts(Case(failed, example, context)))

    def _attempts(self, case: Case) -> Iterator[Tried]:
        guard = self.guard or LeakGuard()
        for position in reversed(range(len(case.failed.steps))):
            outputs = case.gold_of(position) if case.can_edit(case.failed.steps[position]) else None
            if outputs is None or not is_its_place(case, position, outputs) or not can_know(case, position, outputs):
                continue
            attempt, runs = try_outputs(case, position, outputs, guard, (0, 0), {})
            if attempt.verdict == "repaired":
                attempt = replace(attempt, reliance=_surprise(case, position, outputs))
            yield attempt, runs


def _surprise(case: Case, position: int, outputs: Values) -> float | None:
    """The reliance of a label: with itself in sight it would be certain."""
    alone = case.log_probs(position, outputs)
    return None if alone is None else -sum(alone) / len(alone)
