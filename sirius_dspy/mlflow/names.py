"""Converts names and values to ones that MLflow accepts, without credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sirius_dspy.files import hash_name
from sirius_dspy.redact import hide_keys

MAX_VALUE = 6000
"""Maximum length of a parameter value; MLflow truncates longer ones and warns."""


_PATH = re.compile(r"(?=.{1,100}\Z)[A-Za-z_]\w*(\.\w+)*(?<!\.[0-9a-f]{12})\Z", re.ASCII)
"""A path of attributes, which has no hyphens; the end must not look like that of a name with a hash."""


def clean(values: Mapping[str, Any]) -> dict[str, str]:
    """Convert values to strings, with keys that MLflow accepts and without credentials."""
    return {key_of(hide_keys(key)): hide_keys(str(value))[:MAX_VALUE] for key, value in values.items()}


def key_of(name: str) -> str:
    """Convert a name to a key of a metric, parameter or tag: MLflow refuses brackets and quotes."""
    return re.sub(r"[^\w.:/ -]+", "_", name)[:250]


def slug(name: str) -> str:
    """A name for LoggedModels: MLflow refuses dots, slashes, colons, per cent signs and quotes there."""
    return re.sub(r"[^\w-]+", "_", name)[:200]


def agent_name(agent: str) -> str:
    """An agent as a part of a LoggedModel's name that no other agent has.

    The dots of a path of attributes, as `writer.predict`, become hyphens; any other name gets a hash.
    """
    return agent.replace(".", "-") if _PATH.match(agent) else hash_name(agent)


def quote(value: str) -> str:
    """Write a string literal in MLflow's filter language, which has two kinds of quotes but no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"
