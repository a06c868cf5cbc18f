"""Chat messages and tools as TRL, and the chat templates of Transformers, expect them."""

from __future__ import annotations

import json
from typing import Any

from sirius_dspy.running.prompt import Messages, SentPrompt


def trl_messages(messages: Messages) -> list[dict[str, Any]]:
    """Return messages with the arguments of tool calls as tables, where OpenAI's format has texts."""
    return [
        {**message, "tool_calls": [_with_table(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def trl_tools(prompt: SentPrompt) -> dict[str, str]:
    """Return the column `tools`, a JSON text because the schemas of tools differ; empty if none were offered."""
    return {"tools": json.dumps(list(prompt.tools), ensure_ascii=False)} if prompt.tools else {}


def _with_table(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
