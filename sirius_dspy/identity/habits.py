"""What a function changes and calls while it runs, which tells state from settings."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType

from sirius_dspy.identity.expressions import OWNERS, Names, container_of, find_targets, parameters_of
from sirius_dspy.identity.source_code import cells_of, is_library, module_of, node_of

_CHANGES = frozenset(
    [
        *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "move_to_end", "pop"),
        *("popitem", "popleft", "put", "put_nowait", "remove", "setdefault", "subtract", "update"),
    ]
)
"""Methods that change what a container holds. `sort` does not: a list that is sorted in place may be a setting."""

_CHANGERS = frozenset(["heappop", "heappush", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right"])
"""Functions of Python that change what their first argument holds."""


@dataclass(frozen=True)
class Passed:
    """A name that a function passes to another function."""

    function: str
    """The name of the other function; `self.name` for a method."""
    argument: int | str
    """Position or keyword of the argument."""
    name: str


@dataclass
class Habits:
    """What a function does with values that it did not make itself; for names, see `expressions`.

    Attributes:
        changed: Names that it assigns, or whose content it changes.
        given: Attributes that it sets to one of its parameters and to nothing else, as a setter does.
        calls: Name to the methods that it calls there.
        passed: Names that it passes to functions.
        parameters: The names of its parameters, in their order.
    """

    changed: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    calls: dict[str, set[str]] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)
    parameters: tuple[str, ...] = ()

    def copy(self) -> Habits:
        """Return a copy that more can be added to."""
        calls = {name: set(methods) for name, methods in self.calls.items()}
        return replace(self, changed=set(self.changed), calls=calls)

    def add(self, other: Habits) -> None:
        """Add what another function changes and calls."""
        self.changed |= other.changed
        for name, methods in other.calls.items():
            self.calls.setdefault(name, set()).update(methods)

    def changes_of(self, name: str) -> set[str]:
        """Return what is changed of a variable, relative to it."""
        return {rest for owner, _, rest in (item.partition(".") for item in self.changed) if owner == name and rest}

    def calls_on(self, name: str) -> set[str]:
        """Return the methods that are called on a variable and its parts, relative to it."""
        return {
            ".".join(filter(None, [rest, method]))
            for owner, _, rest, methods in ((*item.partition("."), methods) for item, methods in self.calls.items())
            if owner == name
            for method in methods
        }

    def apply_to(self, passed: Passed, *, is_method: bool = False) -> Habits:
        """Return what the function does with something that is passed to it, by the name that this has outside."""
        parameter = self._parameter_at(passed.argument, is_method)
        changed = {passed.name} if parameter in self.changed else set()
        changed |= {f"{passed.name}.{rest}" for rest in self.changes_of(parameter)}
        calls: dict[str, set[str]] = {}
        for name, methods in self.calls.items():
            owner, dot, rest = name.partition(".")
            if owner == parameter:
                calls.setdefault(f"{passed.name}{dot}{rest}", set()).update(methods)
        return Habits({container_of(name) for name in changed}, calls=calls)

    def _parameter_at(self, argument: int | str, is_method: bool) -> str:
        if isinstance(argument, int):
            place = argument + is_method
            argument = self.parameters[place] if place < len(self.parameters) else ""
        return "self" if argument in OWNERS else argument

    def note(self, node: ast.AST, names: Names) -> None:
        """Add what one node of the syntax tree changes and calls."""
        if isinstance(node, ast.Call):
            self._note_call(node, names)
        for target in find_targets(node):
            value = getattr(node, "value", None)
            is_given = isinstance(value, ast.Name) and value.id in self.parameters and isinstance(node, ast.Assign)
            is_setter = is_given and isinstance(target, ast.Attribute)
            for name in names.of(target):
                (self.given if is_setter else self.changed).add(container_of(name))

    def _note_call(self, call: ast.Call, names: Names) -> None:
        function = call.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if called in ("setattr", "delattr", "__setattr__", "__delattr__") and len(call.args) > 1:
            attribute = getattr(call.args[1], "value", None)
            if isinstance(attribute, str):
                self.changed |= {f"{name}.{attribute}" for name in names.of(call.args[0], whole=True)}
        elif called in _CHANGERS and call.args:
            self.changed |= {container_of(name) for name in names.of(call.args[0], whole=True)}
        for name in names.of(function, whole=True):  # a local name may stand for a method
            owner, _, method = name.rpartition(".")
            if owner:
                self.calls.setdefault(owner, set()).add(method)
            if owner and method in _CHANGES:
                self.changed.add(container_of(owner))
        self._note_passed(call, names)

    def _note_passed(self, call: ast.Call, names: Names) -> None:
        functions = names.of(call.func, whole=True)
        given: list[tuple[int | str, ast.expr]] = list(enumerate(call.args))
        given += [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg]
        for place, argument in given:
            for name in names.of(argument, whole=True):
                self.passed += [Passed(function, place, name) for function in sorted(functions)]


_FURTHEST = 4
"""Number of functions through which a name is followed."""


@lru_cache(maxsize=4096)
def habits_of(code: CodeType) -> Habits:
    """Return the habits of a function with the functions inside it; none where there is no source."""
    habits, node = Habits(), node_of(code)
    if node is None:
        return habits
    habits.parameters = parameters_of(node)
    names = Names(node)
    for inner in ast.walk(node):
        habits.note(inner, names)
    return habits


def effects_of(function: FunctionType) -> Habits:
    """Return the habits of a function, with what other functions do to the names that it passes to them."""
    return _effects(function, _FURTHEST, {})


def _effects(function: FunctionType, further: int, cache: dict[tuple[FunctionType, int], Habits]) -> Habits:
    habits = habits_of(function.__code__)
    if not further or not habits.passed:
        return habits
    if (function, further) in cache:
        return cache[function, further]
    effects = habits.copy()
    for passed in habits.passed:
        if (other := _function_at(function, passed.function)) is not None:
            effects.add(_effects(other, further - 1, cache).apply_to(passed))
    cache[function, further] = effects
    return effects


def _function_at(function: FunctionType, name: str) -> FunctionType | None:
    """Return the function of the user that another one calls by this name, if there is one."""
    root, *attributes = name.split(".")
    cells = cells_of(function)
    try:
        value = cells[root].cell_contents if root in cells else function.__globals__.get(root)
    except ValueError:  # not set yet
        return None
    for attribute in attributes:
        value = getattr(value, attribute, None) if isinstance(value, ModuleType) else None
    value = inspect.unwrap(value) if isinstance(value, FunctionType) else value
    return value if isinstance(value, FunctionType) and not is_library(module_of(value)) else None
