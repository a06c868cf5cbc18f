"""The replies of stored steps, as an adapter writes them in training rows, without the program."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import dspy
from dspy.adapters.base import Adapter
from dspy.signatures import make_signature

from sirius_dspy.plain import from_plain, readable
from sirius_dspy.trajectory import Step

Message = dict[str, str]

_TOOL_CALLS = f"{dspy.ToolCalls.__module__}:{dspy.ToolCalls.__qualname__}"

WriteReply = Callable[[Step], tuple[str | None, str]]
"""Gives the reply that represents the outputs of a step, or `None` and the reason why there is none."""


class ReplyWriter:
    """A `WriteReply` that knows the adapter only.

    The types of the fields are taken from their values, which is enough for text, numbers, lists, tables and
    `dspy.ToolCalls`. Values of other classes need the program's signatures, and have no reply here.

    Args:
        adapter: The one that the program was run with.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, step: Step) -> tuple[str | None, str]:
        """Return the reply of a step, or `None` and the reason."""
        outputs = {name: _restore(value) for name, value in (step.outputs or {}).items() if name != "logprobs"}
        plain = {name: value for name, value in outputs.items() if not isinstance(value, dspy.ToolCalls)}
        if readable(plain) != plain:
            return None, "holds a value of a class"
        signature = _signature_of(tuple((name, type(value)) for name, value in outputs.items()))
        try:  # adapters may raise anything; such a reply is no row
            text = str(self.adapter.format_assistant_message_content(signature, outputs))
            parsed = dict(self.adapter.parse(signature, text))
        except Exception:
            return None, "does not parse back"
        return (text, "") if parsed == outputs else (None, "does not parse back")


def answered_reply(step: Step, write: WriteReply) -> tuple[str | None, str]:
    """Return a reply to learn from, or `None` and the reason."""
    if step.outputs is None:
        return None, "the call failed"
    return any_reply(step, write)


def any_reply(step: Step, write: WriteReply) -> tuple[str | None, str]:
    """Return what the agent replied, or `None` and the reason; what did not parse is returned as it was written."""
    if step.was_cut:
        return None, "cut off at the token limit"
    if step.outputs is not None:
        return write(step)
    text = step.failure.completion if step.failure else None
    return (text, "") if text else (None, "the call failed")


def sent_prompt(step: Step) -> tuple[list[Message] | None, str]:
    """Return the messages that were sent, without demonstrations, or `None` and the reason."""
    if "hint_" in step.inputs:  # dspy.Refine adds its advice, which does not exist at inference
        return None, "has a hint of dspy.Refine"
    if step.prompt is None:
        return None, "has no recorded prompt"
    messages: list[Mapping[str, Any]] = json.loads(step.prompt)
    if not all(isinstance(message["content"], str) for message in messages):
        return None, "has images or other media"
    return [{"role": message["role"], "content": message["content"]} for message in messages], ""


def _restore(value: Any) -> Any:
    """Make tool calls again, and return anything else as it is stored."""
    is_calls = isinstance(value, dict) and value.get("class") == _TOOL_CALLS
    return from_plain(value, dspy.ToolCalls) if is_calls else value


@lru_cache(maxsize=256)
def _signature_of(fields: tuple[tuple[str, type], ...]) -> type[dspy.Signature]:
    """Return a signature with these outputs."""
    given = {name: (kind, dspy.OutputField()) for name, kind in fields}
    return make_signature({"given_": (str, dspy.InputField()), **given})
