"""What settings may be: kinds of values, and the error for one that is of another kind.

Constructors store, and `compile` checks everything before the first LM call. So each class says in a table of what kind
its settings are, and hands it to `check`.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AnySet
from typing import Any, NamedTuple

import dspy

from sirius_dspy.errors import SettingsError


class Kind(NamedTuple):
    """A kind of values."""

    fits: Callable[[Any], bool]
    expected: str
    """For the message, after "expected"."""


def check(owner: str, settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuse the first setting that is of another kind.

    Args:
        owner: Whose settings they are, for the message.
        settings: By name; those without a kind are not looked at.
        kinds: By name.

    Raises:
        SettingsError: The message names the setting, its value and what was expected.
    """
    for name, kind in kinds.items():
        if not kind.fits(value := settings[name]):
            hint = f" Pass an object of the class: `{value.__name__}(...)`." if isinstance(value, type) else ""
            raise SettingsError(f"`{name}` of {owner} is {describe_value(value)}, expected {kind.expected}.{hint}")


def describe_value(value: Any) -> str:
    """A value for a message; objects by type and tables by their keys, as they may be long or hold credentials."""
    if isinstance(value, type):
        text = f"the class {value.__name__}"
    elif isinstance(value, Mapping):
        text = f"a table with the keys {describe_value(list(value))}"
    elif isinstance(value, list | tuple | AnySet):
        text = f"[{', '.join(map(describe_value, value))}]"
    else:
        text = repr(value) if value is None or isinstance(value, str | bool | int | float) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def number(least: float = -math.inf, *, above: float = -math.inf, below: float = math.inf) -> Kind:
    """A finite number in a range; `True` is none."""
    words = {"from": least, "above": above, "below": below}
    limits = " and ".join(f"{word} {limit:g}" for word, limit in words.items() if math.isfinite(limit))

    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        try:
            return math.isfinite(value) and value >= least and above < value < below
        except OverflowError:  # a whole number with hundreds of digits
            return False

    return Kind(fits, f"a finite number {limits}".rstrip())


def whole(least: int, most: float = math.inf) -> Kind:
    """A whole number in a range."""
    limits = f"from {least}" if most == math.inf else f"from {least} to {most:g}"
    fits = number(least).fits
    return Kind(lambda value: isinstance(value, int) and fits(value) and value <= most, f"a whole number {limits}")


TEXT = Kind(lambda value: isinstance(value, str) and value != "", "a text")

FLAG = Kind(lambda value: isinstance(value, bool), "True or False")

SEED = whole(0, 2**31 - 1)
"""What every random generator below us takes."""

NAMES = Kind(
    lambda value: isinstance(value, list | tuple | AnySet) and all(isinstance(name, str) for name in value),
    "a list of names, such as `['judge']`",
)

PATH = Kind(lambda value: isinstance(value, str | os.PathLike) and str(value) != "", "a path")


def optional(kind: Kind) -> Kind:
    """The kind, or `None`."""
    return Kind(lambda value: value is None or kind.fits(value), f"{kind.expected}, or None")


def either(*kinds: Kind) -> Kind:
    """One of several kinds."""
    return Kind(lambda value: any(kind.fits(value) for kind in kinds), " or ".join(kind.expected for kind in kinds))


def choice(*values: str | None) -> Kind:
    """One of a few values."""
    *others, last = map(repr, values)
    return Kind(lambda value: isinstance(value, str | None) and value in values, f"{', '.join(others)} or {last}")


def instance(*classes: type, hint: str = "") -> Kind:
    """An object of one of these classes."""
    names = " or ".join(f"a `{cls.__name__}`" for cls in classes)
    return Kind(lambda value: isinstance(value, classes), names + hint)


def able(*methods: str, expected: str) -> Kind:
    """An object with these methods, whatever its class; a class is none."""

    def fits(value: Any) -> bool:
        return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)

    return Kind(fits, expected)


def pattern(expected: str) -> Kind:
    """A regular expression as text."""

    def fits(value: Any) -> bool:
        try:
            return isinstance(value, str) and bool(re.compile(value))
        except re.error:
            return False

    return Kind(fits, expected)


def table(expected: str, fits: Callable[[Any], bool] = lambda item: True) -> Kind:
    """A mapping with texts as keys."""

    def all_fit(value: Any) -> bool:
        is_table = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return is_table and all(fits(item) for item in value.values())

    return Kind(all_fit, expected)


# Kinds that several classes share

METRIC = Kind(
    lambda value: callable(value) and not isinstance(value, type) and not _gives_later(value),
    "a function `metric(example, prediction, trace=None)` that gives a number",
)

LM = instance(dspy.BaseLM, hint=", such as `dspy.LM('openai/gpt-4.1')`")

DEMOS = Kind(
    lambda value: isinstance(value, list | tuple) and all(isinstance(demo, dspy.Example) for demo in value),
    "a list of `dspy.Example`",
)

DEMOS_BY_NAME = table("predictor names with lists of `dspy.Example`, such as `{'solver': [example]}`", DEMOS.fits)


def _gives_later(value: Any) -> bool:
    """Whether a call gives no result, but something that has to be awaited or looped over for one."""
    functions = (value, getattr(value, "__call__", None))  # noqa: B004
    asked = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(is_such(function) for is_such in asked for function in functions)
