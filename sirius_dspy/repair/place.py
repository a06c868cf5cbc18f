"""Which steps may write the label: those whose place it is, and that can know it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain import canonical, to_plain
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.leak import mentions_gold
from sirius_dspy.trajectory import Values

LIKELIER = math.log(10)
"""By how much the text of other agents must make the label likelier, in nats: ten times, since any text moves the
probability a little."""
IMPLAUSIBLE = math.log(20)
"""By how much the agent's own answer may be likelier than the label, in nats."""


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
    if case.writes_more(position):
        return False  # how likely the label is depends on the agent's thoughts
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
