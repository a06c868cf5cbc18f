"""Describes any object as plain values that are the same in every process, so that two compiles can be compared.

What counts and what does not:

- The code of functions and classes that the user wrote counts, with what they close over, their defaults, and the
  global names that they use; comments, formatting and docstrings do not. Installed packages count by name.
- The attributes of an object count, private ones too, but not its state: what its own methods change while they work (a
  counter, a log, a cache that fills), objects that are named like a cache, and locks, threads, files, connections,
  iterators and random generators.
- Of an LM, the class, `model`, sampling and training settings count, but not its engine, its cache, its retries, its
  credentials, nor the address of a server on this machine.
- Random names that DSPy gives, addresses in memory and the order of sets and dicts never count.

A description never fails: what cannot be described is named by its type.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import suppress
from typing import Any

import dspy
from dspy.adapters.base import Adapter
from pydantic import BaseModel

from sirius_dspy.identity.attributes import attributes_of, is_written_by_user
from sirius_dspy.identity.expressions import ANY
from sirius_dspy.identity.habits import Habits, effects_of
from sirius_dspy.identity.lms import lm_arguments, lm_attributes
from sirius_dspy.identity.references import add_neighbours, find_globals
from sirius_dspy.identity.shorten import shorten
from sirius_dspy.identity.source_code import cells_of, code_of, is_library, module_code, module_of
from sirius_dspy.identity.state import (
    drop_paths,
    is_credential,
    is_process_bound,
    is_state,
    mask,
    paths_within,
    work_of,
)
from sirius_dspy.identity.values import (
    Plain,
    class_name,
    describe_atom,
    describe_data,
    describe_type,
    local_name,
    schema_digest,
    strip_addresses,
    type_name,
)
from sirius_dspy.redact import remember_secrets
from sirius_dspy.trajectory import canonical, digest

_DEEPEST = 60
"""Maximum depth of objects inside objects; below, only the type counts."""

_UNCOUNTED = frozenset(["callbacks", "history", "stage", "traces", "train", "_compiled"])
"""Attributes of DSPy's objects that belong to one process or one run."""


def describe(value: Any, *, without_lms: Collection[dspy.Predict] = ()) -> Plain:
    """Describe an object as plain values, which are equal in every process for objects that do the same.

    Args:
        value: Anything.
        without_lms: Predictors whose LMs and demonstrations are described elsewhere.
    """
    return shorten(_Describer(frozenset(map(id, without_lms))).of(value, "it"))


def describe_lms(predictors: Mapping[str, dspy.Predict]) -> Plain:
    """Describe the LM of each predictor, or DSPy's default, by predictor name."""
    return {name: describe(predictor.lm or dspy.settings.lm) for name, predictor in predictors.items()}


