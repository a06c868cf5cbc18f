"""The replies of stored steps, as an adapter writes them in training rows, without the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import dspy
from dspy.adapters.base import Adapter
from dspy.signatures import make_signature

from sirius_dspy.plain import from_plain, readable
from sirius_dspy.running.native import native_reply
from sirius_dspy.running.prompt import Message, SentPrompt
from sirius_dspy.trajectory import Step

_CLASSES = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in (dspy.ToolCalls, dspy.Reasoning)}
"""Classes of DSPy whose values can be made again without the program."""

WriteReply = Callable[[Step], tuple[Message | None, str]]
"""Gives the reply that represents the outputs of a step, or `None` and the reason why there is none."""


class ReplyWriter:
    """A `WriteReply` that knows the adapter only.

    The types of the fields are taken from their values, which is enough for text, numbers, lists, tables,
    `dspy.Reasoning` and `dspy.ToolCalls`. Values of other classes need the program's signatures, and have no reply
    here.

    Args:
        adapter: The one that the program was run with.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, step: Step) -> tuple[Message | None, str]:
        """Return the reply of a step, or `None` and the reason."""
        outputs = {name: _restore(value) for name, value in (step.outputs or {}).items() if name != "logprobs"}
        plain = {name: value for name, value in outputs.items() if not isinstance(value, dspy.ToolCalls)}
        if readable(plain) != plain:
            return None, "holds a value of a class"
        signature = _signature_of(tuple((name, type(value)) for name, value in outputs.items()))
        try:  # adapters may raise anything; such a reply is no row
            reply = self._native(signature, outputs) if has_native_tools(step) else self._text(signature, outputs)
        except Exception:
            reply = None
        return (reply, "") if reply is not None else (None, "does not parse back")

    def _text(self, signature: type[dspy.Signature], outputs: Mapping[str, Any]) -> Message | None:
        text = str(self.adapter.format_assistant_message_content(signature, dict(outputs)))
        return text_reply(text) if dict(self.adapter.parse(signature, text)) == outputs else None

    def _native(self, signature: type[dspy.Signature], outputs: Mapping[str, Any]) -> Message | None:
        reply = native_reply(self.adapter, signature, outputs)
        is_text = {name: value for name, value in outputs.items() if type(value) not in (dspy.ToolCalls, type(None))}
        if not is_text:
            return reply
        of_text = _signature_of(tuple((name, type(value)) for name, value in is_text.items()))
        return reply if dict(self.adapter.parse(of_text, reply["content"])) == is_text else None


def text_reply(text: str) -> Message:
    """Return a reply that is a text."""
    return {"role": "assistant", "content": text}


def has_native_tools(step: Step) -> bool:
    """Return whether tools were offered natively in a step."""
    return step.prompt is not None and bool(SentPrompt.read(step.prompt).tools)


def answered_reply(step: Step, write: WriteReply) -> tuple[Message | None, str]:
    """Return a reply to learn from, or `None` and the reason."""
    if step.outputs is None:
        return None, "the call failed"
    return any_reply(step, write)


def any_reply(step: Step, write: WriteReply) -> tuple[Message | None, str]:
    """Return what the agent replied, or `None` and the reason; what did not parse is returned as it was written."""
    if step.was_cut:
        return None, "cut off at the token limit"
    if step.outputs is not None:
        return write(step)
    text = step.failure.completion if step.failure else None
    if text and has_native_tools(step):  # the text may describe the tool calls of the reply
        return None, "a reply beside native tools that did not parse"
    return (text_reply(text), "") if text else (None, "the call failed")


def sent_prompt(step: Step) -> tuple[SentPrompt | None, str]:
    """Return what was sent, without demonstrations, or `None` and the reason."""
    if "hint_" in step.inputs:  # dspy.Refine adds its advice, which does not exist at inference
        return None, "has a hint of dspy.Refine"
    if step.prompt is None:
        return None, "has no recorded prompt"
    prompt = SentPrompt.read(step.prompt)
    if not prompt.is_text:
        return None, "has images or other media"
    return prompt, ""


def _restore(value: Any) -> Any:
    """Make tool calls again, take the text out of reasoning, and return anything else as it is stored."""
    name = value.get("class") if isinstance(value, dict) else None
    kind = _CLASSES.get(name) if isinstance(name, str) else None  # a table of the user may have this key, too
    made = from_plain(value, kind) if kind is not None else value
    return made.content if isinstance(made, dspy.Reasoning) else made


@lru_cache(maxsize=256)
def _signature_of(fields: tuple[tuple[str, type], ...]) -> type[dspy.Signature]:
    """Return a signature with these outputs."""
    given = {name: (kind, dspy.OutputField()) for name, kind in fields}
    return make_signature({"given_": (str, dspy.InputField()), **given})
