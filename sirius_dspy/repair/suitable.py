"""The default way to repair, chosen by the LMs that are trained."""

from __future__ import annotations

from collections.abc import Iterable

import dspy

from sirius_dspy.program import predictor_names
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.repair.ladder import LadderAugmenter
from sirius_dspy.trajectory import Trajectory


class SuitableAugmenter(Augmenter):
    """Repairs as it suits the LMs of the agents.

    A small model that runs on this machine cannot criticize: SmolLM2-135M as its own critic repairs a sixth of its
    failed runs. If all trained agents have such LMs, this is `LadderAugmenter()`, otherwise `CriticAugmenter()`, as in
    the paper.
    """

    def for_lms(self, lms: Iterable[dspy.LM]) -> Augmenter:
        """Return the augmenter for trained agents with these LMs."""
        is_small = [bool(getattr(lm, "is_small", False)) for lm in lms]
        return LadderAugmenter() if is_small and all(is_small) else CriticAugmenter()

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`; a compile calls the chosen augmenter instead."""
        predictors = predictor_names(context.program)
        lms = [predictors[name].lm or dspy.settings.lm for name in context.editable]
        return self.for_lms(lms).repair(failed, example, context)
