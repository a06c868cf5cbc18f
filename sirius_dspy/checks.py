"""Validation of settings: kinds of values, and the error for a value of another kind.

Constructors only store their arguments, and `compile` checks them all before the first LM call. So each class has a
table with the kind of each setting and passes it to `check`.
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
    """A kind of value, and how to describe it in an error message."""

    fits: Callable[[Any], bool]
    expected: str
    """Completes the message after "expected"."""


def check(owner: str, settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raise an error for the first setting whose value is of the wrong kind.

    Args:
        owner: Name of the class that has the settings, for the message.
        settings: Name to value; settings without a kind are not checked.
        kinds: Name to kind.

    Raises:
        SettingsError: The message names the setting, its value and what was expected.
    """
    for name, kind in kinds.items():
        if not kind.fits(value := settings[name]):
            hint = f" Pass an object of the class: `{value.__name__}(...)`." if isinstance(value, type) else ""
            raise SettingsError(f"`{name}` of {owner} is {describe_value(value)}, expected {kind.expected}.{hint}")


def describe_value(value: Any) -> str:
    """Describe a value for a message: objects by type and mappings by keys, as they may be long or secret."""
    if isinstance(value, type):
        text = f"the class {value.__name__}"
    elif isinstance(value, Mapping):
        text = f"a mapping with the keys {describe_value(list(value))}"
    elif isinstance(value, list | tuple | AnySet):
        text = f"[{', '.join(map(describe_value, value))}]"
    else:
        text = repr(value) if value is None or isinstance(value, str | bool | int | float) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def number(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Kind:
    """Accept a finite number in a range, but no bool."""
    words = {"from": least, "to": most, "above": above, "below": below}
    limits = " and ".join(f"{word} {limit:g}" for word, limit in words.items() if math.isfinite(limit))

    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        try:
            return math.isfinite(value) and least <= value <= most and above < value < below
        except OverflowError:  # a whole number with hundreds of digits
            return False

    return Kind(fits, f"a finite number {limits}".rstrip())


def whole(least: int, most: float = math.inf) -> Kind:
    """Accept an integer in a range."""
    limits = f"from {least}" if most == math.inf else f"from {least} to {most:g}"
    fits = number(least).fits
    return Kind(lambda value: isinstance(value, int) and fits(value) and value <= most, f"a whole number {limits}")


TEXT = Kind(lambda value: isinstance(value, str) and value != "", "a non-empty string")

FLAG = Kind(lambda value: isinstance(value, bool), "True or False")

SEED = whole(0, 2**31 - 1)
"""The range that every random generator in use accepts."""

NAMES = Kind(
    lambda value: isinstance(value, list | tuple | AnySet) and all(isinstance(name, str) for name in value),
    "a list of names, such as `['judge']`",
)

PATH = Kind(lambda value: isinstance(value, str | os.PathLike) and str(value) != "", "a path")


def optional(kind: Kind) -> Kind:
    """Accept the given kind or `None`."""
    return Kind(lambda value: value is None or kind.fits(value), f"{kind.expected}, or None")


def either(*kinds: Kind) -> Kind:
    """Accept any of several kinds."""
    return Kind(lambda value: any(kind.fits(value) for kind in kinds), " or ".join(kind.expected for kind in kinds))


def choice(*values: str | None) -> Kind:
    """Accept one of a few values."""
    *others, last = map(repr, values)
    return Kind(lambda value: isinstance(value, str | None) and value in values, f"{', '.join(others)} or {last}")


def instance(*classes: type, hint: str = "") -> Kind:
    """Accept an instance of one of these classes."""
    names = " or ".join(f"a `{cls.__name__}`" for cls in classes)
    return Kind(lambda value: isinstance(value, classes), names + hint)


def several(kind: Kind, expected: str) -> Kind:
    """Accept a list that is not empty, and whose items are all of a kind."""
    return Kind(
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(kind.fits, value)), expected
    )


def able(*methods: str, expected: str) -> Kind:
    """Accept an object that has these methods, but no class."""

    def fits(value: Any) -> bool:
        return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)

    return Kind(fits, expected)


def pattern(expected: str) -> Kind:
    """Accept a regular expression as a string."""

    def fits(value: Any) -> bool:
        try:
            return isinstance(value, str) and bool(re.compile(value))
        except re.error:
            return False

    return Kind(fits, expected)


def table(expected: str, fits: Callable[[Any], bool] = lambda item: True) -> Kind:
    """Accept a mapping with string keys."""

    def all_fit(value: Any) -> bool:
        is_table = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return is_table and all(fits(item) for item in value.values())

    return Kind(all_fit, expected)


# Kinds that several classes use

METRIC = Kind(
    lambda value: callable(value) and not isinstance(value, type) and not _gives_later(value),
    "a function `metric(example, prediction, trace=None)` that returns a number",
)

LM = instance(dspy.BaseLM, hint=", such as `dspy.LM('openai/gpt-4.1')`")

DEMOS = Kind(
    lambda value: isinstance(value, list | tuple) and all(isinstance(demo, dspy.Example) for demo in value),
    "a list of `dspy.Example`",
)

DEMOS_BY_NAME = table("predictor names with lists of `dspy.Example`, such as `{'solver': [example]}`", DEMOS.fits)


def _gives_later(value: Any) -> bool:
    """Return whether calling the value gives a coroutine or a generator and not a result."""
    functions = (value, getattr(value, "__call__", None))  # noqa: B004
    asked = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(is_such(function) for is_such in asked for function in functions)
