"""MkDocs hook: reference entries that cannot go stale.

`<!-- members: package -->` becomes an entry for each public name of the package that the page does not list by itself.
`<!-- modules: package -->` becomes a table of its modules, with the first sentence of each. So every new name appears
in the reference automatically.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Set
from pathlib import Path
from types import ModuleType
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page."""
    listed = set(re.findall(r"^::: ([\w.]+)$", markdown, re.MULTILINE))
    with_members = re.sub(
        r"<!-- members: ([\w.]+) -->", lambda match: "\n\n".join(_entries(match[1], listed)), markdown
    )
    return re.sub(r"<!-- modules: ([\w.]+) -->", lambda match: "\n".join(_rows(match[1])), with_members)


def _entries(path: str, listed: Set[str]) -> Iterator[str]:
    module = importlib.import_module(path)
    for name in getattr(module, "__all__", None) or _list_defined(module):
        if f"{path}.{name}" not in listed and not isinstance(getattr(module, name), ModuleType):
            yield f"::: {_address(module, name)}"


def _address(module: ModuleType, name: str) -> str:
    """The public path, or the one of the definition if a module of the same name hides the function from griffe."""
    path = f"{module.__name__}.{name}"
    is_hidden = hasattr(module, "__path__") and importlib.util.find_spec(path) is not None
    return f"{getattr(module, name).__module__}.{name}" if is_hidden else path


def _list_defined(module: ModuleType) -> list[str]:
    """The public classes and functions that a module without `__all__` defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and callable(value) and not name.startswith("_")
    ]


def _rows(package: str) -> Iterator[str]:
    yield "| module | content |"
    yield "| --- | --- |"
    folder = Path(str(importlib.import_module(package).__file__)).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        if path != folder / "__init__.py":
            name = path.parent.name if path.stem == "__init__" else path.stem
            yield f"| `{package}.{name}` | {_summary(path)} |"


def _summary(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("|", r"\|")
