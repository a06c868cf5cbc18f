"""What a Python function does, whatever its file looks like: its code without comments, and the names that it uses.

    code_of         one text for equal code: comments, formatting and docstrings do not count
    globals_of      the global names that a function reads, and what it reads of them
    imports_of      what a function imports while it runs
    Habits          what a function changes and calls while it runs, which tells state from settings
    effects_of      the same, with what the functions that it calls do to what it passes to them

The source text is used where it can be found and is that of the running code; else (`exec`, a file that was edited
since) the instructions of the compiled code stand for it, which depend on the version of Python.
"""

from __future__ import annotations

import ast
import copy
import dis
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_OURS = ("dspy", "sirius_dspy")
"""Libraries by name, as they may be installed from a working copy."""


@lru_cache(maxsize=1024)
def is_library(module: str) -> bool:
    """Whether a module is Python's own or an installed package, whose code is known by its name."""
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    if top in _OURS or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def module_code(module: ModuleType) -> str:
    """The code of a whole module of the user's own; its name where it has no source."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError, ValueError):
        return module.__name__
    return ast.unparse(_WithoutDocstrings().visit(tree))


def module_of(function: FunctionType) -> str:
    """The module whose code a function runs; `functools.wraps` writes another one into `__module__`."""
    return str(function.__globals__.get("__name__", ""))


# The code


def code_of(code: CodeType) -> str:
    """The code of a function as one text."""
    node = node_of(code)
    return _instructions(code) if node is None else ast.unparse(_WithoutDocstrings().visit(copy.deepcopy(node)))


def node_of(code: CodeType) -> FunctionNode | None:
    """The syntax tree of a function; `None` where its source is not there or is not what runs."""
    try:
        text = "".join(inspect.findsource(code)[0])
    except (OSError, TypeError, IndexError, SyntaxError):
        return None
    parsed = _parsed(text)
    if parsed is None or not any(_is_same(code, found) for found in parsed.codes.get(_place(code), ())):
        return None
    found = [node for node in parsed.functions if _can_be(node, code)]
    return min(found, key=_extent, default=None)


@dataclass(frozen=True)
class _Parsed:
    functions: tuple[FunctionNode, ...]
    codes: Mapping[tuple[str, int], list[CodeType]]


@lru_cache(maxsize=64)
def _parsed(text: str) -> _Parsed | None:
    try:
        tree = ast.parse(text)
        compiled = compile(text, "<source>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return None
    codes: dict[tuple[str, int], list[CodeType]] = {}
    for code in _all_codes(compiled):
        codes.setdefault(_place(code), []).append(code)
    return _Parsed(tuple(node for node in ast.walk(tree) if isinstance(node, FunctionNode)), codes)


def _all_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_codes(constant)


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def _is_same(code: CodeType, other: CodeType) -> bool:
    """Whether a text still compiles to the code that runs."""
    same = (code.co_code, code.co_names, code.co_varnames) == (other.co_code, other.co_names, other.co_varnames)
    return same and _constants(code) == _constants(other)


def _constants(code: CodeType) -> list[str]:
    return [item.co_name if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]


def _constant(value: Any) -> str:
    """A constant as text; the order of a set changes from process to process."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(_constant, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    return repr(value)


def _can_be(node: FunctionNode, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno and _holds(node.body, code)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.name, first) == _place(code)


def _holds(body: ast.expr, code: CodeType) -> bool:
    """Whether all instructions were made of this expression: one line may have several lambdas."""
    start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    places = [place for place in code.co_positions() if None not in place and place[2:] != (0, 0)]
    return bool(places) and all(start <= (line, column) and (last, stop) <= end for line, last, column, stop in places)


def _extent(node: FunctionNode) -> tuple[int, int]:
    return (node.end_lineno or 0) - node.lineno, (node.end_col_offset or 0) - node.col_offset


class _WithoutDocstrings(ast.NodeTransformer):
    """Takes docstrings from functions. Those of classes stay: the one of a signature is its instructions."""

    def _strip(self, node: Any) -> Any:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = _strip  # noqa: N815  # the names that `ast` calls
    visit_AsyncFunctionDef = _strip  # noqa: N815


def _instructions(code: CodeType) -> str:
    """The instructions without places, docstring and padding."""
    lines = []
    for item in dis.get_instructions(code):
        if item.opname in ("NOP", "RESUME", "CACHE"):
            continue
        if isinstance(item.argval, CodeType):
            lines.append(f"{item.opname} {_instructions(item.argval)}")
        elif item.opcode in dis.hasjrel or item.opcode in dis.hasjabs:
            lines.append(f"{item.opname} {item.argval - item.offset}")
        else:
            lines.append(f"{item.opname} {_constant(item.argval)}")
    return "\n".join(lines)


