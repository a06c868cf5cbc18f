"""Tells the state of an object from its settings: what its own methods change, handles of the process, credentials."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Set
from typing import Any

from sirius_dspy.credentials import is_secret_attribute, is_secret_name
from sirius_dspy.identity.expressions import ANY
from sirius_dspy.identity.habits import Habits, effects_of
from sirius_dspy.identity.source_code import is_library
from sirius_dspy.identity.values import Plain, describe_atom, local_name
from sirius_dspy.trajectory import digest

_ENTRIES = frozenset(
    [
        *("__call__", "forward", "aforward", "acall", "repair", "curate", "train", "check", "restore", "leak"),
        *("format", "parse", "complete"),
    ]
)
"""Methods with which the work of an object begins: DSPy and this package call them."""

_CONSTRUCTORS = frozenset(
    ["__init__", "__post_init__", "__new__", "__setstate__", "__init_subclass__", "model_post_init"]
)
"""Methods that make an object: what they set are its settings."""

_CACHE = re.compile(r"(?:^|_)(?:cache|caches|cached|memo|history|lock|locks|log|logger)$", re.IGNORECASE)

_OF_A_PROCESS = frozenset(
    [
        *("_asyncio", "_io", "_queue", "_random", "_socket", "_sqlite3", "_ssl", "_thread", "_weakref"),
        *("asyncio", "concurrent", "contextvars", "_contextvars", "io", "logging", "multiprocessing", "os"),
        *("queue", "random", "selectors", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading"),
        *("weakref", "_weakrefset", "generator"),
    ]
)
"""Modules whose objects are handles or state: locks, threads, files, sockets, connections, environments."""


def work_of(cls: type, entries: Set[str]) -> tuple[set[str], set[str]]:
    """Return what an object changes of itself while it works, and which methods it calls on its parts.

    Args:
        cls: The class of the object.
        entries: Methods that its owner calls on it, besides those that everybody calls.

    Returns:
        Two sets of dotted paths, relative to the object.
    """
    reached: set[str] = set()
    waiting = {*_ENTRIES, *(name for name in entries if "." not in name), *_properties(cls)}
    work = Habits()
    while fresh := waiting - reached:
        reached |= fresh
        for name in fresh:
            for function in _methods(cls, name):
                habits = effects_of(function)
                waiting |= habits.calls.get("self", set()) - _CONSTRUCTORS
                work.changed |= habits.given if name in _ENTRIES else set()
                for part in [habits, *_effects_of_methods(cls, habits)]:
                    work.add(part)
    names = {"self", *(local_name(base.__name__) for base in cls.__mro__)}
    changed = set().union(*(work.changes_of(name) for name in names))
    return changed, {path for path in {*work.calls_on("self"), *entries} if "." in path}


def _effects_of_methods(cls: type, habits: Habits) -> Iterator[Habits]:
    """Yield what the methods of a class do with the names that another method passes to them."""
    for passed in habits.passed:
        owner, _, name = passed.function.partition(".")
        if owner == "self" and "." not in name:
            yield from (effects_of(function).apply_to(passed, is_method=True) for function in _methods(cls, name))


def _properties(cls: type) -> Iterator[str]:
    """Yield the properties that the user wrote: reading them is work, too."""
    for base in cls.__mro__:
        if not is_library(base.__module__):
            yield from (name for name, item in vars(base).items() if isinstance(item, property))


def _methods(cls: type, name: str) -> Iterator[types.FunctionType]:
    """Yield the functions of this name in a class and its bases, each with those that it wraps."""
    for base in cls.__mro__:
        item = vars(base).get(name)
        function = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
        while isinstance(function, types.FunctionType):
            yield function
            function = getattr(function, "__wrapped__", None)


def paths_within(name: str, paths: Iterable[str]) -> set[str]:
    """Return the dotted paths that begin with a name, without that name."""
    return {rest for first, _, rest in (path.partition(".") for path in paths) if first == name and rest}


def drop_paths(described: Plain, paths: Set[str]) -> Plain:
    """Return a description without its parts at these dotted paths."""
    if not paths or not isinstance(described, dict | list):
        return described
    if isinstance(described, list):
        return [drop_paths(item, paths_within(ANY, paths)) for item in described]
    every = paths_within(ANY, paths)
    return {
        name: drop_paths(item, paths_within(name, paths) | every)
        for name, item in described.items()
        if name not in paths
    }


def is_state(name: str, value: Any, changed: Set[str]) -> bool:
    """Return whether a named value tells how far the work is, and not how it is done."""
    if isinstance(value, types.FunctionType | type | types.ModuleType):
        return False
    return name in changed or (bool(_CACHE.search(name)) and describe_atom(value) is None)


def is_credential(name: str, value: Any) -> bool:
    """Return whether a named text is a key or password, which may be another one tomorrow."""
    return isinstance(value, str | bytes) and is_secret_attribute(name)


def mask(name: str, value: Any) -> Any:
    """Replace a text by its hash if its name may be that of a credential, such as `key` or `token`."""
    if isinstance(value, str) and is_secret_name(name):
        return f"a text with the hash {digest(value)[:16]}"
    return value


def is_process_bound(value: Any) -> bool:
    """Return whether a value is a handle of this process: a lock, a thread, a file, a connection, an iterator."""
    root = type(value).__module__.partition(".")[0]
    return root in _OF_A_PROCESS or isinstance(value, Iterator | types.CodeType | types.FrameType)
