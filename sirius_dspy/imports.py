"""Imports objects by a name from the user: `module`, `module:name`, or `folder/file.py:name`.

Importing runs code, so the name must come from the user and never from a file that somebody else wrote.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FAILURES = (ImportError, AttributeError, ValueError)
"""The errors that `import_at` raises for a name that does not exist."""


def import_at(path: str) -> Any:
    """Import a module, or an object in a module.

    Args:
        path: `module`, `module:name`, or either with the path of a `.py` file instead of the module.

    Raises:
        ImportError: The module or file does not exist.
        AttributeError: The module has no such name.
        ValueError: The path has another form.
    """
    place, _, name = path.rpartition(":") if ".py:" in path else path.partition(":")
    target: Any = import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    for part in name.split(".") if name else ():
        target = getattr(target, part)
    return target


def import_file(file: Path) -> ModuleType:
    """Import a file by its stem, with its folder on `sys.path`, so that it can import its neighbors.

    Raises:
        ImportError: The file does not exist, or another module has its name.
    """
    if not file.is_file():
        raise ImportError(f"there is no file {str(file)!r}")
    folder = str(file.absolute().parent)
    if folder not in sys.path:  # last, so that no installed module is hidden
        sys.path.append(folder)
    module = importlib.import_module(file.stem)
    if Path(getattr(module, "__file__", None) or "").absolute() != file.absolute():
        raise ImportError(f"the name of {str(file)!r} belongs to another module, {module!r}; rename the file")
    return module