# The names


def imports_of(code: CodeType) -> list[tuple[str, int, tuple[str, ...]]]:
    """What a function itself imports: module, level of a relative import, and the names that it takes from there."""
    found = []
    for one in _all_codes(code):
        instructions = list(dis.get_instructions(one))
        for number, item in enumerate(instructions):
            if item.opname == "IMPORT_NAME":
                level, names = (instructions[number - back].argval for back in (2, 1))
                found.append((str(item.argval), int(level or 0), tuple(names or ())))
    return found


def globals_of(code: CodeType) -> dict[str, set[tuple[str, ...]]]:
    """Global name to the attributes read of it, as paths; `()` where it is used as a whole."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for one in _all_codes(code):
        name, path = "", []
        for item in [*dis.get_instructions(one), None]:
            if item is not None and name and item.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                path.append(str(item.argval))
                continue
            if name:
                found.setdefault(name, set()).add(tuple(path))
            is_global = item is not None and item.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
            name, path = (str(item.argval) if item is not None and is_global else ""), []
    return found


# What it does

_CHANGES = frozenset(
    [
        *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "move_to_end", "pop"),
        *("popitem", "popleft", "put", "put_nowait", "remove", "setdefault", "subtract", "update"),
    ]
)
"""Methods that change what a container holds; one that is sorted in place holds the same, and may be a setting."""

_CHANGERS = frozenset(["heappop", "heappush", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right"])
"""Functions of Python that change what their first argument holds."""

_ELEMENTS = frozenset(["get", "items", "keys", "setdefault", "values"])
"""Methods of a container that give its elements."""

_LOOPS = frozenset(["enumerate", "iter", "list", "reversed", "sorted", "tuple", "zip"])
"""Functions that give the elements of their arguments, to be looped over."""

_OWNERS = frozenset({"self", "cls"})

ANY = "*"
"""In a name: every element of a container."""


@dataclass(frozen=True)
class Passed:
    """A name that a function passes to another one."""

    function: str
    """The name of the other one; `self.name` for a method."""
    argument: int | str
    """Its position, or its keyword."""
    name: str


@dataclass
class Habits:
    """What a function does with what it did not make itself.

    Names are dotted, such as `x`, `x.attribute` and `x.rows.*.count`; the owner of a method is always `self`. A local
    variable that only stands for something else is called by the name of that.

    Attributes:
        changed: Names that it assigns, or whose content it changes.
        given: Attributes that it sets to one of its parameters and nothing else, as a setter does.
        calls: Name to the methods that it calls there.
        passed: Names that it passes to functions.
        parameters: Its own, in their order.
    """

    changed: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    calls: dict[str, set[str]] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)
    parameters: tuple[str, ...] = ()

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(code: CodeType) -> Habits:
        """Those of one function with the functions inside it; nothing where there is no source."""
        habits, node = Habits(), node_of(code)
        if node is None:
            return habits
        habits.parameters = _parameters(node)
        names = _Names(node)
        for inner in ast.walk(node):
            habits._note(inner, names)
        return habits

    def under(self, name: str) -> set[str]:
        """What is changed of a variable, relative to it."""
        return {rest for owner, _, rest in (item.partition(".") for item in self.changed) if owner == name and rest}

    def called(self, name: str) -> set[str]:
        """The methods that are called on a variable and its parts, relative to it."""
        return {
            ".".join(filter(None, [rest, method]))
            for owner, _, rest, methods in ((*item.partition("."), methods) for item, methods in self.calls.items())
            if owner == name
            for method in methods
        }

    def on(self, passed: Passed, *, is_method: bool = False) -> Habits:
        """What it does with something that is passed to it, by the name that this has outside."""
        place = passed.argument
        if isinstance(place, int):
            place += is_method
            place = self.parameters[place] if place < len(self.parameters) else ""
        parameter = "self" if place in _OWNERS else place
        changed = {passed.name} if parameter in self.changed else set()
        changed |= {f"{passed.name}.{rest}" for rest in self.under(parameter)}
        calls: dict[str, set[str]] = {}
        for name, methods in self.calls.items():
            owner, dot, rest = name.partition(".")
            if owner == parameter:
                calls.setdefault(f"{passed.name}{dot}{rest}", set()).update(methods)
        return Habits({_container(name) for name in changed}, calls=calls)

    def _note(self, node: ast.AST, names: _Names) -> None:
        if isinstance(node, ast.Call):
            self._note_call(node, names)
        for target in _targets(node):
            value = getattr(node, "value", None)
            is_given = isinstance(value, ast.Name) and value.id in self.parameters and isinstance(node, ast.Assign)
            is_setter = is_given and isinstance(target, ast.Attribute)
            for name in names.of(target):
                (self.given if is_setter else self.changed).add(_container(name))

    def _note_call(self, call: ast.Call, names: _Names) -> None:
        function = call.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if called in ("setattr", "delattr", "__setattr__", "__delattr__") and len(call.args) > 1:
            attribute = getattr(call.args[1], "value", None)
            if isinstance(attribute, str):
                self.changed |= {f"{name}.{attribute}" for name in names.of(call.args[0], whole=True)}
        elif called in _CHANGERS and call.args:
            self.changed |= {_container(name) for name in names.of(call.args[0], whole=True)}
        for name in names.of(function, whole=True):  # a local name may stand for a method
            owner, _, method = name.rpartition(".")
            if owner:
                self.calls.setdefault(owner, set()).add(method)
            if owner and method in _CHANGES:
                self.changed.add(_container(owner))
        self._note_passed(call, names)

    def _note_passed(self, call: ast.Call, names: _Names) -> None:
        functions = names.of(call.func, whole=True)
        given: list[tuple[int | str, ast.expr]] = list(enumerate(call.args))
        given += [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg]
        for place, argument in given:
            for name in names.of(argument, whole=True):
                self.passed += [Passed(function, place, name) for function in sorted(functions)]


class _Names:
    """What the expressions of a function are called.

    Args:
        node: The function.
    """

    def __init__(self, node: FunctionNode) -> None:
        self.made = _made_here(node)
        bound: dict[str, list[set[str] | None]] = {}
        for name, value, is_loop in _bindings(node):
            bound.setdefault(name, []).append(_paths(value, is_loop=is_loop))
        # One that is also bound to something new may be that when it is changed.
        self.aliases = {
            name: set().union(*(found or set() for found in every))
            for name, every in bound.items()
            if name in self.made and all(every)
        }

    def of(self, node: ast.expr, *, whole: bool = False) -> set[str]:
        """The names of an expression that is no local variable; several where it may be one of them.

        Args:
            node: The expression.
            whole: Also of a variable itself, which an assignment binds anew.
        """
        return {name for path in _paths(node) or () for name in self._resolved(path, frozenset(), whole or "." in path)}

    def _resolved(self, path: str, seen: frozenset[str], whole: bool) -> Iterator[str]:
        root, dot, rest = path.partition(".")
        if root not in self.made:
            yield path
        elif whole and root not in seen:  # a local list is nobody's state
            for origin in self.aliases.get(root, ()):
                yield from self._resolved(f"{origin}{dot}{rest}", seen | {root}, whole)


def _container(name: str) -> str:
    """What holds the elements of which a name ends with one."""
    while name.endswith(f".{ANY}"):
        name = name.removesuffix(f".{ANY}")
    return name


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns or deletes."""
    if isinstance(node, ast.Assign | ast.Delete):
        yield from (item for target in node.targets for item in _unpacked(target))
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.AsyncFor):
        yield from _unpacked(node.target)
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield from (item for each in node.items if each.optional_vars for item in _unpacked(each.optional_vars))


