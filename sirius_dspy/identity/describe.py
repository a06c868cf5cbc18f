"""Any object as plain values that every process writes alike, so that two compiles can be compared.

What counts and what does not:

- The code of functions and of classes of the user's own counts, with what they close over, their defaults, and the
  global names that they use; comments, formatting and docstrings do not. Installed packages count by name.
- The attributes of an object count, private ones too, but not its state: what its own methods change while they work (a
  counter, a log, a cache that fills), whatever is named like a cache and is no plain value, and locks, threads, files,
  connections, iterators and random generators.
- Of an LM, what it is asked for and how it is trained: class, `model`, sampling and training settings. Not its engine,
  its cache, its retries, its credentials, nor the address of a server on this machine.
- Random names that DSPy gives, addresses in memory and the order of sets and dicts never count.

A description never fails: what cannot be described is named by its type.
"""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import inspect
import re
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import PurePath
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit

import dspy
from dspy.adapters.base import Adapter
from pydantic import BaseModel, TypeAdapter

from sirius_dspy.credentials import is_secret_attribute, is_secret_name
from sirius_dspy.dspy_internals import LM_INTERNALS
from sirius_dspy.identity.source_code import (
    ANY,
    Habits,
    code_of,
    effects_of,
    globals_of,
    imports_of,
    is_library,
    module_code,
    module_of,
)
from sirius_dspy.redact import redact, remember_secrets
from sirius_dspy.trajectory import canonical, digest

Plain = Any
"""What JSON can hold."""


def describe(value: Any, *, without_lms: Collection[dspy.Predict] = ()) -> Plain:
    """An object as plain values that are equal in every process for objects that do the same.

    Args:
        value: Anything.
        without_lms: Predictors whose LMs and demonstrations are described elsewhere.
    """
    return _shown(_Describer(frozenset(map(id, without_lms))).of(value, "it"))


def describe_lms(predictors: Mapping[str, dspy.Predict]) -> Plain:
    """The LM of each predictor, or DSPy's default, by predictor name."""
    return {name: describe(predictor.lm or dspy.settings.lm) for name, predictor in predictors.items()}


# Objects

_DEEPEST = 60
"""Objects inside objects; below, only the type is named."""

_ENTRIES = frozenset(
    [
        *("__call__", "forward", "aforward", "acall", "repair", "curate", "train", "check", "restore", "leak"),
        *("format", "parse", "complete"),
    ]
)
"""Methods that DSPy and we call, by which an object's work begins."""

_BEGINNINGS = frozenset(
    [
        *("__init__", "__post_init__", "__new__", "__setstate__", "__init_subclass__", "model_post_init"),
    ]
)
"""Methods that make an object; what they set are its settings."""

_UNCOUNTED = frozenset(["callbacks", "history", "stage", "traces", "train", "_compiled"])
"""Attributes of DSPy's objects that are of one process or one run."""

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


