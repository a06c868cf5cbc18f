"""Dotted names for the expressions of a function.

Names look like `x`, `x.attribute` and `x.rows.*.count`; the owner of a method is always `self`. A local variable that
only stands for something else has the name of that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from sirius_dspy.identity.source_code import FunctionNode

_ELEMENTS = frozenset(["get", "items", "keys", "setdefault", "values"])
"""Methods of a container that return its elements."""

_LOOPS = frozenset(["enumerate", "iter", "list", "reversed", "sorted", "tuple", "zip"])
"""Functions that return the elements of their arguments, to be looped over."""

OWNERS = frozenset({"self", "cls"})
"""Parameters that stand for the owner of a method."""

ANY = "*"
"""In a name: every element of a container."""


class Names:
    """Names the expressions of one function.

    Args:
        node: The function.
    """

    def __init__(self, node: FunctionNode) -> None:
        self._locals = _local_names(node)
        bound: dict[str, list[set[str] | None]] = {}
        for name, value, is_loop in _bindings(node):
            bound.setdefault(name, []).append(_paths(value, is_loop=is_loop))
        # A variable that is also bound to something new may be that when it is changed.
        self._aliases = {
            name: set().union(*(paths or set() for paths in every))
            for name, every in bound.items()
            if name in self._locals and all(every)
        }

    def of(self, node: ast.expr, *, whole: bool = False) -> set[str]:
        """Return the names of an expression: none for a local variable, several where it may be any of them.

        Args:
            node: The expression.
            whole: Resolve a bare local variable, too. Leave it out for targets, since an assignment binds it anew.
        """
        return {name for path in _paths(node) or () for name in self._resolve(path, frozenset(), whole or "." in path)}

    def _resolve(self, path: str, seen: frozenset[str], whole: bool) -> Iterator[str]:
        root, dot, rest = path.partition(".")
        if root not in self._locals:
            yield path
        elif whole and root not in seen:  # a local list is nobody's state
            for origin in self._aliases.get(root, ()):
                yield from self._resolve(f"{origin}{dot}{rest}", seen | {root}, whole)


def container_of(name: str) -> str:
    """Return the name of the container that holds an element; a name that is no element stays as it is."""
    while name.endswith(f".{ANY}"):
        name = name.removesuffix(f".{ANY}")
    return name


def find_targets(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what a statement assigns or deletes."""
    if isinstance(node, ast.Assign | ast.Delete):
        yield from (item for target in node.targets for item in _unpack(target))
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.AsyncFor):
        yield from _unpack(node.target)
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield from (item for part in node.items if part.optional_vars for item in _unpack(part.optional_vars))


def _unpack(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        yield from (item for element in target.elts for item in _unpack(element))
    else:
        yield target.value if isinstance(target, ast.Starred) else target


def _bindings(node: FunctionNode) -> Iterator[tuple[str, ast.expr | None, bool]]:
    """Yield each local variable with the expression it is bound to, if there is one, and whether to its elements."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.For | ast.AsyncFor | ast.comprehension):
            yield from ((item.id, inner.iter, True) for item in _unpack(inner.target) if isinstance(item, ast.Name))
        elif isinstance(inner, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            pairs = [pair for target in targets for pair in _pairs(target, inner.value)]
            yield from ((item.id, value, False) for item, value in pairs if isinstance(item, ast.Name))
        else:
            yield from ((item.id, None, False) for item in find_targets(inner) if isinstance(item, ast.Name))


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield what an assignment binds to what; `None` where the code does not say."""
    targets = target.elts if isinstance(target, ast.Tuple | ast.List) else []
    elements = value.elts if isinstance(value, ast.Tuple | ast.List) else []
    if targets and elements and not any(isinstance(item, ast.Starred) for item in [*targets, *elements]):
        yield from zip(targets, elements, strict=False)
    elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
        yield from ((item, None) for item in _unpack(target))
    else:
        yield target, value


def _paths(node: ast.expr | None, *, is_loop: bool = False) -> set[str] | None:
    """Return the names that an expression may have; `None` if it may be something new."""
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
    """Return the dotted name of an expression; `None` if it has none."""
    if isinstance(node, ast.Name):
        return "self" if node.id in OWNERS else node.id
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
    """Return the name of a call that returns a part of its argument or of its owner; `None` for any other call."""
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


def parameters_of(node: FunctionNode) -> tuple[str, ...]:
    """Return the names of the parameters of a function, in their order."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return tuple(item.arg for item in every if item is not None)


def _local_names(node: FunctionNode) -> set[str]:
    """Return the local variables but for the parameters, which may hold defaults, and those outlast the call."""
    others = {name for item in ast.walk(node) if isinstance(item, ast.Global | ast.Nonlocal) for name in item.names}
    stored = {item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
    return stored - others
