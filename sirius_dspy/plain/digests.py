"""Content hashes of plain values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def canonical(value: Any) -> str:
    """Return the one JSON text of a plain value, whatever the order of its keys."""
    return _encode(value)


def digest(value: Any) -> str:
    """Return the content hash of a plain value: the first 32 hex digits of SHA-256 over its canonical JSON."""
    return text_digest(canonical(value))


def text_digest(text: str) -> str:
    """Return the first 32 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
