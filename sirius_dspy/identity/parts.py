"""Whether two compiles are the same: where their descriptions differ, and what the user accepts of it.

An identity is a dict of parts (`program`, `lms`, `metric`, `settings`, ...), each as `describe` gives it. A difference
has a dotted path that begins with its part, which is also how a user accepts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sirius_dspy.errors import RunMismatchError
from sirius_dspy.identity.describe import MARKS
from sirius_dspy.trajectory import canonical

Plain = Any
"""What JSON can hold."""

FORMAT = 3
"""Of the identity in `run.json`; a compile with another one cannot be compared, so it is not continued."""

PARTS = frozenset(
    [
        *("program", "lms", "demos", "metric", "settings", "agents", "frozen", "adapter", "adapter_settings"),
        *("collect", "augmenter", "curator", "trainer", "gate", "teachers", "trainset", "valset"),
    ]
)
"""The parts of the identity of a compile."""

_LISTED = 10
"""Differences that a message lists."""


@dataclass(frozen=True)
class Change:
    """One thing that differs between two compiles."""

    path: str
    """Dotted, beginning with the part of the identity, e.g. `settings.threshold`."""
    before: Plain
    now: Plain
    is_code: bool = False

    def __str__(self) -> str:
        if self.is_code:
            return f"the code of `{self.path}`"
        return f"`{self.path}`: {_brief(self.before)} -> {_brief(self.now)}"

    def is_in(self, paths: Iterable[str]) -> bool:
        """Whether one of these paths names it or something that it belongs to."""
        return any(self.path == path or self.path.startswith((f"{path}.", f"{path}[")) for path in paths)


def part_of(path: str) -> str:
    """The part that a path begins with."""
    return path.partition(".")[0].partition("[")[0]


_ABSENT = object()


def changes(before: Plain, now: Plain, path: str = "") -> list[Change]:
    """Where two descriptions differ."""
    if _is_equal(before, now):
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        if (old := _label(before)) != (new := _label(now)):
            return [Change(path, old, new)]
        return [
            change
            for key in sorted({*before, *now})
            for change in _changes_at(key, before.get(key, _ABSENT), now.get(key, _ABSENT), path)
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [change for number, (old, new) in pairs for change in changes(old, new, f"{path}[{number}]")]
    return [Change(path, before, now)]


def _changes_at(key: str, before: Plain, now: Plain, path: str) -> list[Change]:
    """The changes of one part; levels that only this module knows are no part of a path."""
    if path and key == "code" and isinstance(before, str) and isinstance(now, str):
        return [] if before == now else [Change(path, before, now, is_code=True)]
    if path and key in ("class", "uses", "partial"):
        return changes(before, now, path)
    separator = "." if path and key[:1] != "[" else ""
    return changes(before, now, f"{path}{separator}{key}")


def _is_equal(before: Plain, now: Plain) -> bool:
    """Equality of plain values in which `True` is no number."""
    if isinstance(before, bool) or isinstance(now, bool):
        return before is now
    if isinstance(before, dict | list) or isinstance(now, dict | list):
        return _ABSENT not in (before, now) and canonical(before) == canonical(now)
    return bool(before == now)


def _label(described: Mapping[str, Plain]) -> str:
    """What kind of thing it is, if that alone says what changed."""
    cls = described.get("class")
    if isinstance(cls, dict):
        return str(cls.get("name") or cls.get("same as"))
    return str(cls or described.get("function") or next((mark for mark in MARKS if mark in described), ""))


def _brief(plain: Plain) -> str:
    if plain is _ABSENT:
        return "nothing"
    if isinstance(plain, dict) and _label(plain):
        return _label(plain)
    text = repr(plain) if not isinstance(plain, dict | list) else canonical(plain)
    return text if len(text) <= 60 else f"{text[:57]}..."


def accepted_changes(
    before: Mapping[str, Plain], now: Mapping[str, Plain], place: str, accepted: Sequence[str]
) -> list[Change]:
    """Compare a compile with the one that a folder belongs to.

    Args:
        before: The identity in the folder.
        now: That of this call.
        place: The folder, for the message.
        accepted: Paths that may differ.

    Returns:
        What differs, and is accepted.

    Raises:
        RunMismatchError: Something else differs; the message lists it.
    """
    if before.get("format") != now.get("format"):
        raise RunMismatchError(
            f"{place!r} was begun by another version of sirius_dspy, which noted other things about a compile, so this "
            "one cannot be compared with it. Choose another `run_dir`."
        )
    found = changes(before, now)
    refused = [change for change in found if not change.is_in(accepted)]
    if refused:
        names = tuple(dict.fromkeys(change.path for change in refused))
        listed = "".join(f"\n  - {change}" for change in refused[:_LISTED])
        more = f"\n  - and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
        raise RunMismatchError(
            f"{place!r} belongs to another compile. What differs:{listed}{more}\nCall `compile` with the same "
            "settings, data and program to go on from there, or choose another `run_dir`. If what was done so far is "
            f"right with the change, too, say so: `SiriuS(accept_changes={names[:_LISTED]!r})`."
        )
    return found
