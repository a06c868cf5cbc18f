"""How well credit agrees with an oracle that knows which steps are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import dspy

from sirius_dspy.credit.values import StepCredit
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Step

Oracle = Callable[[dspy.Example, Step], bool]
"""Whether a step of a run on an example is right."""


class Precision(NamedTuple):
    """Counts of steps, and how well a positive credit finds the right ones."""

    steps: int
    right: int
    """Steps that the oracle calls right."""
    credited: int
    """Steps with a positive credit."""
    both: int

    @property
    def precision(self) -> float | None:
        """Share of the credited steps that are right; `None` if none is credited."""
        return self.both / self.credited if self.credited else None

    @property
    def recall(self) -> float | None:
        """Share of the right steps that are credited; `None` if none is right."""
        return self.both / self.right if self.right else None


def measure_precision(
    credits: Iterable[StepCredit],
    library: ExperienceLibrary,
    oracle: Oracle,
    examples: Mapping[str, dspy.Example] | None = None,
) -> Precision:
    """Compare credits with an oracle.

    Args:
        credits: Of steps of runs in the library; see `read_credits`.
        library: Where the runs are.
        oracle: `oracle(example, step)` says whether the step is right.
        examples: Content key to example; by default as they are in the library.

    Raises:
        LibraryError: A run or an example is not in the library.
    """
    counts = [0, 0, 0, 0]
    for found in credits:
        run = library.get(found.trajectory)
        example = library.example(run.example_key) if examples is None else examples[run.example_key]
        is_right, is_credited = bool(oracle(example, run.steps[found.position])), found.credit > 0
        for place, is_one in enumerate((True, is_right, is_credited, is_right and is_credited)):
            counts[place] += is_one
    return Precision(*counts)
