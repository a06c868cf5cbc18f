"""Native tools in chat templates: whether a template writes them, and the form in which it takes messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

Render = Callable[..., str]
"""Renders messages and tools with a chat template."""


def template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of OpenAI's format as templates take it: arguments are tables, and no content is empty."""
    taken = {**message, "content": message["content"] or ""}
    if message.get("tool_calls"):
        taken["tool_calls"] = [_with_table(call) for call in message["tool_calls"]]
    return taken


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a plain value with all its texts changed, those of keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): map_texts(item, change) for key, item in value.items()}
    return [map_texts(item, change) for item in value] if isinstance(value, list) else value


def renders_tools(render: Render) -> bool:
    """Return whether a template writes the tools, several calls in and before a reply, and the results of calls."""
    texts = ("offered_tool", "described", "first_call", "first_value", "first_result", "last_call", "last_value")
    offered, described, first, value, result, last, last_value = texts
    messages = [*_turn(first, value, result), _calls(last, last_value, number=2)]  # some templates refuse two calls
    try:
        prompt = render(messages[:-1], [_tool(offered, described)], is_prompt=True)
        whole = render(messages, [_tool(offered, described)])
    except Exception as error:  # templates may raise anything
        logger.debug("The chat template takes no tools: %s", error)
        return False
    return whole.startswith(prompt) and all(text in whole for text in texts) and last not in prompt


def markup(render: Render) -> str:
    """Return what a template writes around tools, calls and results; empty if it takes none."""
    if not renders_tools(render):
        return ""
    return render([*_turn("", "", ""), _calls("", "")], [_tool("", "")])


def _turn(name: str, value: str, result: str) -> Sequence[dict[str, Any]]:
    """A conversation as DSPy sends it: a question, a call, its result, and what to reply with."""
    return (
        {"role": "user", "content": ""},
        _calls(name, value),
        {"role": "tool", "tool_call_id": "call_0", "name": name, "content": result},
        {"role": "user", "content": ""},
    )


def _calls(name: str, value: str, number: int = 1) -> dict[str, Any]:
    call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": {"argument": value}}}
    return {"role": "assistant", "content": "", "tool_calls": [call] * number}


def _tool(name: str, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"argument": {"type": "string"}}, "required": ["argument"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _with_table(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    table = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {**call, "function": {**function, "arguments": table}}
