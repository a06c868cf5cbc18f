"""Several edits of one run, from the first step to the last: each starts from the run that the one before led to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import dspy

from sirius_dspy.repair.case import Case
from sirius_dspy.repair.context import Tried
from sirius_dspy.repair.leak import mentions_gold, split_sentences
from sirius_dspy.repair.place import can_know
from sirius_dspy.repair.reliance import mean_difference
from sirius_dspy.repair.sources import Sources
from sirius_dspy.repair.targets import Target, find_targets, wrote
from sirius_dspy.trajectory import Attempt, Trajectory


@dataclass(frozen=True)
class Edited:
    """What stands in the place of a step: what it answered with a hint in sight, or the whole text."""

    case: Case
    position: int
    outputs: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    signature: type[dspy.Signature] | None = None
    """With the hint; `None` for the whole text."""

    def log_probs(self) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """How likely the answer is with the hint, and without it; with itself in sight, a text would be certain."""
        alone = self.case.log_probs(self.position, self.outputs)
        if self.signature is None:
            return (None if alone is None else [0.0] * len(alone)), alone
        return self.case.log_probs(self.position, self.outputs, inputs=self.inputs, signature=self.signature), alone


@dataclass(frozen=True)
class Walk:
    """The way through a failed run: what was put right so far, and how the program went on from there."""

    failed: Trajectory
    case: Case
    edits: tuple[Edited, ...] = ()

    def target_of(self, position: int) -> Target | None:
        """Return what the step should write; `None` if that is unknown or done, or if the step cannot know it."""
        target = self._targets.get(position)
        if target is None or not self.can_edit(position) or self._is_right(position):
            return None
        if target.is_copied:
            return None if self._is_misled(position) else target
        gold = self.case.gold_field(position)
        return target if can_know(self.case, position, dict([gold] if gold else [])) else None

    def can_edit(self, position: int) -> bool:
        """Whether the step may be edited, and is the same one as in the failed run."""
        step = self.case.failed.steps[position]
        is_same = position < len(self.failed.steps) and self.failed.steps[position].predictor == step.predictor
        return is_same and self.case.can_edit(step)

    def copies(self, position: int) -> bool:
        """Whether the step should copy a sentence from where steps of its predictor usually do so in solved runs.

        After another edit, this is also so for the label, where the step reads it. One that writes more than the label
        has to think about it anyway.
        """
        target, step = self._targets[position], self.case.failed.steps[position]
        if not target.is_copied:
            reads = bool(self.edits) and mentions_gold(step.inputs, {"label": target.text})
            return reads or self.case.writes_more(position)
        solved = self.case.context.solved
        names = (name for name, value in step.inputs.items() if target.text in split_sentences({name: value}))
        return any(solved.copy_share(step.predictor, name) > 0.5 for name in names)

    def whole_text_of(self, position: int) -> dict[str, Any]:
        """Return what the step should write, as all of its outputs: a label keeps its type."""
        gold, target = self.case.gold_of(position) or {}, self._targets[position]
        return dict.fromkeys(gold, target.text) if target.is_copied else gold

    def _is_right(self, position: int) -> bool:
        return wrote(self.case.fields_of(position), self._targets[position])

    def _is_misled(self, position: int) -> bool:
        """Whether the step reads what a step before it should not have written."""
        return any(n in self._targets and not self._is_right(n) for n in self._sources.find(position))

    @cached_property
    def _targets(self) -> dict[int, Target]:
        return find_targets(self.case)

    @cached_property
    def _sources(self) -> Sources:
        return Sources(self.case)

    def adopt(self, edit: Edited, attempt: Attempt, runs: tuple[Trajectory, ...]) -> Tried:
        """Make the runs of an edit those of all edits so far, which repair the failed run together."""
        if self.edits and runs:
            first = replace(self._mark_taught(runs[0], edit.position), edited=self.edits[0].position)
            runs = tuple(replace(run, parent=self.failed.id) for run in (first, *runs[1:]))
            attempt = replace(attempt, trajectory=runs[0].id)
        if attempt.verdict == "repaired":
            pairs = [made.log_probs() for made in (*self.edits, edit)]
            attempt = replace(attempt, reliance=mean_difference(pairs))
        return attempt, runs

    def _mark_taught(self, run: Trajectory, end: int) -> Trajectory:
        """Let the earlier edits of a run stand as such, with the steps between them that wrote what they should."""
        edited = {made.position for made in self.edits}
        between = range(self.edits[0].position, end)
        edited |= {position for position in between if position in self._targets and self._is_right(position)}
        same = {number for number in edited if run.steps[number].content == self.case.failed.steps[number].content}
        steps = (replace(step, source="edited") if n in same else step for n, step in enumerate(run.steps))
        return replace(run, steps=tuple(steps))

    def go_on(self, edit: Edited, runs: Sequence[Trajectory]) -> Walk:
        """Keep an edit that wrote what it should, and go on in a failed run that it led to.

        Args:
            edit: What was put right.
            runs: Its run, and those that were to confirm it: the last of them failed.
        """
        return Walk(self.failed, replace(self.case, failed=runs[-1]), (*self.edits, edit))
