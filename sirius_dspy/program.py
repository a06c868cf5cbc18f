"""A program as an object: its predictors by name, what identifies it, whether it can be run, and a copy of it.

DSPy finds predictors in attributes, and in lists and dicts that are attributes. What lies deeper it neither saves nor
gives an LM, so a compile could not train it either: `hidden_predictors` finds those, to be named in an error.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import sysconfig
import types
from collections import ChainMap, deque
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

import dspy
import pydantic
from dspy.adapters.base import Adapter

from sirius_dspy.graph.agents import AgentGraph
from sirius_dspy.trajectory import digest


def predictor_names(program: dspy.Module) -> dict[str, dspy.Predict]:
    """The program's predictors by dotted name, as `named_predictors` gives them."""
    return dict(program.named_predictors())


def signature_of(predictor: dspy.Predict) -> type[dspy.Signature]:
    """A predictor's signature; DSPy types it as optional, though a built predictor always has one."""
    return cast("type[dspy.Signature]", predictor.signature)


def program_fingerprint(program: dspy.Module) -> str:
    """Identify a program by what its agents are asked and who reads whom in its graphs, not by weights or demos."""
    signatures = {
        name: [
            predictor.signature.instructions,
            *(field_text(name, info) for name, info in predictor.signature.fields.items()),
        ]
        for name, predictor in program.named_predictors()
    }
    modules = program.named_sub_modules()
    graphs = {name: _wirings(module) for name, module in modules if isinstance(module, AgentGraph)}
    return digest({"class": type(program).__qualname__, "signatures": signatures, "graphs": graphs})


def _wirings(graph: AgentGraph) -> dict[str, list[dict[str, str]]]:
    return {name: [dict(wiring.reads), dict(wiring.writes)] for name, wiring in graph.wirings.items()}


def is_called(program: dspy.Module) -> bool:
    """Whether `program(...)` runs it: it has a `forward`, of its class or set on the object, or a `__call__`."""
    own_call = type(program).__call__ is not dspy.Module.__call__
    return own_call or hasattr(type(program), "forward") or "forward" in vars(program)


def is_awaited(program: dspy.Module) -> bool:
    """Whether `program.acall(...)` runs it: it has an `aforward`, of its class or set on the object, or an `acall`."""
    own_call = type(program).acall is not dspy.Module.acall
    return own_call or hasattr(type(program), "aforward") or "aforward" in vars(program)


# Looking inside

_OF_MODULES = frozenset({"history", "callbacks"})
_OF_PREDICTORS = frozenset({"lm", "demos", "traces", "train", "config", "fields", "signature"})
_PLAIN = frozenset({str, int, float, complex, bool, bytes, type(None), type(...), types.ModuleType, range, slice})
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, functools.cached_property, property)
_ITEMS = (list, tuple, deque)
_CONTAINERS = (*_ITEMS, set, frozenset, dict, types.SimpleNamespace)


def hidden_predictors(program: dspy.Module) -> list[str]:
    """Where a program keeps predictors that DSPy does not find, such as `teams[0][1]`.

    These are in containers within containers, in sets, in plain objects, or on the class. A module that is compiled
    already hides its own on purpose. What only a function's closure holds is not looked for: it may be the judge of a
    reward function.
    """
    known = {id(predictor) for predictor in predictor_names(program).values()}
    found = _walk(program, whole=False)
    return [path for path, value in found if isinstance(value, dspy.Predict) and id(value) not in known]


def _walk(program: dspy.Module, *, whole: bool) -> Iterator[tuple[str, Any]]:
    """Every object of a program's structure, with the path to it: modules, containers, plain objects, LMs.

    Args:
        program: Where to start.
        whole: Look at the objects of bound methods and partials, too, and into modules that are compiled.
    """
    queue: deque[tuple[str, Any]] = deque([("", program)])
    seen = {id(program)}
    while queue:
        path, value = queue.popleft()
        yield path or "self", value
        if not whole and value is not program and isinstance(value, dspy.Module) and value._compiled:
            continue
        for step, child in _children(value, whole=whole):
            if type(child) not in _PLAIN and not isinstance(child, _CODE) and id(child) not in seen:
                seen.add(id(child))
                queue.append(((path + step).removeprefix("."), child))


