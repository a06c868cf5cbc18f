"""Makes descriptions that people can read: without credentials, with hashes for long texts and large tables."""

from __future__ import annotations

from sirius_dspy.identity.values import Plain
from sirius_dspy.redact import redact
from sirius_dspy.trajectory import canonical, digest

_LONGEST = 200
"""Maximum number of characters of a text, and of entries of a table."""

_LARGEST = 4000
"""Maximum number of characters of data as JSON."""

MARKS = ("class", "function", "instructions", "partial", "method")
"""Keys of descriptions of objects; a table without any of them is data."""


def shorten(plain: Plain) -> Plain:
    """Return a description without credentials, with hashes for long texts and large tables."""
    return _shorten(plain)[0]


def _shorten(plain: Plain) -> tuple[Plain, bool]:
    """Return the same, and whether it is data alone; the settings of an object stay visible one by one."""
    if isinstance(plain, str):
        return _shorten_text(plain), True
    if not isinstance(plain, dict | list):
        return plain, True
    is_object = any(mark in plain for mark in MARKS)
    if len(plain) > _LONGEST and not is_object:
        return _hash_entries(plain), True
    entries = plain.items() if isinstance(plain, dict) else enumerate(plain)
    parts = {key: _shorten(item) for key, item in entries}
    is_data = not is_object and all(part_is_data for _, part_is_data in parts.values())
    short = {key: part for key, (part, _) in parts.items()}
    shortened: Plain = short if isinstance(plain, dict) else list(short.values())
    if is_data and len(canonical(shortened)) > _LARGEST:
        return _hash_entries(plain), True
    return shortened, is_data


def _shorten_text(plain: str) -> str:
    text = redact(plain)  # before it is cut, so that no part of a credential is left
    return text if len(plain) <= _LONGEST else f"{text[:40]}... ({len(plain)} characters, {digest(plain)[:16]})"


def _hash_entries(plain: Plain) -> Plain:
    return {"entries": len(plain), "content": digest(plain)[:16]}
