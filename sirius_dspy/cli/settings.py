"""Settings of a compile from what the command line holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sirius_dspy.errors import SettingsError
from sirius_dspy.optimizer.budget import Budget
from sirius_dspy.optimizer.settings import AgentGroups, SharedWeights


def names_in(text: str | None) -> list[str]:
    """Names with commas between them."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def values_in(texts: Sequence[str] | None, option: str) -> dict[str, Any]:
    """`NAME=VALUE` texts as a table; a value is JSON where it can be read as such, else text.

    Raises:
        SettingsError: One has no `=`.
    """
    return {name: _value(text) for name, text in _pairs(texts, option)}


def groups_in(texts: Sequence[str] | None) -> dict[str, list[str]]:
    """`AGENT=PREDICTOR,PREDICTOR` texts as a table.

    Raises:
        SettingsError: One has no `=`.
    """
    return {name: names_in(text) for name, text in _pairs(texts, "--group")}


def agents_of(groups: Mapping[str, Sequence[str]], *, shared: bool) -> AgentGroups | None:
    """Which predictors share weights.

    Raises:
        SettingsError: All of them and some of them.
    """
    if shared and groups:
        raise SettingsError(
            "`--shared-weights` and `--group` are both given. Choose one: either all predictors share "
            "their weights, or those of each group."
        )
    return SharedWeights() if shared else dict(groups) or None


def budget_of(**limits: float | None) -> Budget | None:
    """The limits that were given; `None` if none was."""
    given: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    return Budget(**given) if given else None


def _pairs(texts: Sequence[str] | None, option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"`{option}` is {text!r}, expected NAME=VALUE.")
        pairs.append((name.strip(), value))
    return pairs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