def _unpacked(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        yield from (item for element in target.elts for item in _unpacked(element))
    else:
        yield target.value if isinstance(target, ast.Starred) else target


def _bindings(node: FunctionNode) -> Iterator[tuple[str, ast.expr | None, bool]]:
    """Local variable, what it is bound to if that can be said, and whether to the elements of that."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.For | ast.AsyncFor | ast.comprehension):
            yield from ((item.id, inner.iter, True) for item in _unpacked(inner.target) if isinstance(item, ast.Name))
        elif isinstance(inner, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            pairs = [pair for target in targets for pair in _pairs(target, inner.value)]
            yield from ((item.id, value, False) for item, value in pairs if isinstance(item, ast.Name))
        else:
            yield from ((item.id, None, False) for item in _targets(inner) if isinstance(item, ast.Name))


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """What an assignment binds to what, as far as that stands there."""
    targets = target.elts if isinstance(target, ast.Tuple | ast.List) else []
    elements = value.elts if isinstance(value, ast.Tuple | ast.List) else []
    if targets and elements and not any(isinstance(item, ast.Starred) for item in [*targets, *elements]):
        yield from zip(targets, elements, strict=False)
    elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
        yield from ((item, None) for item in _unpacked(target))
    else:
        yield target, value


def _paths(node: ast.expr | None, *, is_loop: bool = False) -> set[str] | None:
    """The names that an expression may have; `None` if it may be something new."""
    if is_loop and isinstance(node, ast.Call) and getattr(node.func, "id", "") in _LOOPS:
        parts = [_paths(argument, is_loop=True) for argument in node.args]
        return set().union(*(part or set() for part in parts)) or None
    if isinstance(node, ast.IfExp | ast.BoolOp):
        choices = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
        every = [_paths(choice, is_loop=is_loop) for choice in choices]
        return set().union(*(part or set() for part in every)) if all(every) else None
    path = None if node is None else _path(node)
    if path is None:
        return None
    return {f"{path}.{ANY}" if is_loop and not path.endswith(f".{ANY}") else path}


def _path(node: ast.expr) -> str | None:
    """The dotted name of an expression; `None` if it has none."""
    if isinstance(node, ast.Name):
        return "self" if node.id in _OWNERS else node.id
    if isinstance(node, ast.Call):
        return _path_of_call(node)
    if not isinstance(node, ast.Attribute | ast.Subscript) or (owner := _path(node.value)) is None:
        return None
    if isinstance(node, ast.Attribute):
        return owner if node.attr == "__class__" else f"{owner}.{node.attr}"
    key = getattr(node.slice, "value", None)
    if owner.endswith(".__dict__"):
        return owner.removesuffix("__dict__") + (key if isinstance(key, str) else ANY)
    return f"{owner}.{ANY}"


def _path_of_call(call: ast.Call) -> str | None:
    """Of what gives a part of its argument, or of its owner."""
    function, arguments = call.func, call.args
    if isinstance(function, ast.Attribute):
        owner = _path(function.value)
        return f"{owner}.{ANY}" if owner is not None and function.attr in _ELEMENTS else None
    name = getattr(function, "id", "")
    if name == "super" and not arguments:
        return "self"
    if name not in ("type", "vars", "getattr") or not arguments or (owner := _path(arguments[0])) is None:
        return None
    if name == "getattr":
        attribute = getattr(arguments[1], "value", None) if len(arguments) > 1 else None
        return f"{owner}.{attribute}" if isinstance(attribute, str) else None
    return f"{owner}.__dict__" if name == "vars" else owner


def _parameters(node: FunctionNode) -> tuple[str, ...]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return tuple(item.arg for item in every if item is not None)


def _made_here(node: FunctionNode) -> set[str]:
    """Local variables: assigned here, and not said to be others'. Parameters may be defaults, which stay."""
    others = {name for item in ast.walk(node) if isinstance(item, ast.Global | ast.Nonlocal) for name in item.names}
    stored = {item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
    return stored - others


_FURTHEST = 4
"""Functions through which a name is followed."""


def effects_of(function: FunctionType) -> Habits:
    """The habits of a function, with what functions do to the names that it passes to them."""
    return _effects(function, _FURTHEST, {})


def _effects(function: FunctionType, further: int, known: dict[tuple[FunctionType, int], Habits]) -> Habits:
    own = Habits.of(function.__code__)
    if not further or not own.passed:
        return own
    if (function, further) in known:
        return known[function, further]
    changed, calls = set(own.changed), {name: set(methods) for name, methods in own.calls.items()}
    for passed in own.passed:
        other = _function_at(function, passed.function)
        if other is None:
            continue
        found = _effects(other, further - 1, known).on(passed)
        changed |= found.changed
        for name, methods in found.calls.items():
            calls.setdefault(name, set()).update(methods)
    known[function, further] = replace(own, changed=changed, calls=calls)
    return known[function, further]


def _function_at(function: FunctionType, name: str) -> FunctionType | None:
    """A function of the user's own that another one calls by this name."""
    root, *attributes = name.split(".")
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    try:
        value = cells[root].cell_contents if root in cells else function.__globals__.get(root)
    except ValueError:  # not set yet
        return None
    for attribute in attributes:
        value = getattr(value, attribute, None) if isinstance(value, ModuleType) else None
    value = inspect.unwrap(value) if isinstance(value, FunctionType) else value
    return value if isinstance(value, FunctionType) and not is_library(module_of(value)) else None
