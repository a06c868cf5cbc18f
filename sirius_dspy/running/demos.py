"""Demonstrations that a predictor's prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from sirius_dspy.errors import SettingsError


def check_whole_demos(name: str, demos: Sequence[Any], signature: type[dspy.Signature]) -> None:
    """Refuse demonstrations that lack a field of a signature: they cannot be trained on.

    Args:
        name: What to call them in the message.
        demos: Demonstrations of the signature.
        signature: What they demonstrate.

    Raises:
        SettingsError: The message names the first one by its position.
    """
    for position, demo in enumerate(demos):
        if missing := [field for field in signature.fields if field not in demo]:
            raise SettingsError(
                f"{name}[{position}] has no {missing}. A warm start trains on whole demonstrations. Give it every "
                f"field of the predictor: {list(signature.fields)}."
            )


def check_demo_fields(name: str, demos: Sequence[Any], signature: type[dspy.Signature]) -> None:
    """Refuse demonstrations without any input or any output of a signature: DSPy leaves those out of every prompt.

    Args:
        name: What to call them in the message.
        demos: Demonstrations of the signature.
        signature: What they demonstrate.

    Raises:
        SettingsError: The message names the first one by its position.
    """
    for position, demo in enumerate(demos):
        for kind, fields in (("input", signature.input_fields), ("output", signature.output_fields)):
            if not any(demo.get(field) is not None for field in fields):
                raise SettingsError(
                    f"{name}[{position}] has none of the {kind} fields {list(fields)}; it has {list(demo.keys())}. "
                    "DSPy would leave it out of every prompt. Give it the fields of the predictor that it demonstrates."
                )
