"""What LM tokens cost: by the user's own table, by DSPy's, or unknown, which is not the same as free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import dspy
from dspy.clients.capabilities import resolve
from dspy.clients.model_metadata import model_info
from dspy.lm15 import LM15Error

from sirius_dspy.trajectory import Usage

LOCAL = "local/"
"""What the ids of `LocalLM`s begin with; their tokens cost nothing."""


class Price(NamedTuple):
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, usage: Usage) -> float:
        """US dollars for some calls."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


def price_of(model: str, table: Mapping[str, tuple[float, float]] | None = None) -> Price | None:
    """Look a price up.

    Args:
        model: Id of an LM, such as `openai/gpt-4.1-mini`; a fine-tuned model that has no price of its own costs what
            the table says for its base.
        table: The user's own prices, which come first: id, or the beginning of one, to US dollars per million prompt
            and completion tokens.

    Returns:
        `None` if nobody knows it.
    """
    ids = (model, model.replace("/ft:", "/", 1))
    prices = {name: Price(*pair) for name, pair in (table or {}).items() if any(id.startswith(name) for id in ids)}
    longest = max(prices, key=len, default=None)
    if longest is not None and model.startswith(longest):
        return prices[longest]
    listed = Price(0.0, 0.0) if model.startswith(LOCAL) else _listed_price(model)
    return prices[longest] if listed is None and longest is not None else listed


@lru_cache(maxsize=1024)
def _listed_price(model: str) -> Price | None:
    if not model:
        return None
    try:
        route = resolve(dspy.LM(model))
    except LM15Error:  # a provider that DSPy does not know, such as a scripted one: nobody lists its prices
        return None
    for name in (route.model, ":".join(route.model.split(":")[:2])):  # `ft:NAME:team::id` is listed as `ft:NAME`
        info = model_info(route.provider, name) or {}
        prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
        if prompt is not None and completion is not None:
            return Price(float(prompt) * 1e6, float(completion) * 1e6)
    return None
