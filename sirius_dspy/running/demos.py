"""Demonstrations that a predictor's prompt shows, or that it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.plain import to_plain
from sirius_dspy.running.answered import as_answered
from sirius_dspy.trajectory import Values


def demonstrated_outputs(demo: dspy.Example, signature: type[dspy.Signature]) -> Values | None:
    """Return the outputs of a whole demonstration as if an LM had answered them; `None` if no reply has them."""
    return as_answered(signature, {name: to_plain(demo[name]) for name in signature.output_fields})


def check_whole_demos(name: str, demos: Sequence[Any], signature: type[dspy.Signature]) -> None:
    """Refuse demonstrations that cannot be trained on: they lack a field, or no reply has their outputs.

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
        if demonstrated_outputs(demo, signature) is None:
            outputs = {field: demo[field] for field in signature.output_fields}
            raise SettingsError(
                f"{name}[{position}] has the outputs {_describe(outputs)}, which the adapter cannot write as a reply "
                "and read again, so they cannot be trained on. Give each field a value of its type."
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


def _describe(outputs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={checks.describe_value(value)}" for name, value in outputs.items())
