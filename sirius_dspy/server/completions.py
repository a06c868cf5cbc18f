"""Answers in OpenAI's form: whole, and as the events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sirius_dspy.local.engine import Generation


def completion(model: str, answers: Sequence[Generation]) -> dict[str, Any]:
    """Return the body of an answer that is complete."""
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        for number, answer in enumerate(answers)
    ]
    return {**_head(model, "chat.completion"), "choices": choices, "usage": _usage(answers)}


class Chunks:
    """The events of one stream.

    Args:
        model: The name under which it was asked.
        with_usage: Whether an event with the number of tokens is asked for.
    """

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._head = _head(model, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
        self._with_usage = with_usage

    def begin(self, number: int) -> str:
        """Return the first event of an answer."""
        return self._choice(number, {"role": "assistant", "content": ""})

    def text(self, number: int, text: str) -> str:
        """Return the event of a piece of text."""
        return self._choice(number, {"content": text})

    def end(self, number: int, answer: Generation) -> str:
        """Return the last event of an answer."""
        return self._choice(number, {}, answer.finish_reason)

    def close(self, answers: Sequence[Generation]) -> str:
        """Return what comes after all answers."""
        usage = event({**self._head, "choices": [], "usage": _usage(answers)}) if self._with_usage else ""
        return f"{usage}data: [DONE]\n\n"

    def _choice(self, number: int, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**self._head, "choices": [choice]})


def event(content: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answers: Sequence[Generation]) -> dict[str, int]:
    prompt = answers[0].prompt_tokens
    written = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
