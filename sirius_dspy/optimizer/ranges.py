"""Numbers that are not known exactly, for plans."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPREAD = 0.2
"""How far means of earlier runs may be off, as a share: seeds and examples differ."""


@dataclass(frozen=True)
class Range:
    """A number that is not known exactly."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, value: float) -> Range:
        """A number that is known."""
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, spread: float = SPREAD) -> Range:
        """A number from earlier runs."""
        return cls(value * (1 - spread), value, value * (1 + spread))

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, other: Range) -> Range:
        return Range(self.low * other.low, self.likely * other.likely, self.high * other.high)

    def __str__(self) -> str:
        if math.isclose(self.low, self.high):
            return f"{self.likely:,.0f}"
        return f"{self.likely:,.0f} ({self.low:,.0f} to {self.high:,.0f})"
