"""MkDocs hook: reference entries that cannot go stale.

`<!-- members: package -->` becomes an entry for each public name of the package, `<!-- modules: package -->` a table of
its modules with the first sentence of each. So a new name is in the reference without anyone's doing.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page."""
    with_members = re.sub(r"<!-- members: ([\w.]+) -->", lambda match: "\n\n".join(_entries(match[1])), markdown)
    return re.sub(r"<!-- modules: ([\w.]+) -->", lambda match: "\n".join(_rows(match[1])), with_members)


def _entries(path: str) -> Iterator[str]:
    module = importlib.import_module(path)
    for name in getattr(module, "__all__", None) or _defined(module):
        yield f"::: {_address(module, name)}"


def _address(module: ModuleType, name: str) -> str:
    """The public path, unless a module of that name hides the function there for who reads source only."""
    path = f"{module.__name__}.{name}"
    is_hidden = hasattr(module, "__path__") and importlib.util.find_spec(path) is not None
    return f"{getattr(module, name).__module__}.{name}" if is_hidden else path


def _defined(module: ModuleType) -> list[str]:
    """The public classes and functions that a module without `__all__` defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and callable(value) and not name.startswith("_")
    ]


def _rows(package: str) -> Iterator[str]:
    yield "| module | what it is |"
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
