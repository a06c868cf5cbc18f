"""How the critic of a compile is fine-tuned on its own good advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import dspy

from sirius_dspy import checks

CRITIC = "critic"
"""Name of the critic among the agents that are trained: of its files, jobs and events."""


@dataclass(frozen=True)
class CriticTraining:
    """Fine-tune the critic during a compile, as an agent of its own.

    From the second iteration on, the critic's LM is trained on the advice that led to a repair in earlier iterations.
    The new critic is kept only if it is at least as good as the one before: both advise on the same failed runs, whose
    examples gave the new one no training row, and the new one must repair as many of them, and at least one. What both
    repair is kept.

    Attributes:
        min_rows: Least number of rows; with fewer, an iteration does not train the critic. The default avoids jobs that
            a handful of texts would decide.
        held_out: Share of the failed runs without a training row that both critics repair, at least one run. A larger
            share makes the choice surer and costs more calls.
        max_rows: Maximum number of rows, drawn evenly over the examples; `None` keeps all.

    References:
        RCO (arXiv:2506.22157) trains critics on what their advice makes of the next answer.
    """

    min_rows: int = 20
    held_out: float = 0.3
    max_rows: int | None = None

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {
            "min_rows": checks.whole(1),
            "held_out": checks.number(above=0, below=1),
            "max_rows": checks.optional(checks.whole(1)),
        }
        checks.check(type(self).__name__, vars(self), kinds)


class LearningCritic(NamedTuple):
    """A critic that a compile fine-tunes."""

    lm: dspy.LM
    """The LM that it starts from."""
    training: CriticTraining
    rung: str = ""
    """Name of its rung in a ladder; empty outside of one."""
