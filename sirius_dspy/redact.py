"""Keeps API keys out of everything that is written down: error texts quote them, and libraries live long."""

from __future__ import annotations

import os
import re

_KEY_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|gho|glpat|AIza|AKIA)[-_]?[A-Za-z0-9_\-]{16,}|(?<=[Bb]earer )[A-Za-z0-9._\-]{8,}"
)
_KEY_NAMES = re.compile(r"(?:^|_)(?:API_?KEY|TOKEN|SECRET|PASSWORD|ACCESS_KEY)$", re.IGNORECASE)
_HIDDEN = "[redacted]"


def is_secret_name(name: str) -> bool:
    """Whether a setting or variable of this name holds a credential."""
    return bool(_KEY_NAMES.search(name))


def redact(text: str, *secrets: str | None) -> str:
    """Replace what looks like a key, the given secrets, and the values of the process's own key variables."""
    known = [value for name, value in os.environ.items() if is_secret_name(name)]
    for secret in {*known, *(secret for secret in secrets if secret)}:
        if len(secret) >= 8:  # shorter ones would take ordinary words with them
            text = text.replace(secret, _HIDDEN)
    return _KEY_SHAPES.sub(_HIDDEN, text)
