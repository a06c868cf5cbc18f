"""What LM calls took, counted in one way for compiles and for all methods that are compared with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ConfigDict

from sirius_dspy.optimizer.prices import price_of
from sirius_dspy.optimizer.records import Count, Finite
from sirius_dspy.optimizer.result_base import Result
from sirius_dspy.trajectory import Usage

Ledger = dict[str, dict[str, Usage]]
"""A stage or an agent to the id of an LM to what it was asked there."""


def add_to(ledger: Ledger, key: str, model: str, usage: Usage) -> None:
    """Add what an LM was asked."""
    by_model = ledger.setdefault(key, {})
    by_model[model] = by_model.get(model, Usage()) + usage


@dataclass(frozen=True)
class Spent(Result):
    """What was used."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    calls: Count = 0
    """LM calls; a `Meter` also counts those that a cache answered, and those that failed."""
    cached_calls: Count = 0
    """Of these, the ones that cost nothing."""
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    usd: Finite | None = 0.0
    """US dollars; `None` if the price of some LM is unknown."""
    seconds: Finite = 0.0
    """Wall time."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Self) -> Self:
        """What both used; the price is unknown if one of the two is."""
        sums = {
            item.name: getattr(self, item.name) + getattr(other, item.name)
            for item in dataclasses.fields(self)
            if item.name != "usd"
        }
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return type(self)(**sums, usd=usd)


def usage_of(entry: Mapping[str, Any]) -> Usage:
    """The usage of one answer, as DSPy reports it to its usage tracker."""
    return Usage(1, int(entry.get("prompt_tokens") or 0), int(entry.get("completion_tokens") or 0))


def cost_of(usages: Iterable[tuple[str, Usage]], prices: Mapping[str, tuple[float, float]]) -> float | None:
    """US dollars for calls of several LMs; `None` if the price of one is unknown.

    Args:
        usages: Id of an LM, and what it was asked.
        prices: The user's own prices; see `sirius_dspy.optimizer.prices.price_of`.
    """
    listed = [(price_of(model, prices), usage) for model, usage in usages if usage.calls]
    if any(price is None for price, _ in listed):
        return None
    return sum((price.of(usage) for price, usage in listed if price is not None), 0.0)