def _children(value: Any, *, whole: bool) -> Iterator[tuple[str, Any]]:
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
        yield from ((f"[{key!r}]", item) for key, item in value.items() if type(item) not in _PLAIN)
        yield from ((f"[{key!r}]", key) for key in value if type(key) not in _PLAIN)
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
    """What an object holds, read without calling any code of its class."""
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
            yield from ((f".{name}", value) for name, value in values if isinstance(value, (dspy.Module, *_CONTAINERS)))


# Copying


def copy_program(program: dspy.Module) -> dspy.Module:
    """A copy that shares nothing with the program that could change it, but for its LMs.

    Modules, containers and the user's own objects are copied at any depth, two places that hold one object hold one
    object again, and bound methods, partials and closures over parts of the program are bound to the copy. Shared are
    LMs, so that weights are not loaded twice, and what cannot be copied, such as locks and connections. An object of an
    installed package that cannot be copied is shared whole, since half a connection pool is worse than none.
    """
    copied = _Copier(program).copy(program)
    originals = predictor_names(program)
    for name, predictor in predictor_names(copied).items():
        predictor.lm = originals[name].lm
    return cast(dspy.Module, copied)


class _Copier:
    """One copy under way."""

    def __init__(self, program: dspy.Module) -> None:
        parts = [value for _, value in _walk(program, whole=True)]
        self._parts = {id(part) for part in parts}
        self._memo: dict[int, Any] = {id(part): part for part in parts if isinstance(part, dspy.BaseLM)}
        self._kept = parts
        """Keeps originals alive, since a memo by `id` would otherwise mistake a new object for one that is gone."""

    def copy(self, value: Any) -> Any:
        """The copy of an object: always the same one for the same object."""
        if type(value) in _PLAIN:
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        self._kept.append(value)
        copied = self._copied(value)
        self._memo[id(value)] = copied
        return copied

    def _copied(self, value: Any) -> Any:
        kind = type(value)
        if kind is types.FunctionType:
            return self._function(value)
        if isinstance(value, (dspy.BaseLM, *_CODE)):
            return value
        if kind is types.MethodType:
            return types.MethodType(value.__func__, self.copy(value.__self__))
        if kind is functools.partial:
            return functools.partial(
                self.copy(value.func), *map(self.copy, value.args), **self.copy(dict(value.keywords))
            )
        if kind is tuple:
            items = tuple(map(self.copy, value))
            return self._memo.get(id(value), items)  # its own copy already, if it leads back to itself
        if kind is list:
            return self._filled(value, [])
        if kind is dict:
            return self._filled(value, {})
        if isinstance(value, (dspy.Module, pydantic.BaseModel, *_CONTAINERS)) or not _is_installed(cast(Any, kind)):
            return self._own(value)
        if kind.__module__.partition(".")[0] == "dspy" or self._holds_parts(value):
            return self._rebuilt(value)
        return self._whole(value, otherwise=lambda: value)

    def _filled(self, value: Any, new: Any) -> Any:
        self._memo[id(value)] = new  # before its items, which may lead back to it
        if isinstance(value, list):
            new.extend(map(self.copy, value))
        else:
            new.update((self.copy(key), self.copy(item)) for key, item in value.items())
        return new

    def _own(self, value: Any) -> Any:
        """An object of the user, or a container: rebuilt part by part, unless its class says how to copy it."""
        says_how = hasattr(type(value), "__deepcopy__") and not isinstance(value, pydantic.BaseModel)
        return self._whole(value, otherwise=lambda: self._rebuilt(value)) if says_how else self._rebuilt(value)

    def _whole(self, value: Any, *, otherwise: Any) -> Any:
        """What `copy.deepcopy` makes of it; a failed try leaves nothing in the memo."""
        tried: MutableMapping[int, Any] = ChainMap({}, self._memo)
        try:
            copied = copy.deepcopy(value, cast("dict[int, Any]", tried))
        except Exception:  # whatever a class raises that cannot be copied
            return otherwise()
        self._memo.update(cast("ChainMap[int, Any]", tried).maps[0])
        return copied

    def _rebuilt(self, value: Any) -> Any:
        """A new object with copies of the parts, by the protocol of `pickle`; the object itself if it has none."""
        try:
            reduced = value.__reduce_ex__(4)
            if isinstance(reduced, str):
                return value
            make, arguments, *rest = reduced
            new = make(*map(self.copy, arguments))
            if id(value) in self._memo:  # the arguments led back to it
                return self._memo[id(value)]
            self._memo[id(value)] = new
            self._refill(new, *(*rest, None, None, None)[:3])
        except Exception:  # locks, generators, connections: each class has its own error
            self._memo[id(value)] = value
            return value
        return new

    def _refill(self, new: Any, state: Any, items: Any, pairs: Any) -> None:
        self._set_state(new, self.copy(state))
        for item in items or ():
            new.append(self.copy(item))
        for key, item in pairs or ():
            new[self.copy(key)] = self.copy(item)

    @staticmethod
    def _set_state(new: Any, state: Any) -> None:
        if state is None:
            return
        if hasattr(new, "__setstate__"):
            new.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes:
            new.__dict__.update(attributes)
        for name, item in (slots or {}).items():
            object.__setattr__(new, name, item)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """Functions are shared, but for those whose closure holds parts of the program: they get a new closure."""
        if not self._binds(function, set()):
            return function
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        self._memo[id(function)] = new
        functools.update_wrapper(new, function)
        vars(new).pop("__wrapped__")
        vars(new).update(vars(function))
        new.__kwdefaults__ = function.__kwdefaults__
        for cell, copied in zip(function.__closure__ or (), cells, strict=True):
            if copied is not cell:
                copied.cell_contents = self.copy(cell.cell_contents)
        return new

    def _cell(self, cell: types.CellType) -> types.CellType:
        """The cell itself, unless it holds a part of the program: functions may count in it together."""
        if not self._is_bound(cell, set()):
            return cell
        self._kept.append(cell)
        made: types.CellType = self._memo.setdefault(id(cell), types.CellType())
        return made

    def _binds(self, function: types.FunctionType, seen: set[int]) -> bool:
        if id(function) in seen:
            return False
        seen.add(id(function))
        return any(self._is_bound(cell, seen) for cell in function.__closure__ or ())

    def _is_bound(self, cell: types.CellType, seen: set[int]) -> bool:
        try:
            held = cell.cell_contents
        except ValueError:  # a name that has no value yet
            return False
        if isinstance(held, types.FunctionType):
            return self._binds(held, seen)
        if isinstance(held, types.MethodType):
            held = held.__self__
        return id(held) in self._parts and not isinstance(held, dspy.BaseLM)

    def _holds_parts(self, value: Any) -> bool:
        """Whether a module or an LM is somewhere in an object of an installed package."""
        queue, seen = [value], {id(value)}
        while queue:
            for _, child in _children(queue.pop(), whole=True):
                if isinstance(child, dspy.Module | dspy.BaseLM):
                    return True
                if type(child) not in _PLAIN and not isinstance(child, _CODE) and id(child) not in seen:
                    seen.add(id(child))
                    queue.append(child)
        return False


@functools.lru_cache(maxsize=1024)
def _is_installed(cls: type) -> bool:
    """Whether a class comes with Python or with an installed package, rather than from the user's own code."""
    module: types.ModuleType | None = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None:  # built in, or typed into a notebook
        return cls.__module__ != "__main__" and cls.__module__ in sys.stdlib_module_names
    return any(Path(file).resolve().is_relative_to(place) for place in _places())


@functools.lru_cache(maxsize=1)
def _places() -> tuple[Path, ...]:
    paths: Mapping[str, str] = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@functools.lru_cache(maxsize=1024)
def signature_digest(signature: type[dspy.Signature]) -> str:
    """Identify what a signature asks for: instructions, and of each field its name, type, description and side."""
    fields = [field_text(name, info) for name, info in signature.fields.items()]
    return digest([signature.instructions, fields])


def field_text(name: str, info: Any) -> list[str]:
    """What tells one field of a signature from another."""
    extra = info.json_schema_extra or {}
    return [name, str(info.annotation), str(extra.get("desc", "")), str(extra.get("__dspy_field_type", ""))]
