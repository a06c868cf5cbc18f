"""The code of Python functions without what does not matter, and the names that they use.

The syntax tree of the source is used where that exists and is that of the running code. Otherwise (`exec`, a file that
was edited since) the instructions of the compiled code stand for it, which depend on the version of Python.
"""

from __future__ import annotations

import ast
import copy
import dis
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_UNREAD = frozenset(["ctx", "kind", "type_comment"])
"""Fields of syntax trees that follow from the others or do nothing."""

_OURS = ("dspy", "sirius_dspy")
"""Libraries by name, as they may be installed from a working copy."""


@lru_cache(maxsize=1024)
def is_library(module: str) -> bool:
    """Return whether a module is part of Python or of an installed package, so that its name stands for its code."""
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    if top in _OURS or top in sys.stdlib_module_names:
        return True
    return is_installed(getattr(sys.modules.get(module), "__file__", None) or "")


def is_installed(file: str) -> bool:
    """Return whether a file belongs to an installed package."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def cells_of(function: FunctionType) -> dict[str, CellType]:
    """Return the variables that a function closes over."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def module_code(module: ModuleType) -> str:
    """Return the code of a whole module of the user; its name where it has no source."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError, ValueError):
        return module.__name__
    return outline(_WithoutDocstrings().visit(tree))


def module_of(function: FunctionType) -> str:
    """Return the module whose code a function runs; `functools.wraps` writes another one into `__module__`."""
    return str(function.__globals__.get("__name__", ""))


def code_of(code: CodeType) -> str:
    """Return the code of a function as one text: comments, formatting and docstrings do not count."""
    node = node_of(code)
    return _instructions(code) if node is None else outline(_WithoutDocstrings().visit(copy.deepcopy(node)))


def outline(node: Any) -> str:
    """Return a syntax tree as text that is the same in every version of Python.

    `ast.unparse` quotes nested f-strings differently since Python 3.12, and `ast.dump` names fields that versions add.
    """
    if isinstance(node, list):
        return f"[{' '.join(map(outline, node))}]"
    if not isinstance(node, ast.AST):
        return _constant(node)
    fields = [(name, item) for name, item in ast.iter_fields(node) if name not in _UNREAD and item not in (None, [])]
    return f"({type(node).__name__}{''.join(f' {name}={outline(item)}' for name, item in fields)})"


def node_of(code: CodeType) -> FunctionNode | None:
    """Return the syntax tree of a function; `None` where its source is missing or is not what runs."""
    try:
        text = "".join(inspect.findsource(code)[0])
    except (OSError, TypeError, IndexError, SyntaxError):
        return None
    parsed = _parse(text)
    if parsed is None or not any(_is_same(code, other) for other in parsed.codes.get(_place(code), ())):
        return None
    nodes = [node for node in parsed.functions if _can_be(node, code)]
    return min(nodes, key=_extent, default=None)


@dataclass(frozen=True)
class _Parsed:
    functions: tuple[FunctionNode, ...]
    codes: Mapping[tuple[str, int], list[CodeType]]


@lru_cache(maxsize=64)
def _parse(text: str) -> _Parsed | None:
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
    """Return whether a text still compiles to the code that runs."""
    same = (code.co_code, code.co_names, code.co_varnames) == (other.co_code, other.co_names, other.co_varnames)
    return same and _constants(code) == _constants(other)


def _constants(code: CodeType) -> list[str]:
    return [item.co_name if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]


def _constant(value: Any) -> str:
    """Return a constant as text; the order of a set changes from process to process."""
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
    """Return whether all instructions come from this expression: one line may have several lambdas."""
    start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    places = [place for place in code.co_positions() if None not in place and place[2:] != (0, 0)]
    return bool(places) and all(start <= (line, column) and (last, stop) <= end for line, last, column, stop in places)


def _extent(node: FunctionNode) -> tuple[int, int]:
    return (node.end_lineno or 0) - node.lineno, (node.end_col_offset or 0) - node.col_offset


class _WithoutDocstrings(ast.NodeTransformer):
    """Removes the docstrings of functions. Those of classes stay: a signature's docstring is its instructions."""

    def _strip(self, node: Any) -> Any:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = _strip  # noqa: N815  # the names that `ast` calls
    visit_AsyncFunctionDef = _strip  # noqa: N815


def _instructions(code: CodeType) -> str:
    """Return the instructions without places, docstring and padding."""
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


def imports_of(code: CodeType) -> list[tuple[str, int, tuple[str, ...]]]:
    """Return what a function imports while it runs: module, level of a relative import, and the imported names."""
    imports = []
    for part in _all_codes(code):
        instructions = list(dis.get_instructions(part))
        for number, item in enumerate(instructions):
            if item.opname == "IMPORT_NAME":
                level, names = (instructions[number - back].argval for back in (2, 1))
                imports.append((str(item.argval), int(level or 0), tuple(names or ())))
    return imports


def globals_of(code: CodeType) -> dict[str, set[tuple[str, ...]]]:
    """Map each global name that a function reads to the paths of attributes read; `()` where it is used as a whole."""
    reads: dict[str, set[tuple[str, ...]]] = {}
    for part in _all_codes(code):
        name, path = "", []
        for item in [*dis.get_instructions(part), None]:
            if item is not None and name and item.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                path.append(str(item.argval))
                continue
            if name:
                reads.setdefault(name, set()).add(tuple(path))
            is_global = item is not None and item.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
            name, path = (str(item.argval) if item is not None and is_global else ""), []
    return reads
