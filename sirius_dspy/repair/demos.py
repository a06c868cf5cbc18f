"""Demonstrations for the prompts of a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.program import predictor_names, signature_of
from sirius_dspy.repair.prompts import Critique, Rephrase, regeneration_of
from sirius_dspy.running.demos import check_demo_fields


@dataclass(frozen=True)
class RepairDemos:
    """Demonstrations of repairs, for models too small to repair without; no training prompt ever has them.

    Each example has the fields of the signature that it demonstrates, outputs included.
    """

    critique: Sequence[dspy.Example] = ()
    """Of `sirius_dspy.repair.prompts.Critique`, for all agents; the field `agent` says for which."""
    regenerate: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)
    """Predictor name to demonstrations: the predictor's own fields, `feedback`, and `earlier_answer` if it is shown."""
    rephrase: Sequence[dspy.Example] = ()
    """Of `sirius_dspy.repair.prompts.Rephrase`."""

    def check(self, program: dspy.Module, *, show_earlier: bool = True) -> None:
        """Refuse what is not a demonstration, and what DSPy would silently ignore.

        Args:
            program: Its predictors may be repaired.
            show_earlier: See `CriticAugmenter`.

        Raises:
            SettingsError: The message names the setting.
            UnpreparedProgramError: Demonstrations are for unknown predictors.
        """
        kinds = {"critique": checks.DEMOS, "regenerate": checks.DEMOS_BY_NAME, "rephrase": checks.DEMOS}
        checks.check("RepairDemos", vars(self), kinds)
        predictors = predictor_names(program)
        if unknown := sorted(set(self.regenerate) - set(predictors)):
            raise UnpreparedProgramError(
                f"`RepairDemos.regenerate` names {unknown}; the predictors are {list(predictors)}."
            )
        check_demo_fields("RepairDemos.critique", self.critique, Critique)
        check_demo_fields("RepairDemos.rephrase", self.rephrase, Rephrase)
        for name, demos in self.regenerate.items():
            signature = regeneration_of(signature_of(predictors[name]), show_earlier=show_earlier)
            check_demo_fields(f"RepairDemos.regenerate[{name!r}]", demos, signature)
