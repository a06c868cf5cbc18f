"""Exits of one run: what would end the whole process ends only that run.

Code that an LM wrote, and tools that run it, call `exit()` like anything else. That says nothing about other runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """Enter around code of the user: an exit, or a cancellation that nobody outside asked for, is an ordinary error.

    Raises:
        RuntimeError: The code left in one of these ways; the traceback says where.
    """
    try:
        yield
    except (SystemExit, asyncio.CancelledError) as left:
        if isinstance(left, asyncio.CancelledError) and _is_being_cancelled():
            raise
        said = f"{type(left).__name__}: {left}".removesuffix(": ")
        raise RuntimeError(f"The run was left by {said}").with_traceback(left.__traceback__) from None


def _is_being_cancelled() -> bool:
    """Whether somebody has asked the task around this code to end."""
    task = None
    with suppress(RuntimeError):  # no event loop
        task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
