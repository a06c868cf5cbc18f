"""Copies of programs."""

from __future__ import annotations

import copy
import functools
import sys
import sysconfig
import types
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import dspy
import pydantic

from sirius_dspy.program.class_cache import cached_by_class
from sirius_dspy.program.predictors import lms_of, predictor_names, set_lms
from sirius_dspy.program.structure import CODE, CONTAINERS, PLAIN, children, walk


def copy_program(program: dspy.Module, lms: Mapping[str, Any] | None = None) -> dspy.Module:
    """Copy a program so that nothing done to the copy changes the original; only LMs are shared.

    Modules, containers and the user's own objects are copied at any depth. Two places that hold the same object hold
    the same copy, and bound methods, partials and closures over parts of the program are bound to the copy. LMs are
    shared, so that weights are not loaded twice, and so is what cannot be copied, such as locks and connections. An
    object of an installed package that cannot be copied is shared whole, since half a connection pool is worse than
    none.

    Args:
        program: Left as it is.
        lms: Predictor name to the LM that the copy gets in place of the program's.

    Raises:
        UnpreparedProgramError: `lms` names a predictor that the program does not have.
    """
    copied = cast(dspy.Module, _Copier(program).copy(program))
    originals = lms_of(program)
    set_lms(copied, {name: originals[name] for name in predictor_names(copied)})
    set_lms(copied, lms or {})
    return copied


