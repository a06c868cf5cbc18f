"""Native tool calls of local models: in DSPy's requests, and in what the models write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dspy import lm15

_START, _END = "<tool_call>", "</tool_call>"
"""What Qwen, Hermes and many others write around a call."""

Call = tuple[str, dict[str, Any]]
"""Name and arguments."""


def read_reply(text: str) -> tuple[str, list[Call]]:
    """Return the text of a reply and its tool calls; what is not well written stays text."""
    calls: list[Call] = []
    before, *parts = text.split(_START)
    written = _START.join(parts)
    while written:
        call, rest = _read_call(written)
        if call is None:
            return text, []
        calls.append(call)
        written = rest.strip().removeprefix(_START)
    return (before.rstrip(), calls) if calls else (text, [])


def _read_call(written: str) -> tuple[Call | None, str]:
    """Return the call at the start of a text, and what follows it; `None` if there is none."""
    start = written.lstrip()
    try:
        call, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return None, ""
    rest = start[end:].lstrip()
    is_call = isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
    if not is_call or not call["name"] or not rest.startswith(_END):
        return None, ""
    return (call["name"], call["arguments"]), rest.removeprefix(_END)


def message_parts(text: str, number: int) -> list[Any]:
    """Return a reply as the parts of a response.

    Args:
        text: What the model wrote.
        number: How many calls were in the conversation before, which makes the ids of new ones.
    """
    before, calls = read_reply(text)
    parts = [lm15.TextPart(before)] if before or not calls else []
    return [*parts, *(lm15.ToolCallPart(f"call_{number + n}", *call) for n, call in enumerate(calls))]


def offered_tools(request: lm15.Request) -> list[dict[str, Any]]:
    """Return the tools of a request as adapters write them, in OpenAI's format; those of a provider are left out."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in request.tools
        if isinstance(tool, lm15.FunctionTool)
    ]


def tool_messages(message: lm15.Message, names: dict[str, str]) -> list[dict[str, Any]]:
    """Return a message with tool calls, or with results, in OpenAI's format; empty if it has neither.

    Args:
        message: Of a request.
        names: Id to name of the calls so far; those of this message are added.
    """
    calls = [part for part in message.parts if isinstance(part, lm15.ToolCallPart)]
    names |= {call.id: call.name for call in calls}
    if calls:
        return [{"role": "assistant", "content": _text(message), "tool_calls": [_call(call) for call in calls]}]
    return [
        {"role": "tool", "tool_call_id": part.id, "name": names.get(part.id, ""), "content": _result(part.content)}
        for part in message.parts
        if isinstance(part, lm15.ToolResultPart)
    ]


def _call(part: lm15.ToolCallPart) -> dict[str, Any]:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.input}}


def _text(message: lm15.Message) -> str:
    """Return the text beside other parts; `Message.text` is only of messages without others."""
    return "\n".join(part.text for part in message.parts if isinstance(part, lm15.TextPart))


def _result(parts: Sequence[Any]) -> str:
    return "".join(getattr(part, "text", "") for part in parts)
