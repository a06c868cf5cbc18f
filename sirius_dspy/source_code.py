"""What a Python function does, whatever its file looks like: its code without comments, and the names that it uses.

    code_of         one text for equal code: comments, formatting and docstrings do not count
    globals_of      the global names that a function reads, and what it reads of them
    Habits          what a function changes and calls while it runs, which tells state from settings

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
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
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
        *("popitem", "popleft", "put", "put_nowait", "remove", "setdefault", "update"),
    ]
)
"""Methods that change a container."""

_OWNERS = frozenset({"self", "cls"})


@dataclass
class Habits:
    """What a function does with what it did not make itself.

    Names are `x` for variables and `x.attribute` for their attributes; the owner of a method is always `self`.

    Attributes:
        changed: Names that it assigns, or whose content it changes.
        given: Attributes that it sets to one of its parameters and nothing else, as a setter does.
        calls: Name to the methods that it calls there.
    """

    changed: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    calls: dict[str, set[str]] = field(default_factory=dict)

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(code: CodeType) -> Habits:
        """Those of one function with the functions inside it; nothing where there is no source."""
        habits, node = Habits(), node_of(code)
        if node is None:
            return habits
        made, parameters = _made_here(node), _parameters(node)
        for inner in ast.walk(node):
            habits._note(inner, made, parameters)
        return habits

    def _note(self, node: ast.AST, made: set[str], parameters: set[str]) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            self._note_call(node.func, made)
        for target in _targets(node):
            name = _name(target)
            if name is None or _root(name) in made:
                continue  # a local list is nobody's state
            value = getattr(node, "value", None)
            is_given = isinstance(target, ast.Attribute) and isinstance(value, ast.Name) and value.id in parameters
            (self.given if is_given and isinstance(node, ast.Assign) else self.changed).add(name)

    def _note_call(self, function: ast.Attribute, made: set[str]) -> None:
        name = _name(function.value)
        if name is None or _root(name) in made:
            return
        self.calls.setdefault(name, set()).add(function.attr)
        if function.attr in _CHANGES:
            self.changed.add(name)


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


def _name(node: ast.expr) -> str | None:
    """`x`, or `x.attribute`, however deep in it the expression goes."""
    path: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            path.append(node.attr)
        elif not isinstance(node, ast.Subscript):
            return None
        node = node.value
    root = "self" if node.id in _OWNERS else node.id
    return f"{root}.{path[-1]}" if path else root


def _root(name: str) -> str:
    return name.partition(".")[0]


def _parameters(node: FunctionNode) -> set[str]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {item.arg for item in every if item is not None}


def _made_here(node: FunctionNode) -> set[str]:
    """Local variables: assigned here, and not said to be others'. Parameters may be defaults, which stay."""
    others = {name for item in ast.walk(node) if isinstance(item, ast.Global | ast.Nonlocal) for name in item.names}
    stored = {item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
    return stored - others
