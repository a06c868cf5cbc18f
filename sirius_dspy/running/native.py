"""The replies of LMs that call tools natively, as chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.dspy_internals import native_tool_call
from sirius_dspy.running.prompt import Message

_TOOL_CALLS = f"{dspy.ToolCalls.__module__}:{dspy.ToolCalls.__qualname__}"


def tool_calls_field(signature: type[dspy.Signature]) -> str:
    """Return the output field that takes tool calls; empty if there is none."""
    return next((name for name, info in signature.output_fields.items() if info.annotation == dspy.ToolCalls), "")


def native_reply(adapter: Adapter, signature: type[dspy.Signature], outputs: Mapping[str, Any]) -> Message:
    """Write the outputs of a call as the reply of an LM that was offered tools natively.

    It is the message that adapters write for the same outputs in a `dspy.History`.

    Args:
        adapter: Writes the fields that are text.
        signature: Of the call.
        outputs: A value for each output field; `None` for those that the LM left out.
    """
    field = tool_calls_field(signature)
    calls = getattr(outputs.get(field), "tool_calls", None) or []
    for name in signature.output_fields:
        if name == field or outputs[name] is None:
            signature = signature.delete(name)
    text = adapter.format_assistant_message_content(signature, dict(outputs)) if signature.output_fields else ""
    reply: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        reply["tool_calls"] = [
            native_tool_call(call if call.id else call.model_copy(update={"id": f"call_{number}"}))
            for number, call in enumerate(calls)
        ]
    return reply


def without_ids(plain: Any) -> Any:
    """Return plain values with the names and arguments of tool calls in their place: ids are new in every reply."""
    if isinstance(plain, list):
        return [without_ids(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.get("class") == _TOOL_CALLS:
        calls = [call["value"] for call in plain["value"]["tool_calls"]]
        return [{"name": call["name"], "args": call["args"]} for call in calls]
    return {name: without_ids(item) for name, item in plain.items()}
