"""Chat messages and tools as TRL, and the chat templates of Transformers, expect them."""

from __future__ import annotations

import json
from typing import Any

from sirius_dspy.running.prompt import Messages, SentPrompt, change_arguments


def trl_messages(messages: Messages) -> list[dict[str, Any]]:
    """Return messages with the arguments of tool calls as tables, where OpenAI's format has texts."""
    return [change_arguments(message, json.loads) for message in messages]


def trl_tools(prompt: SentPrompt) -> dict[str, str]:
    """Return the column `tools`, a JSON text because the schemas of tools differ; empty if none were offered."""
    return {"tools": json.dumps(list(prompt.tools), ensure_ascii=False)} if prompt.tools else {}