class _Describer:
    """Describes one part of an identity.

    Classes and functions refer to one another, so each is written out where it is met first and named afterwards. So is
    an object that holds itself.
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
            path: Where it was found; what is met again refers to it.
            entries: Methods that its owner calls on it, besides those that everybody calls.
        """
        if (atom := _atom(value)) is not None or value is None:
            return atom
        if self.depth >= _DEEPEST:
            return _type(value)
        self.depth += 1
        try:
            return self._object(value, path, entries)
        except Exception:  # objects raise what they like when they are looked at; a type is always known
            return _type(value)
        finally:
            self.depth -= 1

    def _object(self, value: Any, path: str, entries: Set[str]) -> Plain:
        if isinstance(value, enum.Enum):
            return {"member": f"{_name(type(value))}.{value.name}", "value": self.of(value.value, path)}
        if isinstance(value, Mapping | list | tuple | Set | deque) and not _is_process_bound(value):
            return self._once(value, path, lambda: self._container(value, path, entries), is_open=True)
        described_by: tuple[tuple[Any, Callable[[Any, str], Plain]], ...] = (
            (dspy.BaseLM, self._lm),
            (dspy.Example, self._example),
            (functools.partial, self._partial),
            (types.MethodType | types.BuiltinMethodType, self._method),
        )
        for kind, describer in described_by:
            if isinstance(value, kind):
                return describer(value, path)
        if isinstance(value, types.FunctionType):
            return self._once(value, path, lambda: self._function(value, path))
        if isinstance(value, types.ModuleType):
            return self._once(value, path, lambda: self._module(value))
        if isinstance(value, type):
            return self._class_once(value, path, frozenset())
        if callable(wrapped := inspect.getattr_static(value, "__wrapped__", None)):
            return self.of(wrapped, path)  # `functools.lru_cache`, whose content is no setting
        if (data := _data(value)) is not None:
            return data
        if _is_process_bound(value):
            return _type(value)
        return self._once(value, path, lambda: self._instance(value, path, entries))

    def _once(self, value: Any, path: str, write: Callable[[], Plain], *, is_open: bool = False) -> Plain:
        """Write it out, or name it if that is done; equal containers are written out again when they are closed."""
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
        """A describer for elements without an order, none of which may depend on another one."""
        forked = _Describer(self.elsewhere)
        forked.met, forked.depth = dict(self.met), self.depth
        return forked

    # Containers

    def _container(self, value: Any, path: str, entries: Set[str]) -> Plain:
        entries = _within(ANY, entries)
        if not is_library(type(value).__module__):  # a class of the user's own, with code
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
            name: self.of(_masked(name, named[name]), f"{path}.{name}", entries)
            for name in sorted(named)
            if not _is_credential(name, named[name])
        }

    # DSPy's objects

    def _lm(self, lm: dspy.BaseLM, path: str) -> Plain:
        remember_secrets(lm)  # a judge's, or one that `forward` chooses, is not known before
        known = {name: getattr(lm, name, None) for name in ("model", "model_type", "finetuning_model")}
        known |= {name: getattr(lm, name, None) or {} for name in ("train_kwargs", "launch_kwargs")}
        own = {name: item for name, item in _attributes(lm).items() if name not in _OF_EVERY_LM}
        if is_library(type(lm).__module__):
            own = {name: item for name, item in own.items() if name[0] != "_"}
        settings = self._settings(known | own, path, *_work(type(lm), frozenset()))
        asked = {name: self.of(_asked(name, item), path) for name, item in lm.kwargs.items() if _is_asked(name, item)}
        provider = getattr(lm, "provider", None)
        return {
            "class": self._class_of(lm, path),
            "provider": self.of(provider, f"{path}.provider"),
            **settings,
            **asked,
        }

    def _example(self, example: dspy.Example, path: str) -> Plain:
        return {name: self.of(item, f"{path}.{name}") for name, item in sorted(example.items())}

    def _signature(self, signature: type[dspy.Signature], path: str) -> Plain:
        fields = {name: self._field(item, f"{path}.{name}") for name, item in signature.fields.items()}
        return {"instructions": signature.instructions, "fields": fields, "order": list(fields)}

    def _field(self, field: Any, path: str) -> Plain:
        extra = {name: item for name, item in (field.json_schema_extra or {}).items() if name != "IS_TYPE_UNDEFINED"}
        described = self._mapping(extra, path)
        described |= {"type": _type_name(field.annotation), "schema": _schema(field.annotation)}
        if not field.is_required():
            described["default"] = self.of(field.default_factory or field.default, f"{path}.default")
        return described | {"limits": [_text_of(item) for item in field.metadata]}

    # Functions

    def _function(self, function: types.FunctionType, path: str) -> Plain:
        name = _local_name(function.__qualname__)
        if is_library(module_of(function)):
            if (wrapped := getattr(function, "__wrapped__", None)) is not None:
                chosen_by_type = getattr(function, "registry", None)  # of `functools.singledispatch`
                return self.of(wrapped if chosen_by_type is None else chosen_by_type, path)
            closure = self._closure(function, path, Habits())
            return {"function": f"{module_of(function)}.{name}", **({"closure": closure} if closure else {})}
        habits = effects_of(function)
        parts = {
            "closure": self._closure(function, path, habits),
            "defaults": self._defaults(function, path, habits),
            "uses": self._globals(function, path, habits),
            "attributes": self._settings(_attributes(function), path, habits.under(function.__name__), frozenset()),
        }
        code = digest(code_of(function.__code__))[:16]
        return {"function": name, "code": code, **{part: found for part, found in parts.items() if found}}

    def _module(self, module: types.ModuleType) -> Plain:
        """A module that is used as a whole."""
        if is_library(module.__name__):
            return {"module": module.__name__}
        return {"module": module.__name__, "code": digest(module_code(module))[:16]}

    def _closure(self, function: types.FunctionType, path: str, habits: Habits) -> Plain:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        held = {}
        for name, cell in sorted(cells.items()):
            try:
                held[name] = cell.cell_contents
            except ValueError:  # not set yet, as in a function that calls itself while it is made
                continue
        return self._variables({name: item for name, item in held.items() if name != "__class__"}, path, habits)

    def _defaults(self, function: types.FunctionType, path: str, habits: Habits) -> Plain:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        given = function.__defaults__ or ()
        defaults = dict(zip(names[len(names) - len(given) :], given, strict=True)) | (function.__kwdefaults__ or {})
        return self._variables(defaults, path, habits)

    def _globals(self, function: types.FunctionType, path: str, habits: Habits) -> Plain:
        found: dict[str, Any] = {}
        for name, reads in sorted(globals_of(function.__code__).items()):
            if name not in function.__globals__:
                continue  # a builtin
            value = function.__globals__[name]
            found |= _read(name, value, reads) if isinstance(value, types.ModuleType) else {name: value}
        found |= _imported(function)
        own = {name: item for name, item in found.items() if not _is_named_only(item)}
        return self._variables(own, path, _together(habits, own, function.__globals__))

    def _variables(self, variables: Mapping[str, Any], path: str, habits: Habits) -> dict[str, Plain]:
        return {
            name: _without(self.of(_masked(name, item), f"{path}.{name}", habits.called(name)), habits.under(name))
            for name, item in variables.items()
            if not _is_state(name, item, habits.changed) and not _is_credential(name, item)
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
            return _name(cls)
        return self._once(cls, _name(cls), lambda: self._class(cls, path, changed))

    def _class(self, cls: type, path: str, changed: Set[str]) -> Plain:
        """A class of the user's own with its code."""
        if issubclass(cls, dspy.Signature):
            return self._signature(cls, path)
        described: dict[str, Plain] = {"name": _local_name(cls.__qualname__)}
        if issubclass(cls, enum.Enum):
            described["members"] = {item.name: self.of(item.value, f"{path}.{item.name}") for item in cls}
        for name, item in sorted(vars(cls).items()):
            if _is_own(cls, name, item) and not (_is_state(name, item, changed) or _is_credential(name, item)):
                described[name] = self._class_attribute(_masked(name, item), f"{path}.{name}")
        if not is_library(type(cls).__module__):
            described["metaclass"] = self._class_once(type(cls), path, frozenset())
        bases = {_local_name(base.__qualname__): base for base in cls.__bases__ if base is not object}
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
        attributes = _attributes(value)
        cls = type(value)
        is_ours = not is_library(cls.__module__) or isinstance(value, BaseModel | dspy.Module | Adapter)
        if not is_ours:
            attributes = {name: item for name, item in attributes.items() if name[0] != "_"}
        changed, called = _work(cls, entries)
        if isinstance(value, dspy.Module | Adapter):
            attributes = {name: item for name, item in attributes.items() if name not in _UNCOUNTED}
        if isinstance(value, dspy.Predict):
            attributes = self._predictor(value, attributes)
        described = self._settings(attributes, path, changed, called)
        if not attributes and is_library(cls.__module__):
            described |= self._reduced(value, path)
        return {"class": self._class_of(value, path, changed), **described}

    def _predictor(self, predictor: dspy.Predict, attributes: Mapping[str, Any]) -> dict[str, Any]:
        if id(predictor) in self.elsewhere:
            return {name: item for name, item in attributes.items() if name not in ("lm", "demos")}
        return {**attributes, "lm": predictor.lm or dspy.settings.lm}

    def _settings(
        self, attributes: Mapping[str, Any], path: str, changed: Set[str], called: Set[str]
    ) -> dict[str, Plain]:
        return {
            name: _without(
                self.of(_masked(name, item), f"{path}.{name}", _within(name, called)), _within(name, changed)
            )
            for name, item in sorted(attributes.items())
            if not _is_state(name, item, changed) and not _is_credential(name, item)
        }

    def _reduced(self, value: Any, path: str) -> dict[str, Plain]:
        """An object without attributes that can be looked at, by what `pickle` would build it from."""
        if type(value).__module__ not in ("operator", "collections", "itertools", "zoneinfo", "array", "builtins"):
            return {}
        _, *parts = value.__reduce_ex__(2)
        return {"of": self.of([part for part in parts if not isinstance(part, Iterator)], path)}


# What counts


def _work(cls: type, entries: Set[str]) -> tuple[set[str], set[str]]:
    """What an object changes of itself while it works, and the methods that it calls on its parts, relative to it."""
    reached: set[str] = set()
    waiting = {*_ENTRIES, *(name for name in entries if "." not in name), *_properties(cls)}
    found = Habits(calls={"self": set()})
    while waiting - reached:
        for name in waiting - reached:
            reached.add(name)
            for function in _methods(cls, name):
                habits = effects_of(function)
                found.changed |= habits.changed | (habits.given if name in _ENTRIES else set())
                waiting |= habits.calls.get("self", set()) - _BEGINNINGS
                for one in [habits, *_of_own_methods(cls, habits)]:
                    found.changed |= one.changed
                    for called, methods in one.calls.items():
                        found.calls.setdefault(called, set()).update(methods)
    names = {"self", *(_local_name(base.__name__) for base in cls.__mro__)}
    changed = set().union(*(found.under(name) for name in names))
    return changed, {item for item in {*found.called("self"), *entries} if "." in item}


def _of_own_methods(cls: type, habits: Habits) -> Iterator[Habits]:
    """What the methods of a class do with what another one passes to them."""
    for passed in habits.passed:
        owner, _, name = passed.function.partition(".")
        if owner == "self" and "." not in name:
            yield from (effects_of(function).on(passed, is_method=True) for function in _methods(cls, name))


def _properties(cls: type) -> Iterator[str]:
    """The properties of the user's own: reading them is work, too."""
    for base in cls.__mro__:
        if not is_library(base.__module__):
            yield from (name for name, item in vars(base).items() if isinstance(item, property))


def _methods(cls: type, name: str) -> Iterator[types.FunctionType]:
    for base in cls.__mro__:
        found = vars(base).get(name)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        while isinstance(found, types.FunctionType):
            yield found
            found = getattr(found, "__wrapped__", None)


def _within(name: str, paths: Iterable[str]) -> set[str]:
    """Of dotted paths those that begin with a name, without it."""
    return {rest for first, _, rest in (path.partition(".") for path in paths) if first == name and rest}


def _without(described: Plain, paths: Set[str]) -> Plain:
    """A description without what stands at these dotted paths."""
    if not paths or not isinstance(described, dict | list):
        return described
    if isinstance(described, list):
        return [_without(item, _within(ANY, paths)) for item in described]
    every = _within(ANY, paths)
    return {name: _without(item, _within(name, paths) | every) for name, item in described.items() if name not in paths}


def _is_state(name: str, value: Any, changed: Set[str]) -> bool:
    """Whether a named value says how far the work is and not how it is done."""
    if isinstance(value, types.FunctionType | type | types.ModuleType):
        return False
    return name in changed or (bool(_CACHE.search(name)) and _atom(value) is None)


def _is_credential(name: str, value: Any) -> bool:
    """Whether a named text is a key or password, which may be another one tomorrow."""
    return isinstance(value, str | bytes) and is_secret_attribute(name)


def _masked(name: str, value: Any) -> Any:
    """A text whose name may be that of a credential, such as `key` or `token`, counts by its hash and is not shown."""
    if isinstance(value, str) and is_secret_name(name):
        return f"a text with the hash {digest(value)[:16]}"
    return value


def _is_process_bound(value: Any) -> bool:
    root = type(value).__module__.partition(".")[0]
    return root in _OF_A_PROCESS or isinstance(value, Iterator | types.CodeType | types.FrameType)


def _is_own(cls: type, name: str, item: Any) -> bool:
    """Whether an attribute of a class was written by the user, and not made by Python or a decorator."""
    function = getattr(item, "__func__", item)
    if isinstance(function, types.FunctionType):
        function = inspect.unwrap(function)
        is_generated = hasattr(cls, "__dataclass_fields__") and function.__code__.co_filename == "<string>"
        return not (is_library(module_of(function)) or (is_generated and name.startswith("__")))
    if issubclass(cls, enum.Enum) and (name in cls.__members__ or name[0] == "_"):
        return False
    if isinstance(item, types.MemberDescriptorType | types.GetSetDescriptorType):
        return False
    if name == "__call__":
        return True  # of whatever kind
    return not (name.startswith(("__", "_abc_")) or name in ("model_fields", "model_computed_fields", "model_config"))


def _is_named_only(value: Any) -> bool:
    """Whether a global name says all: the code names it already, and it is the same wherever it is installed."""
    if isinstance(value, types.ModuleType):
        return is_library(value.__name__)
    if isinstance(value, types.BuiltinFunctionType):
        return True
    if isinstance(value, types.FunctionType):
        return is_library(module_of(value)) and not hasattr(value, "__wrapped__") and not value.__closure__
    return isinstance(value, type) and is_library(value.__module__)


def _read(name: str, module: types.ModuleType, reads: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """What a function reads of a module of the user's own, by dotted name."""
    found: dict[str, Any] = {}
    for path in reads:
        value: Any = module
        dotted = name
        for attribute in path:
            if not isinstance(value, types.ModuleType) or is_library(value.__name__):
                break
            value, dotted = getattr(value, attribute, None), f"{dotted}.{attribute}"
        found[dotted] = value
    return dict(sorted(found.items()))


def _imported(function: types.FunctionType) -> dict[str, Any]:
    """What a function imports of the user's own while it runs, and so what may be imported a little earlier."""
    found: dict[str, Any] = {}
    package = str(function.__globals__.get("__package__") or "")
    for name, level, taken in imports_of(function.__code__):
        module = _own_module(name, level, package)
        for attribute in taken if module is not None else ():
            if attribute != "*":
                found[attribute] = getattr(module, attribute, None)
        if module is not None and not (set(taken) - {"*"}):
            found[module.__name__] = module
    return found


def _own_module(name: str, level: int, package: str) -> types.ModuleType | None:
    """A module of the user's own; `None` if it is a library, or cannot be imported."""
    if level:
        name = f"{package.rsplit('.', level - 1)[0] if level > 1 else package}{'.' if name else ''}{name}"
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
        place = set(PurePath(str(spec and spec.origin)).parts)
        if spec is None or is_library(top) or {"site-packages", "dist-packages"} & place:
            return None
        return importlib.import_module(name)
    except Exception:  # as it will fail when the function runs, if it comes to that
        return None


def _together(habits: Habits, used: Mapping[str, Any], namespace: Mapping[str, Any]) -> Habits:
    """The habits with what the functions beside it change: a global list may be filled by one and read by another."""
    changed, waiting, seen = set(habits.changed), list(used.values()), set()
    while waiting:
        function = waiting.pop()
        if isinstance(function, types.FunctionType) and function.__globals__ is namespace and id(function) not in seen:
            seen.add(id(function))
            found = effects_of(function)
            changed |= {name for name in found.changed if name.partition(".")[0] not in found.parameters}
            waiting += [namespace.get(name) for name in globals_of(function.__code__)]
    return replace(habits, changed=changed)


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an instance, from its dict and its slots, but for those that are computed."""
    found: dict[str, Any] = {}
    for cls in reversed(type(value).__mro__):
        slots = vars(cls).get("__slots__", ())
        for slot in [slots] if isinstance(slots, str) else slots:
            name = f"_{cls.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if name not in ("__dict__", "__weakref__") and not name.startswith("__pydantic") and hasattr(value, name):
                found[name] = getattr(value, name)
    found |= getattr(value, "__dict__", {})
    found |= getattr(value, "__pydantic_private__", None) or {}
    found |= getattr(value, "__pydantic_extra__", None) or {}
    return {
        name: item
        for name, item in found.items()
        if name != "__wrapped__"
        and not isinstance(inspect.getattr_static(type(value), name, None), functools.cached_property)
    }


# LMs

_OF_EVERY_LM = frozenset(
    [
        *("provider", "kwargs", "cache", "num_retries", "callbacks", "history"),
        *LM_INTERNALS,
    ]
)
"""Attributes that are described by themselves, or do not count."""

_NOT_ASKED = frozenset(
    [
        *("timeout", "request_timeout", "num_retries", "max_retries", "callbacks", "cache", "rollout_id"),
        *("metadata", "prompt_cache_key", "safety_identifier", "user"),
    ]
)
"""Arguments of an LM that do not change what it answers."""

_ADDRESSES = ("api_base", "base_url")

_WHO_ASKS = re.compile(
    r"(?:^|_)(?:auth|credentials?|organization|profile|session)(?:_|$)|token_provider|headers?$|cookie|passw|secret",
    re.IGNORECASE,
)


def _is_asked(name: str, value: Any) -> bool:
    """Whether an argument of an LM belongs to what it is asked for; texts and tables may be credentials."""
    if name in _NOT_ASKED or (name in _ADDRESSES and _is_here(value)):
        return False
    is_number = value is None or isinstance(value, bool | int | float)
    return is_number or not (is_secret_name(name) or _WHO_ASKS.search(name))


def _asked(name: str, value: Any) -> Any:
    """An argument of an LM; an address without its password."""
    if name not in _ADDRESSES or not isinstance(value, str):
        return value
    address = urlsplit(value)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}"


def _is_here(address: Any) -> bool:
    """Whether it is a server of this machine, which is started anew for each run, and then under another port."""
    host = urlsplit(address).hostname or "" if isinstance(address, str) else ""
    return host in ("localhost", "::1") or host.startswith("127.")


# Values


def _atom(value: Any) -> Plain:
    """A value without parts; `None` if it has some."""
    cls = type(value)  # `isinstance` would ask the object, which may answer anything
    if issubclass(cls, enum.Enum):
        return None
    if issubclass(cls, bool | str):
        return value if cls is bool else str(value)
    if issubclass(cls, int):
        return int(value)
    if issubclass(cls, float):
        return float(value) if value - value == 0 else {"float": repr(float(value))}
    return None


_TEXTS = frozenset(
    [
        *("Decimal", "Fraction", "UUID", "date", "datetime", "time", "timedelta", "timezone", "ZoneInfo"),
        *("complex", "range", "slice", "ellipsis"),
    ]
)
"""Classes of Python whose `repr` says all."""


def _data(value: Any) -> Plain:
    """Values whose content is known by other means than attributes; `None` if there are none."""
    cls = type(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": digest(bytes(value).hex())}
    if isinstance(value, re.Pattern):
        return {"pattern": str(value.pattern), "flags": value.flags}
    if cls.__name__ in _TEXTS and is_library(cls.__module__):
        return {cls.__name__: repr(value)}
    if hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array(value)
    if cls.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        return {"class": _name(cls), "content": digest(str(value.to_dict()))}
    if get_origin(value) is not None or isinstance(value, types.UnionType):
        return {"type": _type_name(value)}
    return None


def _array(value: Any) -> Plain:
    import numpy as np

    array = np.asarray(value)
    content = array.tolist() if array.dtype == object else np.ascontiguousarray(array).tobytes().hex()
    return {"array": str(array.dtype), "shape": list(array.shape), "content": digest(_text_of(content))}


def _text_of(value: Any) -> str:
    """A text without addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _type(value: Any) -> Plain:
    return {"type": _name(type(value))}


def _name(cls: type) -> str:
    """A class by name; of the user's own without its module, which is another one where a script is imported."""
    own = _local_name(cls.__qualname__)
    return f"{cls.__module__}.{own}" if is_library(cls.__module__) and cls.__module__ != "builtins" else own


def _local_name(name: str) -> str:
    return name.rpartition("<locals>.")[2]


def _type_name(annotation: Any) -> str:
    """A type as text, without the modules of classes."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return _local_name(annotation.__qualname__)
    if arguments := get_args(annotation):
        origin = get_origin(annotation)
        names = [_type_name(item) if not isinstance(item, str | int | bytes) else repr(item) for item in arguments]
        return f"{_type_name(origin)}[{', '.join(names)}]"
    return _text_of(annotation)


def _schema(annotation: Any) -> Plain:
    """What a model's or another class's fields are, as DSPy shows them to an LM; nothing for plain types."""
    if isinstance(annotation, type) and annotation.__module__ == "builtins":
        return ""
    try:
        return digest(TypeAdapter(annotation).json_schema())[:16]
    except Exception:  # no schema, e.g. of a class that pydantic does not know: the name has to do
        return ""


# Descriptions that people can read

_LONGEST = 200
_LARGEST = 4000
MARKS = ("class", "function", "instructions", "partial", "method")
"""Keys of descriptions of objects; tables that hold none of them are data."""


def _shown(plain: Plain) -> Plain:
    """The description without credentials, long texts and large tables as hashes."""
    return _short(plain)[0]


def _short(plain: Plain) -> tuple[Plain, bool]:
    """The same, and whether it is data only, and no object of which single settings should be seen."""
    if isinstance(plain, str):
        text = redact(plain)  # before it is cut, so that no part of a credential is left
        if len(plain) > _LONGEST:
            text = f"{text[:40]}... ({len(plain)} characters, {digest(plain)[:16]})"
        return text, True
    if not isinstance(plain, dict | list):
        return plain, True
    if len(plain) > _LONGEST and not any(mark in plain for mark in MARKS):
        return {"entries": len(plain), "content": digest(plain)[:16]}, True
    found = {key: _short(item) for key, item in (plain.items() if isinstance(plain, dict) else enumerate(plain))}
    is_data = all(data for _, data in found.values()) and not any(mark in plain for mark in MARKS)
    shown: Plain = {key: item for key, (item, _) in found.items()}
    shown = shown if isinstance(plain, dict) else list(shown.values())
    if is_data and len(canonical(shown)) > _LARGEST:
        return {"entries": len(plain), "content": digest(plain)[:16]}, True
    return shown, is_data
