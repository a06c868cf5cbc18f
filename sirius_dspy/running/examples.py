"""Examples as runs need them: copied before anything may change them, and shortened for messages."""

from __future__ import annotations

import copy
from typing import Any

import dspy

from sirius_dspy.trajectory import to_plain


def copy_example(example: dspy.Example) -> dspy.Example:
    """Copy an example so that its values may be changed in place; what cannot be copied is shared."""
    copied = example.copy()
    for name, value in example.items():
        copied[name] = _copy_value(value)
    return copied


def shorten_example(example: dspy.Example) -> str:
    """The inputs for a message, at most 200 characters of them."""
    text = repr(to_plain(example.inputs()))
    return text if len(text) <= 200 else text[:200] + "..."


def _copy_value(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # an open file, a lock, a client: only containers around it can be copied
        if type(value) is dict:
            return {key: _copy_value(item) for key, item in value.items()}
        if type(value) in (list, tuple, set):
            return type(value)(_copy_value(item) for item in value)
        return value
