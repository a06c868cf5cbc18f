"""The attributes and arguments of an LM that decide what it answers."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import dspy

from sirius_dspy.credentials import is_secret_name
from sirius_dspy.dspy_internals import LM_INTERNALS
from sirius_dspy.identity.attributes import attributes_of
from sirius_dspy.identity.source_code import is_library

_OF_EVERY_LM = frozenset(["provider", "kwargs", "cache", "num_retries", "callbacks", "history"]) | LM_INTERNALS
"""Attributes of DSPy's LMs that are described elsewhere, or do not count."""

_NOT_COUNTED = frozenset(
    [
        *("timeout", "request_timeout", "num_retries", "max_retries", "callbacks", "cache", "rollout_id"),
        *("metadata", "prompt_cache_key", "safety_identifier", "user"),
    ]
)
"""Arguments of an LM that do not change what it answers."""

_ADDRESSES = ("api_base", "base_url")

_ACCOUNT = re.compile(
    r"(?:^|_)(?:auth|credentials?|organization|profile|session)(?:_|$)|token_provider|headers?$|cookie|passw|secret",
    re.IGNORECASE,
)
"""Arguments that tell who asks."""


def lm_attributes(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the attributes of an LM that may decide what it answers, and how it is trained."""
    attributes = {name: item for name, item in attributes_of(lm).items() if name not in _OF_EVERY_LM}
    if is_library(type(lm).__module__):
        attributes = {name: item for name, item in attributes.items() if name[0] != "_"}
    always = {name: getattr(lm, name, None) for name in ("model", "model_type", "finetuning_model")}
    always |= {name: getattr(lm, name, None) or {} for name in ("train_kwargs", "launch_kwargs")}
    return always | attributes


def lm_arguments(lm: dspy.BaseLM) -> dict[str, Any]:
    """Return the arguments of an LM that decide what it answers, without passwords."""
    return {name: _strip_password(name, item) for name, item in lm.kwargs.items() if _is_counted(name, item)}


def _is_counted(name: str, value: Any) -> bool:
    """Return whether an argument may change the answer; texts and tables may be credentials instead."""
    if name in _NOT_COUNTED or (name in _ADDRESSES and _is_local(value)):
        return False
    is_number = value is None or isinstance(value, bool | int | float)
    return is_number or not (is_secret_name(name) or _ACCOUNT.search(name))


def _strip_password(name: str, value: Any) -> Any:
    """Return an argument of an LM; of an address, only scheme, host and path."""
    if name not in _ADDRESSES or not isinstance(value, str):
        return value
    address = urlsplit(value)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}"


def _is_local(address: Any) -> bool:
    """Return whether it is a server of this machine, which may have another port in each run."""
    host = urlsplit(address).hostname or "" if isinstance(address, str) else ""
    return host in ("localhost", "::1") or host.startswith("127.")
