"""Names a program's class, or a function that builds it, as `module:name`.

Importing runs code, so the name must come from the user and never from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy

from sirius_dspy.errors import CheckpointError
from sirius_dspy.imports import FAILURES, import_at

Build = Callable[[], dspy.Module]
"""A program's class, or a function that builds it, that takes no arguments."""


def path_of(build: Any) -> str:
    """Return the name of a class or function, such as `reviews:Reviews`."""
    return f"{build.__module__}:{build.__qualname__}"


def importable_path(build: Build) -> str:
    """Return the name of a class or function that another process can import.

    Raises:
        CheckpointError: It was defined in a script, in a notebook or inside a function, or has no name.
    """
    path = f"{getattr(build, '__module__', None)}:{getattr(build, '__qualname__', None)}"
    if path.startswith("__main__:"):
        raise CheckpointError(
            f"{path!r} was defined in a script or notebook, which no other process can import. Move it into a module, "
            "import it from there and compile or save the program again."
        )
    if not callable(build) or build_at(path) is not build:
        raise CheckpointError(
            f"{build!r} cannot be imported as {path!r}. Pass a class or a function at the top level of a module."
        )
    return path


def build_at(path: str) -> Build:
    """Import a program's class, or a function that builds it, by a name from the user.

    Args:
        path: `module:name`, or `file.py:name`.

    Raises:
        CheckpointError: The name does not exist.
    """
    if ":" not in path:
        raise CheckpointError(f"{path!r} is not the name of a program. Write 'module:name', such as 'reviews:Reviews'.")
    try:
        build: Build = import_at(path)
    except FAILURES as error:
        raise CheckpointError(
            f"{path!r} cannot be imported: {error}. Name the program's class, or a function that builds it, as "
            "'module:name' or 'file.py:name'."
        ) from error
    return build
