"""Compares two compiles: where their descriptions differ, and which differences the user accepts.

An identity is a dict of parts (`program`, `lms`, `metric`, `settings`, ...), each as `describe` gives it. A difference
has a dotted path that begins with its part, which is also how a user accepts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sirius_dspy.errors import RunMismatchError
from sirius_dspy.identity.shorten import MARKS
from sirius_dspy.identity.values import Plain
from sirius_dspy.trajectory import canonical

FORMAT = 3
"""Version of the identity in `run.json`; compiles of different versions cannot be compared."""

PARTS = frozenset(
    [
        *("program", "lms", "demos", "metric", "settings", "agents", "frozen", "adapter", "adapter_settings"),
        *("collect", "credit", "augmenter", "curator", "trainer", "gate", "teachers", "trainset", "valset"),
    ]
)
"""The parts of the identity of a compile."""

_LISTED = 10
"""Maximum number of differences that a message lists."""


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
        return f"`{self.path}`: {_shorten(self.before)} -> {_shorten(self.now)}"

    def is_in(self, paths: Iterable[str]) -> bool:
        """Return whether one of these paths names the change or something that it belongs to."""
        return any(self.path == path or self.path.startswith((f"{path}.", f"{path}[")) for path in paths)


def part_of(path: str) -> str:
    """Return the part that a path begins with."""
    return path.partition(".")[0].partition("[")[0]


_ABSENT = object()


def find_changes(before: Plain, now: Plain, path: str = "") -> list[Change]:
    """Return where two descriptions differ."""
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
        return [change for number, (old, new) in pairs for change in find_changes(old, new, f"{path}[{number}]")]
    return [Change(path, before, now)]


def _changes_at(key: str, before: Plain, now: Plain, path: str) -> list[Change]:
    """Return the changes of one part; levels without a meaning for the user are left out of the path."""
    if path and key == "code" and isinstance(before, str) and isinstance(now, str):
        return [] if before == now else [Change(path, before, now, is_code=True)]
    if path and key in ("class", "uses", "partial"):
        return find_changes(before, now, path)
    separator = "." if path and key[:1] != "[" else ""
    return find_changes(before, now, f"{path}{separator}{key}")


def _is_equal(before: Plain, now: Plain) -> bool:
    """Return whether plain values are equal; `True` does not equal 1."""
    if isinstance(before, bool) or isinstance(now, bool):
        return before is now
    if isinstance(before, dict | list) or isinstance(now, dict | list):
        return _ABSENT not in (before, now) and canonical(before) == canonical(now)
    return bool(before == now)


def _label(described: Mapping[str, Plain]) -> str:
    """Return what kind of thing is described, if it is an object."""
    cls = described.get("class")
    if isinstance(cls, dict):
        return str(cls.get("name") or cls.get("same as"))
    return str(cls or described.get("function") or next((mark for mark in MARKS if mark in described), ""))


def _shorten(plain: Plain) -> str:
    if plain is _ABSENT:
        return "nothing"
    if isinstance(plain, dict) and _label(plain):
        return _label(plain)
    text = repr(plain) if not isinstance(plain, dict | list) else canonical(plain)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_changes(
    before: Mapping[str, Plain], now: Mapping[str, Plain], place: str, accepted: Sequence[str]
) -> list[Change]:
    """Compare a compile with the one that a folder belongs to.

    Args:
        before: The identity in the folder.
        now: That of this call.
        place: The folder, for the message.
        accepted: Paths that may differ.

    Returns:
        The differences, all of them accepted.

    Raises:
        RunMismatchError: Something else differs, which the message lists; or another version wrote the folder.
    """
    if before.get("format") != now.get("format"):
        raise RunMismatchError(
            f"{place!r} was started by another version of sirius_dspy, which noted other things about a compile, so "
            "the two cannot be compared. Choose another `run_dir`."
        )
    changes = find_changes(before, now)
    refused = [change for change in changes if not change.is_in(accepted)]
    if refused:
        names = tuple(dict.fromkeys(change.path for change in refused))
        listed = "".join(f"\n  - {change}" for change in refused[:_LISTED])
        more = f"\n  - and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
        raise RunMismatchError(
            f"{place!r} belongs to another compile. These parts differ:{listed}{more}\nCall `compile` with the same "
            "settings, data and program to resume it, or choose another `run_dir`. If the results so far are still "
            f"right with the change, pass `SiriuS(accept_changes={names[:_LISTED]!r})`."
        )
    return changes
