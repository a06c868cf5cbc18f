"""The objects that a program is made of, and the predictors among them that DSPy does not find.

DSPy finds predictors in attributes, and in lists and dicts that are attributes. What lies deeper it neither saves nor
gives an LM, so a compile could not train it either: `hidden_predictors` finds those, to be named in an error.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.dspy_internals import is_compiled
from sirius_dspy.program.predictors import predictor_names

_OF_MODULES = frozenset({"history", "callbacks"})
_OF_PREDICTORS = frozenset({"lm", "demos", "traces", "train", "config", "fields", "signature"})
PLAIN = frozenset({str, int, float, complex, bool, bytes, type(None), type(...), types.ModuleType, range, slice})
CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, functools.cached_property, property)
_ITEMS = (list, tuple, deque)
CONTAINERS = (*_ITEMS, set, frozenset, dict, types.SimpleNamespace)


def hidden_predictors(program: dspy.Module) -> list[str]:
    """Find the predictors that DSPy does not, and return the paths to them, such as `teams[0][1]`.

    They are in containers within containers, in sets, in plain objects, or on the class. A module that is already
    compiled hides its predictors on purpose. Closures of functions are not searched: what they hold may be the judge of
    a reward function.
    """
    visible = {id(predictor) for predictor in predictor_names(program).values()}
    parts = walk(program, whole=False)
    return [path for path, value in parts if isinstance(value, dspy.Predict) and id(value) not in visible]


def walk(program: dspy.Module, *, whole: bool) -> Iterator[tuple[str, Any]]:
    """Yield every object of a program's structure, with the path to it: modules, containers, plain objects, LMs.

    Args:
        program: Where to start.
        whole: Look at the objects of bound methods and partials, too, and into modules that are compiled.
    """
    queue: deque[tuple[str, Any]] = deque([("", program)])
    seen = {id(program)}
    while queue:
        path, value = queue.popleft()
        yield path or "self", value
        if not whole and value is not program and isinstance(value, dspy.Module) and is_compiled(value):
            continue
        for step, child in children(value, whole=whole):
            if type(child) not in PLAIN and not isinstance(child, CODE) and id(child) not in seen:
                seen.add(id(child))
                queue.append(((path + step).removeprefix("."), child))


def children(value: Any, *, whole: bool) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds directly, with the step of the path to it; see `walk`."""
    if isinstance(value, dspy.BaseLM | Adapter):
        return
    if isinstance(value, types.MethodType | functools.partial):
        if whole:
            yield from _bound(value)
        return
    if isinstance(value, _ITEMS):
        yield from ((f"[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("{...}", item) for item in value)
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in value.items() if type(item) not in PLAIN)
        yield from ((f"[{key!r}]", key) for key in value if type(key) not in PLAIN)
    skipped = _OF_MODULES if isinstance(value, dspy.Module) else frozenset()
    skipped |= _OF_PREDICTORS - {"lm"} if isinstance(value, dspy.Predict) else frozenset()
    yield from ((f".{name}", item) for name, item in _attributes(value) if name not in skipped)
    if isinstance(value, dspy.Module):
        yield from _class_attributes(type(value))


def _bound(value: types.MethodType | functools.partial[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    else:
        yield from ((".func", part) for part in (value.func, *value.args, *value.keywords.values()))


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object, read without calling any code of its class."""
    attributes: dict[str, Any] = {}
    with contextlib.suppress(AttributeError):  # a class with slots
        attributes = dict(object.__getattribute__(value, "__dict__"))
    yield from attributes.items()
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            descriptor = vars(cls).get(name)
            if isinstance(descriptor, types.MemberDescriptorType):
                try:
                    yield name, descriptor.__get__(value)
                except AttributeError:  # a slot that was never set
                    continue


def _class_attributes(cls: type) -> Iterator[tuple[str, Any]]:
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] != "dspy":
            values = vars(owner).items()
            yield from ((f".{name}", value) for name, value in values if isinstance(value, (dspy.Module, *CONTAINERS)))
