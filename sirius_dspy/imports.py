"""Import what a user names: `module`, `module:name`, or `folder/file.py:name`.

What is imported by such a name is code. The name has to come from the user, never from a file that somebody else wrote.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FAILURES = (ImportError, AttributeError, ValueError)
"""What `import_at` raises if there is nothing of that name."""


def import_at(path: str) -> Any:
    """Return a module, or an object in it.

    Args:
        path: `module`, `module:name`, or either with the path of a `.py` file instead of the module.

    Raises:
        ImportError: There is no such module or file.
        AttributeError: The module has no such name.
        ValueError: The path is not written like that.
    """
    place, _, name = path.rpartition(":") if ".py:" in path else path.partition(":")
    found: Any = import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    return found


def import_file(file: Path) -> ModuleType:
    """Import a file under its own name, with its folder on the path, so that it finds what lies beside it.

    Raises:
        ImportError: There is no such file, or another module has its name.
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
