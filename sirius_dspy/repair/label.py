"""The label as the text of the step that should have written it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain import canonical, to_plain
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome, take_first_success
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.context import RepairContext, Tried
from sirius_dspy.repair.leak import GUARD_KIND, Guard, LeakGuard, mentions_gold
from sirius_dspy.trajectory import Trajectory, Values

LIKELIER = math.log(10)
"""By how much the text of other agents must make the label likelier, in nats: ten times, since any text moves the
probability a little."""
IMPLAUSIBLE = math.log(20)
"""By how much the agent's own answer may be likelier than the label, in nats."""


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
            attempt, runs = case.try_outputs(position, outputs, guard, (0, 0), {})
            if attempt.verdict == "repaired":
                attempt = replace(attempt, reliance=_surprise(case, position, outputs))
            yield attempt, runs


def is_its_place(case: Case, position: int, outputs: Values) -> bool:
    """Whether a step gives the answer, or wrote the label in more than half of the solved runs."""
    steps = case.failed.steps
    if case.answer_fields(steps[position], outputs):
        return True
    if case.failed.failure is not None:
        return False  # the run broke off, so it is unknown how many steps would have followed
    later = sum(step.predictor == steps[position].predictor for step in steps[position + 1 :])
    share = case.context.solved.label_share(steps[position].predictor, later)
    return share is not None and share > 0.5


def can_know(case: Case, position: int, outputs: Values) -> bool:
    """Whether a step can know these outputs from what it reads; see `LabelAugmenter`."""
    step = case.failed.steps[position]
    if mentions_gold(step.inputs, outputs):
        return True
    given = {name: canonical(value) for name, value in to_plain(case.example.inputs()).items()}
    read = {name: canonical(value) for name, value in step.inputs.items()}
    upstream = [name for name, value in read.items() if given.get(name) != value]  # equal values may be a coincidence
    if not upstream or set(given.values()) <= set(read.values()):
        return True
    try:
        inputs = case.inputs_of(position)
    except UnreadableValueError:
        return False
    blank = {name: "" if name in upstream and isinstance(value, str) else value for name, value in inputs.items()}
    return _is_plausible(case, position, outputs, blank)


def _is_plausible(case: Case, position: int, outputs: Values, blank: Mapping[str, Any]) -> bool:
    """Whether the label is likelier for what other agents wrote, and not far less likely than the agent's own answer.

    An agent that copies a wrong name finds any other name impossible, whatever an empty text would make of it.
    """
    own = case.fields_of(position)
    texts = case.log_probs(position, outputs), case.log_probs(position, outputs, inputs=blank)
    answer = None if own is None else case.log_probs(position, own)
    if answer is None or None in texts:
        return False
    label, without = (sum(text or ()) for text in texts)
    return label - without > LIKELIER and sum(answer) - label < IMPLAUSIBLE


def _surprise(case: Case, position: int, outputs: Values) -> float | None:
    """The reliance of a label: with itself in sight it would be certain."""
    alone = case.log_probs(position, outputs)
    return None if alone is None else -sum(alone) / len(alone)
