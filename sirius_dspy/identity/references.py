"""The values that a function of the user refers to: globals, and what it imports while it runs."""

from __future__ import annotations

import importlib
import importlib.util
import types
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sirius_dspy.identity.habits import Habits, effects_of
from sirius_dspy.identity.source_code import globals_of, imports_of, is_installed, is_library, module_of


def find_globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the values that a function reads of its globals, of modules of the user, and of its own imports.

    Left out is what the code names already and what is the same wherever it is installed, such as a library's function.
    """
    values: dict[str, Any] = {}
    for name, reads in sorted(globals_of(function.__code__).items()):
        if name not in function.__globals__:
            continue  # a builtin
        value = function.__globals__[name]
        values |= _read_module(name, value, reads) if isinstance(value, types.ModuleType) else {name: value}
    values |= _imported_values(function)
    return {name: value for name, value in values.items() if not _is_named_only(value)}


def _is_named_only(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return is_library(value.__name__)
    if isinstance(value, types.BuiltinFunctionType):
        return True
    if isinstance(value, types.FunctionType):
        return is_library(module_of(value)) and not hasattr(value, "__wrapped__") and not value.__closure__
    return isinstance(value, type) and is_library(value.__module__)


def _read_module(name: str, module: types.ModuleType, reads: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """Return what a function reads of a module of the user, by dotted name."""
    values: dict[str, Any] = {}
    for path in reads:
        value: Any = module
        dotted = name
        for attribute in path:
            if not isinstance(value, types.ModuleType) or is_library(value.__name__):
                break
            value, dotted = getattr(value, attribute, None), f"{dotted}.{attribute}"
        values[dotted] = value
    return dict(sorted(values.items()))


def _imported_values(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function imports of the user's modules while it runs, as if it were imported a little earlier."""
    values: dict[str, Any] = {}
    package = str(function.__globals__.get("__package__") or "")
    for name, level, taken in imports_of(function.__code__):
        module = _user_module(name, level, package)
        if module is None:
            continue
        attributes = [attribute for attribute in taken if attribute != "*"]
        values |= {attribute: getattr(module, attribute, None) for attribute in attributes}
        if not attributes:
            values[module.__name__] = module
    return values


def _user_module(name: str, level: int, package: str) -> types.ModuleType | None:
    """Return a module of the user; `None` if it is a library, or cannot be imported."""
    if level:
        name = f"{package.rsplit('.', level - 1)[0] if level > 1 else package}{'.' if name else ''}{name}"
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
        if spec is None or is_library(top) or is_installed(str(spec.origin)):
            return None
        return importlib.import_module(name)
    except Exception:  # the same failure awaits the function when it runs
        return None


def add_neighbours(habits: Habits, used: Mapping[str, Any], namespace: Mapping[str, Any]) -> Habits:
    """Add what the functions that a function uses change: one may fill a global list that another one reads.

    Args:
        habits: The habits of the function.
        used: The values that it refers to.
        namespace: Its globals; only functions with the same ones are followed.
    """
    changed, waiting, seen = set(habits.changed), list(used.values()), set()
    while waiting:
        function = waiting.pop()
        if isinstance(function, types.FunctionType) and function.__globals__ is namespace and id(function) not in seen:
            seen.add(id(function))
            effects = effects_of(function)
            changed |= {name for name in effects.changed if name.partition(".")[0] not in effects.parameters}
            waiting += [namespace.get(name) for name in globals_of(function.__code__)]
    return replace(habits, changed=changed)
