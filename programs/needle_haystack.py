"""The demo's task among the example programs; it is defined in `sirius_dspy.demo.needle_haystack`, for the wheel."""

from sirius_dspy.demo.needle_haystack import (
    NeedleHaystack,
    build,
    demonstrations,
    examples,
    majority_baseline,
    metric,
    repair_demonstrations,
)

__all__ = [
    "NeedleHaystack",
    "build",
    "demonstrations",
    "examples",
    "majority_baseline",
    "metric",
    "repair_demonstrations",
]
