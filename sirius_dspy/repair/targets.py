"""What the steps of a failed run should have written, as far as the label tells."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sirius_dspy.plain import readable
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.leak import find_sentence, split_sentences
from sirius_dspy.repair.place import is_its_place
from sirius_dspy.repair.sources import Sources
from sirius_dspy.repair.wording import as_written, bare
from sirius_dspy.trajectory import Values


class Target(NamedTuple):
    """What a step should have written."""

    field: str
    """The output field for it."""
    text: str
    is_copied: bool
    """Whether it is a sentence of the step's inputs, and not the label in its own place."""


def find_targets(case: Case) -> dict[int, Target]:
    """Return what steps should have written, by position; steps of which nothing is known are left out.

    A step that gives the answer, or usually writes the label, should write the label. For another step it is the
    sentence of its inputs that holds the label. If a later step finds the same sentence by itself, then the earlier one
    has another task: to find what leads there, which is the only other sentence with a name or number of it.
    """
    targets: dict[int, Target] = {}
    taken: list[str] = []
    sources = Sources(case)
    for position in reversed(range(len(case.failed.steps))):
        given = split_sentences(sources.given_inputs(position))
        target = _target(case, position, given, taken)
        if target is None:
            continue
        targets[position] = target
        if target.is_copied and target.text in given:
            taken.append(target.text)
    return targets


def wrote(outputs: Values | None, target: Target) -> bool:
    """Whether a step wrote what it should, but for case and final stops."""
    return target.field in (outputs or {}) and bare(_as_text((outputs or {})[target.field])) == bare(target.text)


def find_link(sentences: Sequence[str], target: str, taken: Collection[str]) -> str:
    """Return the one other sentence with a name or number of a target; empty if several sentences have one of these.

    Args:
        sentences: Of a text. A name is a word that one of them has with a capital letter, and not as its first word.
        target: One of them.
        taken: Sentences that lead on from the target, and not to it.
    """
    names = {word for sentence in sentences for word in _words(sentence)[1:] if word[0].isupper()}
    shared = {word for word in _words(target) if word in names or word[0].isdigit()}
    holders = [[other for other in sentences if other != target and word in _words(other)] for word in shared]
    if any(len(found) > 1 for found in holders):
        return ""
    linked = {other for found in holders for other in found if other not in taken}
    return linked.pop() if len(linked) == 1 else ""


def _target(case: Case, position: int, sentences: Sequence[str], taken: Sequence[str]) -> Target | None:
    step, gold = case.failed.steps[position], case.gold_field(position)
    if gold is None:
        return None
    field, label = gold[0], _as_text(gold[1]).strip()
    if is_its_place(case, position, dict([gold])):
        return Target(field, label, is_copied=False) if label else None
    is_taken = len(sentences) > 1 and taken and taken[-1] in sentences
    text = find_link(sentences, taken[-1], taken) if is_taken else find_sentence(step.inputs, label)
    return Target(field, text, is_copied=True) if text else None


def _as_text(value: Any) -> str:
    """A value as LMs write it: lists and dictionaries are JSON."""
    plain = readable(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else as_written(plain)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
