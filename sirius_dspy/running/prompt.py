"""What an LM was sent, as it is stored, compared and put into training rows: messages, and tools offered natively."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sirius_dspy.plain import canonical, digest, to_plain

Message = Mapping[str, Any]
"""A chat message in OpenAI's format."""

Messages = Sequence[Message]


@dataclass(frozen=True)
class SentPrompt:
    """A request to an LM, less what is no part of a training row.

    Attributes:
        messages: In OpenAI's format; tool calls and their results keep the ids with which they were sent.
        tools: The schemas of the tools that the LM could call natively, in OpenAI's format, keys in the order in which
            they were sent; empty if there were none.
        parallel_tool_calls: Whether the LM was to call several tools at once; `None` leaves it to the server.
    """

    messages: Messages
    tools: Messages = ()
    parallel_tool_calls: bool | None = None

    @property
    def text(self) -> str:
        """The prompt as it is stored and compared: canonical JSON, the messages alone if nothing was sent with them."""
        messages = [_plain_message(message) for message in self.messages]
        if not self.settings:
            return canonical(messages)
        # A text, because the JSON around it sorts its keys, and templates write tools with theirs in order.
        settings = {**self.settings, "tools": json.dumps(self.tools, ensure_ascii=False)}
        return canonical({"messages": messages, **settings})

    @classmethod
    def read(cls, text: str) -> SentPrompt:
        """Return the prompt that `text` gave."""
        stored = json.loads(text)
        if isinstance(stored, list):
            return cls(stored)
        return cls(stored["messages"], _read_tools(stored["tools"]), stored.get("parallel_tool_calls"))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> SentPrompt:
        """Return the prompt of a chat row, whose last message is the reply."""
        return cls(row["messages"][:-1], row.get("tools", ()), row.get("parallel_tool_calls"))

    @property
    def settings(self) -> dict[str, Any]:
        """What stands beside the messages in a chat row; empty if nothing does."""
        settings: dict[str, Any] = {"tools": list(self.tools)} if self.tools else {}
        if self.tools and self.parallel_tool_calls is not None:
            settings["parallel_tool_calls"] = self.parallel_tool_calls
        return settings

    @property
    def is_native(self) -> bool:
        """Whether tools were offered natively, or messages hold native tool calls or their results."""
        return bool(self.tools) or any(map(is_of_tools, self.messages))

    @property
    def is_text(self) -> bool:
        """Whether all messages are texts, without images or other media."""
        return all(isinstance(message.get("content") or "", str) for message in self.messages)


def is_of_tools(message: Message) -> bool:
    """Return whether a message is a native tool call, or the result of one."""
    return message.get("role") == "tool" or bool(message.get("tool_calls"))


def change_arguments(message: Message, change: Callable[[str], Any]) -> dict[str, Any]:
    """Return a message whose tool calls have other arguments; one without calls stays as it is.

    Args:
        message: In OpenAI's format, in which arguments are JSON texts.
        change: Takes such a text.
    """
    if not message.get("tool_calls"):
        return dict(message)
    functions = [(call, call["function"]) for call in message["tool_calls"]]
    calls = [{**call, "function": {**made, "arguments": change(made["arguments"])}} for call, made in functions]
    return {**message, "tool_calls": calls}


def row_id(row: Mapping[str, Any]) -> str:
    """Return the content hash of a chat row. The ids of the calls in its reply do not count: servers draw new ones."""
    *prompt, reply = map(dict, row["messages"])
    if "tool_calls" in reply:
        reply["tool_calls"] = [{**call, "id": ""} for call in reply["tool_calls"]]
    settings = {name: row[name] for name in ("tools", "parallel_tool_calls") if name in row}
    return digest([*prompt, reply] if not settings else {"messages": [*prompt, reply], **settings})


def _plain_message(message: Message) -> dict[str, Any]:
    of_tools = {name: to_plain(message[name]) for name in ("tool_calls", "tool_call_id", "name") if message.get(name)}
    if not is_of_tools(message):
        of_tools = {}
    nothing = None if "tool_calls" in of_tools else ""
    return {"role": message["role"], "content": to_plain(message.get("content") or nothing), **of_tools}


@lru_cache(maxsize=256)
def _read_tools(text: str) -> Messages:
    """Read tools that `SentPrompt.text` wrote; all rows of a predictor share them."""
    return tuple(json.loads(text))