class _Describer:
    """Describes one part of an identity.

    Classes and functions refer to one another, so each is written out where it is met first, and is a reference
    afterwards. So is an object that holds itself.

    Args:
        elsewhere: Ids of the predictors whose LMs and demonstrations are described elsewhere.
    """

    def __init__(self, elsewhere: frozenset[int]) -> None:
        self.elsewhere = elsewhere
        self.met: dict[int, str] = {}
        self.kept: list[Any] = []  # so that no id is given twice
        self.depth = 0

    def of(self, value: Any, path: str, entries: Set[str] = frozenset()) -> Plain:
        """Describe a value.

        Args:
            value: Anything.
            path: Where it is; what is met again refers to it.
            entries: Methods that its owner calls on it, besides those that everybody calls.
        """
        if (atom := describe_atom(value)) is not None or value is None:
            return atom
        if self.depth >= _DEEPEST:
            return describe_type(value)
        self.depth += 1
        try:
            return self._object(value, path, entries)
        except Exception:  # objects may raise anything when they are looked at; they always have a type
            return describe_type(value)
        finally:
            self.depth -= 1

    def _object(self, value: Any, path: str, entries: Set[str]) -> Plain:
        if isinstance(value, enum.Enum):
            return {"member": f"{class_name(type(value))}.{value.name}", "value": self.of(value.value, path)}
        if isinstance(value, Mapping | list | tuple | Set | deque) and not is_process_bound(value):
            return self._once(value, path, lambda: self._container(value, path, entries), is_open=True)
        for kind, describer in self._describers():
            if isinstance(value, kind):
                return describer(value, path)
        if callable(wrapped := inspect.getattr_static(value, "__wrapped__", None)):
            return self.of(wrapped, path)  # `functools.lru_cache`, whose content is no setting
        if (data := describe_data(value)) is not None:
            return data
        if is_process_bound(value):
            return describe_type(value)
        return self._once(value, path, lambda: self._instance(value, path, entries))

    def _describers(self) -> tuple[tuple[Any, Callable[[Any, str], Plain]], ...]:
        return (
            (dspy.BaseLM, self._lm),
            (dspy.Example, self._example),
            (functools.partial, self._partial),
            (types.MethodType | types.BuiltinMethodType, self._method),
            (types.FunctionType, lambda value, path: self._once(value, path, lambda: self._function(value, path))),
            (types.ModuleType, lambda value, path: self._once(value, path, lambda: self._module(value))),
            (type, lambda value, path: self._class_once(value, path, frozenset())),
        )

    def _once(self, value: Any, path: str, write: Callable[[], Plain], *, is_open: bool = False) -> Plain:
        """Write a value the first time and refer to it later; a container may be written again once it is closed."""
        if id(value) in self.met:
            return {"same as": self.met[id(value)]}
        self.met[id(value)] = path
        self.kept.append(value)
        try:
            return write()
        finally:
            if is_open:
                del self.met[id(value)]

    def _fork(self) -> _Describer:
        """Return a describer for elements without an order, none of which may depend on another one."""
        forked = _Describer(self.elsewhere)
        forked.met, forked.depth = dict(self.met), self.depth
        return forked

    # Containers

    def _container(self, value: Any, path: str, entries: Set[str]) -> Plain:
        entries = paths_within(ANY, entries)
        if not is_library(type(value).__module__):  # a class that the user wrote, with code
            described = self._instance(value, path, frozenset())
            return {**described, "items": self._items(value, path, entries)}
        return self._items(value, path, entries)

    def _items(self, value: Any, path: str, entries: Set[str]) -> Plain:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            value = dict(zip(value._fields, value, strict=True))
        if isinstance(value, Mapping):
            described = self._mapping(value, path, entries)
            made_by = getattr(value, "default_factory", None)
            return described if made_by is None else {"default_factory": self.of(made_by, path), **described}
        if isinstance(value, Set):
            return sorted((self._fork().of(item, path, entries) for item in value), key=canonical)
        return [self.of(item, f"{path}[{number}]", entries) for number, item in enumerate(value)]

    def _mapping(self, value: Mapping[Any, Any], path: str, entries: Set[str] = frozenset()) -> dict[str, Plain]:
        if all(isinstance(key, str) and not isinstance(key, enum.Enum) for key in value):
            named = {str(key): item for key, item in value.items()}
        else:
            named = {f"[{canonical(self._fork().of(key, path))}]": item for key, item in value.items()}
        return {
            name: self.of(mask(name, named[name]), f"{path}.{name}", entries)
            for name in sorted(named)
            if not is_credential(name, named[name])
        }

    # DSPy's objects

    def _lm(self, lm: dspy.BaseLM, path: str) -> Plain:
        remember_secrets(lm)  # of a metric's LM, or one that `forward` chooses, nothing else has noted them
        settings = self._settings(lm_attributes(lm), path, *work_of(type(lm), frozenset()))
        arguments = {name: self.of(item, path) for name, item in lm_arguments(lm).items()}
        provider = self.of(getattr(lm, "provider", None), f"{path}.provider")
        return {"class": self._class_of(lm, path), "provider": provider, **settings, **arguments}

    def _example(self, example: dspy.Example, path: str) -> Plain:
        return {name: self.of(item, f"{path}.{name}") for name, item in sorted(example.items())}

    def _signature(self, signature: type[dspy.Signature], path: str) -> Plain:
        fields = {name: self._field(item, f"{path}.{name}") for name, item in signature.fields.items()}
        return {"instructions": signature.instructions, "fields": fields, "order": list(fields)}

    def _field(self, field: Any, path: str) -> Plain:
        extra = {name: item for name, item in (field.json_schema_extra or {}).items() if name != "IS_TYPE_UNDEFINED"}
        described = self._mapping(extra, path)
        described |= {"type": type_name(field.annotation), "schema": schema_digest(field.annotation)}
        if not field.is_required():
            described["default"] = self.of(field.default_factory or field.default, f"{path}.default")
        return described | {"limits": [strip_addresses(item) for item in field.metadata]}

    # Functions

    def _function(self, function: types.FunctionType, path: str) -> Plain:
        name = local_name(function.__qualname__)
        if is_library(module_of(function)):
            return self._library_function(function, path)
        habits = effects_of(function)
        parts = {
            "closure": self._closure(function, path, habits),
            "defaults": self._defaults(function, path, habits),
            "uses": self._globals(function, path, habits),
            "attributes": self._settings(
                attributes_of(function), path, habits.changes_of(function.__name__), frozenset()
            ),
        }
        code = digest(code_of(function.__code__))[:16]
        return {"function": name, "code": code, **{part: described for part, described in parts.items() if described}}

    def _library_function(self, function: types.FunctionType, path: str) -> Plain:
        if (wrapped := getattr(function, "__wrapped__", None)) is not None:
            registry = getattr(function, "registry", None)  # of `functools.singledispatch`
            return self.of(wrapped if registry is None else registry, path)
        closure = self._closure(function, path, Habits())
        name = f"{module_of(function)}.{local_name(function.__qualname__)}"
        return {"function": name, **({"closure": closure} if closure else {})}

    def _module(self, module: types.ModuleType) -> Plain:
        """Describe a module that is used as a whole."""
        if is_library(module.__name__):
            return {"module": module.__name__}
        return {"module": module.__name__, "code": digest(module_code(module))[:16]}

    def _closure(self, function: types.FunctionType, path: str, habits: Habits) -> Plain:
        cells = cells_of(function)
        variables = {}
        for name in sorted(cells.keys() - {"__class__"}):
            with suppress(ValueError):  # not set yet, as in a function that calls itself while it is made
                variables[name] = cells[name].cell_contents
        return self._variables(variables, path, habits)

    def _defaults(self, function: types.FunctionType, path: str, habits: Habits) -> Plain:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        given = function.__defaults__ or ()
        defaults = dict(zip(names[len(names) - len(given) :], given, strict=True)) | (function.__kwdefaults__ or {})
        return self._variables(defaults, path, habits)

    def _globals(self, function: types.FunctionType, path: str, habits: Habits) -> Plain:
        used = find_globals(function)
        return self._variables(used, path, add_neighbours(habits, used, function.__globals__))

    def _variables(self, variables: Mapping[str, Any], path: str, habits: Habits) -> dict[str, Plain]:
        return {
            name: drop_paths(
                self.of(mask(name, item), f"{path}.{name}", habits.calls_on(name)), habits.changes_of(name)
            )
            for name, item in variables.items()
            if not is_state(name, item, habits.changed) and not is_credential(name, item)
        }

    def _partial(self, partial: functools.partial[Any] | functools.partialmethod[Any], path: str) -> Plain:
        return {
            "partial": self.of(partial.func, f"{path}.partial"),
            "args": self.of(list(partial.args), f"{path}.args"),
            "keywords": self.of(partial.keywords, f"{path}.keywords"),
        }

    def _method(self, method: Any, path: str) -> Plain:
        owner, name = method.__self__, method.__name__
        if isinstance(owner, types.ModuleType):
            return f"{owner.__name__}.{name}"
        described = {"method": name, "of": self.of(owner, f"{path}.of", {name})}
        function = getattr(method, "__func__", None)
        if isinstance(function, types.FunctionType) and getattr(type(owner), name, None) is not function:
            described["function"] = self.of(function, f"{path}.{name}")  # bound to an object of another class
        return described

    # Classes and instances

    def _class_of(self, value: Any, path: str, changed: Set[str] = frozenset()) -> Plain:
        return self._class_once(type(value), path, changed)

    def _class_once(self, cls: type, path: str, changed: Set[str]) -> Plain:
        if is_library(cls.__module__) and not issubclass(cls, dspy.Signature):
            return class_name(cls)
        return self._once(cls, class_name(cls), lambda: self._class(cls, path, changed))

    def _class(self, cls: type, path: str, changed: Set[str]) -> Plain:
        """Describe a class that the user wrote, with its code."""
        if issubclass(cls, dspy.Signature):
            return self._signature(cls, path)
        described: dict[str, Plain] = {"name": local_name(cls.__qualname__)}
        if issubclass(cls, enum.Enum):
            described["members"] = {item.name: self.of(item.value, f"{path}.{item.name}") for item in cls}
        for name, item in sorted(vars(cls).items()):
            if is_written_by_user(cls, name, item) and not (is_state(name, item, changed) or is_credential(name, item)):
                described[name] = self._class_attribute(mask(name, item), f"{path}.{name}")
        if not is_library(type(cls).__module__):
            described["metaclass"] = self._class_once(type(cls), path, frozenset())
        bases = {local_name(base.__qualname__): base for base in cls.__bases__ if base is not object}
        described["bases"] = {name: self._class_once(base, path, changed) for name, base in bases.items()}
        return described

    def _class_attribute(self, value: Any, path: str) -> Plain:
        if isinstance(value, staticmethod | classmethod):
            return self.of(value.__func__, path)
        if isinstance(value, functools.cached_property):
            return self.of(value.func, path)
        if isinstance(value, functools.partialmethod):
            return self._partial(value, path)
        if isinstance(value, property):
            return [self.of(item, path) for item in (value.fget, value.fset, value.fdel) if item is not None]
        return self.of(value, path)

    def _instance(self, value: Any, path: str, entries: Set[str]) -> Plain:
        cls, attributes = type(value), self._counted_attributes(value)
        changed, called = work_of(cls, entries)
        described = self._settings(attributes, path, changed, called)
        if not attributes and is_library(cls.__module__):
            described |= self._reduce(value, path)
        return {"class": self._class_of(value, path, changed), **described}

    def _counted_attributes(self, value: Any) -> dict[str, Any]:
        attributes = attributes_of(value)
        if is_library(type(value).__module__) and not isinstance(value, BaseModel | dspy.Module | Adapter):
            attributes = {name: item for name, item in attributes.items() if name[0] != "_"}
        if isinstance(value, dspy.Module | Adapter):
            attributes = {name: item for name, item in attributes.items() if name not in _UNCOUNTED}
        return self._predictor(value, attributes) if isinstance(value, dspy.Predict) else attributes

    def _predictor(self, predictor: dspy.Predict, attributes: dict[str, Any]) -> dict[str, Any]:
        if id(predictor) in self.elsewhere:
            return {name: item for name, item in attributes.items() if name not in ("lm", "demos")}
        return {**attributes, "lm": predictor.lm or dspy.settings.lm}

    def _settings(
        self, attributes: Mapping[str, Any], path: str, changed: Set[str], called: Set[str]
    ) -> dict[str, Plain]:
        return {
            name: drop_paths(
                self.of(mask(name, item), f"{path}.{name}", paths_within(name, called)), paths_within(name, changed)
            )
            for name, item in sorted(attributes.items())
            if not is_state(name, item, changed) and not is_credential(name, item)
        }

    def _reduce(self, value: Any, path: str) -> dict[str, Plain]:
        """Describe an object without visible attributes by what `pickle` would build it from."""
        if type(value).__module__ not in ("operator", "collections", "itertools", "zoneinfo", "array", "builtins"):
            return {}
        _, *parts = value.__reduce_ex__(2)
        return {"of": self.of([part for part in parts if not isinstance(part, Iterator)], path)}