class _Copier:
    """One copy under way."""

    def __init__(self, program: dspy.Module) -> None:
        parts = [value for _, value in walk(program, whole=True)]
        self._parts = {id(part) for part in parts}
        self._memo: dict[int, Any] = {id(part): part for part in parts if isinstance(part, dspy.BaseLM)}
        self._kept = parts
        """Keeps originals alive, since a memo by `id` would otherwise mistake a new object for one that is gone."""

    def copy(self, value: Any) -> Any:
        """The copy of an object: always the same one for the same object."""
        if type(value) in PLAIN:
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        self._kept.append(value)
        copied = self._make_copy(value)
        self._memo[id(value)] = copied
        return copied

    def _make_copy(self, value: Any) -> Any:
        kind = type(value)
        if kind is types.FunctionType:
            return self._copy_function(value)
        if kind is _CachedFunction:
            return self._copy_cached(value)
        if isinstance(value, (dspy.BaseLM, *CODE)):
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
            return self._fill(value, [])
        if kind is dict:
            return self._fill(value, {})
        if isinstance(value, (dspy.Module, pydantic.BaseModel, *CONTAINERS)) or not _is_installed(cast(Any, kind)):
            return self._copy_own(value)
        if kind.__module__.partition(".")[0] == "dspy" or self._holds_parts(value):
            return self._rebuild(value)
        return self._deepcopy(value, otherwise=lambda: value)

    def _fill(self, value: Any, new: Any) -> Any:
        self._memo[id(value)] = new  # before its items, which may lead back to it
        if isinstance(value, list):
            new.extend(map(self.copy, value))
        else:
            new.update((self.copy(key), self.copy(item)) for key, item in value.items())
        return new

    def _copy_own(self, value: Any) -> Any:
        """An object of the user, or a container: rebuilt part by part, unless its class says how to copy it."""
        says_how = hasattr(type(value), "__deepcopy__") and not isinstance(value, pydantic.BaseModel)
        return self._deepcopy(value, otherwise=lambda: self._rebuild(value)) if says_how else self._rebuild(value)

    def _deepcopy(self, value: Any, *, otherwise: Any) -> Any:
        """What `copy.deepcopy` makes of it; a failed try leaves nothing in the memo."""
        tried: MutableMapping[int, Any] = ChainMap({}, self._memo)
        try:
            copied = copy.deepcopy(value, cast("dict[int, Any]", tried))
        except Exception:  # whatever a class raises that cannot be copied
            return otherwise()
        self._memo.update(cast("ChainMap[int, Any]", tried).maps[0])
        return copied

    def _rebuild(self, value: Any) -> Any:
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

    def _copy_cached(self, function: Any) -> Any:
        """A function of `functools.lru_cache` that is bound to the program gets a new one, with an empty cache."""
        if not self._is_bound(function):
            return function
        wrapped = self.copy(function.__wrapped__)
        made = self._memo.get(id(function))  # its own copy already, if it calls itself
        return functools.lru_cache(**function.cache_parameters())(wrapped) if made is None else made

    def _copy_function(self, function: types.FunctionType) -> types.FunctionType:
        """Functions are shared, but for those that hold parts of the program: they hold the copies of these."""
        if not self._is_bound(function):
            return function
        cells = [self._copy_cell(cell) for cell in function.__closure__ or ()]
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, tuple(cells))
        self._memo[id(function)] = new
        functools.update_wrapper(new, function)
        vars(new).pop("__wrapped__")
        vars(new).update((name, self._copy_held(item)) for name, item in vars(function).items())
        new.__defaults__ = function.__defaults__ and tuple(map(self._copy_held, function.__defaults__))
        new.__kwdefaults__ = {name: self._copy_held(item) for name, item in (function.__kwdefaults__ or {}).items()}
        for cell, copied in zip(function.__closure__ or (), cells, strict=True):
            if copied is not cell:
                copied.cell_contents = self.copy(cell.cell_contents)
        return new

    def _copy_held(self, value: Any) -> Any:
        return self.copy(value) if self._is_bound(value) else value

    def _copy_cell(self, cell: types.CellType) -> types.CellType:
        """The cell itself, unless it holds a part of the program: functions may count in it together."""
        if not self._is_bound(cell):
            return cell
        self._kept.append(cell)
        made: types.CellType = self._memo.setdefault(id(cell), types.CellType())
        return made

    def _is_bound(self, value: Any) -> bool:
        """Whether a value is a part of the program, or a function or container that holds one."""
        queue, seen = [value], set()
        while queue:
            current = queue.pop()
            if type(current) in PLAIN or isinstance(current, dspy.BaseLM) or id(current) in seen:
                continue
            if id(current) in self._parts:
                return True
            seen.add(id(current))
            queue += _held_by(current)
        return False

    def _holds_parts(self, value: Any) -> bool:
        """Whether a module or an LM is somewhere in an object of an installed package."""
        queue, seen = [value], {id(value)}
        while queue:
            for _, child in children(queue.pop(), whole=True):
                if isinstance(child, dspy.Module | dspy.BaseLM):
                    return True
                if type(child) not in PLAIN and not isinstance(child, CODE) and id(child) not in seen:
                    seen.add(id(child))
                    queue.append(child)
        return False


_CachedFunction = type(functools.lru_cache(len))


def _held_by(value: Any) -> Iterable[Any]:
    """What a function, a cell or a container holds."""
    if isinstance(value, types.CellType):
        try:
            return (value.cell_contents,)
        except ValueError:  # a name that has no value yet
            return ()
    if isinstance(value, types.MethodType):
        return (value.__self__,)
    if isinstance(value, types.FunctionType):
        places = (value.__closure__, value.__defaults__, (value.__kwdefaults__ or {}).values(), vars(value).values())
        return chain.from_iterable(place or () for place in places)
    if isinstance(value, _CachedFunction):
        return (value.__wrapped__,)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, dict):
        return (*value, *value.values())
    return value if isinstance(value, CONTAINERS) and isinstance(value, Iterable) else ()


@cached_by_class
def _is_installed(cls: type) -> bool:
    """Whether a class comes with Python or with an installed package, rather than from the user's own code."""
    module: types.ModuleType | None = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None:  # built in, or typed into a notebook
        return cls.__module__ != "__main__" and cls.__module__ in sys.stdlib_module_names
    return any(Path(file).resolve().is_relative_to(place) for place in _install_folders())


@functools.lru_cache(maxsize=1)
def _install_folders() -> tuple[Path, ...]:
    paths: Mapping[str, str] = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
