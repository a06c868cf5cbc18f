"""What the tests of identities share: where two descriptions differ, and code whose source can be found."""

from __future__ import annotations

from typing import Any

from sirius_dspy.identity.describe import describe
from sirius_dspy.identity.parts import find_changes


def differing(before: Any, now: Any) -> list[str]:
    return [str(change) for change in find_changes(describe(before), describe(now), "it")]


def function(source: str, name: str = "metric", **names: Any) -> Any:
    """A function of a file of its own, so that its source can be found."""
    space: dict[str, Any] = {"__name__": "user_code", **names}
    filename = f"<user code {hash(source)}>"
    import linecache

    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), space)
    return space[name]


def closed(value):
    return lambda example, prediction, trace=None: value


def graded(example, prediction, trace=None, *, weight=1.0, scale=(1,)):
    return weight * scale[0]


class Holder:
    BONUS = 0

    def __init__(self, value: Any = 1.0) -> None:
        self._value = value

    def __call__(self, example, prediction, trace=None):
        return self._value
