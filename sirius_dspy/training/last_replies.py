"""Rows for OpenAI's fine-tuning API, of which only the last reply is to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sirius_dspy.running.prompt import SentPrompt


def learn_last_replies(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Exclude earlier replies, such as those of a `dspy.History`, from the loss; OpenAI trains on all by default."""
    return [{**SentPrompt.of_row(row).settings, "messages": _weigh(row["messages"])} for row in rows]


def _weigh(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    earlier = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages[:-1]]
    return [*earlier, messages[-1]]
