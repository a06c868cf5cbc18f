"""A ladder of help: each failed run gets the least help that suffices."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.critic_training import LearningCritic
from sirius_dspy.repair.hint import HintAugmenter
from sirius_dspy.repair.label import LabelAugmenter
from sirius_dspy.repair.resample import ResampleAugmenter
from sirius_dspy.trajectory import Attempt, Repair, Trajectory

RELIANT = "relies on the help"


class LadderAugmenter(Augmenter):
    """Helps a failed run by the least that suffices: augmenters are tried one after another until one repairs it.

    The default rungs need no model that can criticize: a fresh sample with the nearest solved runs as demonstrations,
    then hints that reveal part of the solution, then the label in the place of a step that usually writes it and can
    know it. For models that can, add a `CriticAugmenter` at the end. Each rung accepts a repair only if the whole
    program then succeeds and the leak guard finds nothing, and its help is in no training row. In later iterations, an
    example begins one rung below the one that repaired it last.

    What follows an edit may succeed by luck, so a repair has to succeed twice: the program runs on once more from the
    edited step, without help and with fresh samples. A run that does not succeed again is kept in the library, with the
    origin `confirmation`, but it is no repair, and nothing is trained on it.

    Args:
        rungs: From the least help to the most.
        drop_reliant: Share of the repaired runs that is not trained on: those whose texts rely on the help most. The
            measure needs an LM that can score replies, such as `LocalLM`; runs without it are kept.
        measure: Whether to measure how much repairs rely on the help. `LocalLM` loads each model a second time for it,
            which takes some seconds per agent and iteration. Without it no repair counts as reliant, and an answering
            agent gets the label only where its inputs hold it.
        confirmations: Tries to succeed again; the first success ends them, and if all fail, the repair is refused.
            0 accepts every repair at once. Nothing is tried where no step follows the edited one. The temperature is
            that of `Collect`, or 1 if that is 0.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.

    References:
        STaR (arXiv:2203.14465) gains most from covering hard examples; AdaBack (arXiv:2506.18110), SAGE and HiLL
        (arXiv:2604.00698) give as little help as suffices and withdraw it.
    """

    def __init__(
        self,
        rungs: Sequence[Augmenter] | None = None,
        *,
        drop_reliant: float = 0.1,
        measure: bool = True,
        confirmations: int = 2,
        max_repairs: int | None = None,
    ) -> None:
        self.rungs = (ResampleAugmenter(), HintAugmenter(), LabelAugmenter()) if rungs is None else rungs
        self.drop_reliant = drop_reliant
        self.measure = measure
        self.confirmations = confirmations
        self.max_repairs = max_repairs

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind, and let each rung do the same.

        Raises:
            SettingsError: The message names the setting.
            UnpreparedProgramError: The program does not fit a rung.
        """
        kinds = {
            "rungs": checks.several(
                checks.instance(Augmenter), "a list of augmenters, such as `[ResampleAugmenter(), LabelAugmenter()]`"
            ),
            "drop_reliant": checks.number(0, below=1),
            "measure": checks.FLAG,
            "confirmations": checks.whole(0),
            "max_repairs": checks.optional(checks.whole(0)),
        }
        checks.check(type(self).__name__, vars(self), kinds)
        names = [rung.name for rung in self.rungs]
        if len(set(names)) < len(names):
            raise SettingsError(f"`rungs` of {type(self).__name__} has two of one kind: {names}. Leave one out.")
        for rung in self.rungs:
            rung.check(program)

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: the first rung at least; all of them at most, each attempt confirmed."""
        counts = [rung.num_calls(num_steps) for rung in self.rungs]
        return counts[0][0], (1 + self.confirmations) * sum(most for _, most in counts)

    def learning_critic(self) -> LearningCritic | None:
        """See `Augmenter.learning_critic`: that of the first rung that has one; ladders in this one are left out."""
        found = ((rung, rung.learning_critic()) for rung in self.rungs)
        critics = (critic._replace(rung=rung.name) for rung, critic in found if critic is not None and not critic.rung)
        return next(critics, None)

    def with_critic(self, lm: dspy.LM, *, alone: bool = False) -> Self:
        """See `Augmenter.with_critic`."""
        critic = self.learning_critic()
        name = None if critic is None else critic.rung
        changed = copy.copy(self)
        changed.rungs = [
            rung.with_critic(lm, alone=alone) if rung.name == name else rung
            for rung in self.rungs
            if rung.name == name or not alone
        ]
        return changed

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        attempts: list[Attempt] = []
        trajectories: list[Trajectory] = []
        context = replace(context, can_score=context.can_score and self.measure, confirmations=self.confirmations)
        for rung in self.rungs[self._first_rung(failed, context) :]:
            outcome = rung.repair(failed, example, context)
            attempts += [replace(attempt, rung=rung.name) for attempt in outcome.repair.attempts]
            trajectories += outcome.trajectories
            if outcome.repair.repaired:
                break
        repair = Repair(failed.id, tuple(attempts), failed.run, failed.iteration)
        return RepairOutcome(repair, tuple(trajectories))

    def refuse(self, repairs: Sequence[Repair]) -> Mapping[str, str]:
        """See `Augmenter.refuse`: the share of the repaired runs that relies on the help most."""
        kept = [attempt for item in repairs for attempt in item.attempts if attempt.verdict == "repaired"]
        measured = sorted(
            (attempt.reliance, attempt.trajectory or "") for attempt in kept if attempt.reliance is not None
        )
        number = int(self.drop_reliant * len(measured))
        return {trajectory: RELIANT for _, trajectory in measured[len(measured) - number :]}

    def _first_rung(self, failed: Trajectory, context: RepairContext) -> int:
        names = [rung.name for rung in self.rungs]
        last = context.last_rungs.get(failed.example_key)
        return max(0, names.index(last) - 1) if last in names else 0
