"""Outputs that no LM gave, such as a label, as a program would have them if an LM had replied with them."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping
from typing import Any

import dspy
from pydantic import BaseModel

from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain import coerce, to_plain
from sirius_dspy.running.native import tool_calls_field
from sirius_dspy.trajectory import Values


def as_answered(signature: type[dspy.Signature], outputs: Values) -> dict[str, Any] | None:
    """Return what DSPy's adapter reads of the reply that it writes for some outputs.

    A label for a text may be the number 5 or end with a space, and a demonstration may lack what a model has by
    default. No reply ever gives such values, so a run with them is none that an agent can learn from.

    Args:
        signature: Of the call.
        outputs: A plain value for each output field.

    Returns:
        The plain values, or `None` if there is no reply with these. Calls of tools stay as they are, since they may be
        no part of the text.
    """
    if tool_calls_field(signature):
        return dict(outputs)
    fields, adapter = signature.output_fields, dspy.settings.adapter or dspy.ChatAdapter()
    try:
        values = {name: coerce(outputs[name], fields[name].annotation) for name in fields}
    except UnreadableValueError:
        return None
    for written in spellings(values):
        try:  # adapters may raise anything
            read = adapter.parse(signature, str(adapter.format_assistant_message_content(signature, dict(written))))
        except Exception:
            continue
        if all(_is_whole(read[name], value) for name, value in values.items()):
            return {name: to_plain(read[name]) for name in fields}
    return None


def _is_whole(read: Any, written: Any) -> bool:
    """Whether a text was read to its end: one that holds the marker of a field is not."""
    return not isinstance(written, str) or not isinstance(read, str) or read.strip() == written.strip()


def spellings(outputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the outputs unchanged, and then in other words that DSPy reads and does not write itself.

    Of an Enum, it reads names of members and only those values that are strings; of models, it reads the aliases of
    fields; of types that say how they look in a prompt, it reads the fields.
    """
    yield outputs
    if any(isinstance(value, enum.Enum) for value in outputs.values()):
        yield {name: value.name if isinstance(value, enum.Enum) else value for name, value in outputs.items()}
    with contextlib.suppress(Exception):  # the types are the user's, and may raise anything
        yield {name: _by_fields(value) for name, value in outputs.items()}


def _by_fields(value: Any) -> Any:
    """Return a value with the fields of its models in place of these, under the names that are read."""
    if isinstance(value, dspy.Type):
        return {name: _by_fields(item) for name, item in vars(value).items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if type(value) is list:
        return [_by_fields(item) for item in value]
    return {name: _by_fields(item) for name, item in value.items()} if type(value) is dict else value
