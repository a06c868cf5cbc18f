"""What native tools look like in a training file: the tools of a row, the calls of a reply, and their results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

OPTIONAL = frozenset({"tool_calls", "name"})
"""Fields that a message may leave out."""


def fields_of(message: Mapping[str, Any]) -> frozenset[str]:
    """Return the fields that a message has besides its weight, optional ones among them."""
    texts = frozenset({"role", "content"})
    if message.get("role") == "tool":
        return texts | {"tool_call_id", "name"}
    return texts | {"tool_calls"} if message.get("role") == "assistant" else texts


def find_problem(row: Mapping[str, Any]) -> str:
    """Return what is wrong with the tools of a row; empty if nothing is."""
    tools = row.get("tools")
    if "tools" in row and not (isinstance(tools, list) and tools and all(map(_is_tool, tools))):
        return '\'tools\' is not a list of the form [{"type": "function", "function": {"name": ...}}].'
    if "parallel_tool_calls" in row and ("tools" not in row or type(row["parallel_tool_calls"]) is not bool):
        return "'parallel_tool_calls' is not true or false beside 'tools'."
    return ""


def find_call_problem(message: Mapping[str, Any]) -> str:
    """Return what is wrong with the tool calls of a message, or with its being a result; empty if nothing is."""
    if not all(isinstance(message.get(name, ""), str) for name in ("tool_call_id", "name")):
        return "'tool_call_id' or 'name' is not a text."
    calls = message.get("tool_calls", ...)
    if calls is ... or (isinstance(calls, list) and calls and all(map(_is_call, calls))):
        return ""
    return (
        '\'tool_calls\' is not a list of the form [{"id": ..., "type": "function", "function": '
        '{"name": ..., "arguments": ...}}], in which \'arguments\' is a JSON object as text.'
    )


def _is_tool(tool: Any) -> bool:
    return _is_function(tool) and isinstance(tool["function"].get("parameters", {}), dict)


def _is_call(call: Any) -> bool:
    if not _is_function(call) or not isinstance(call.get("id"), str):
        return False
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _is_function(value: Any) -> bool:
    """Return whether a value is a function with a name, as tools and calls are."""
    is_one = isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict)
    return is_one and isinstance(value["function"].get("name"), str)
