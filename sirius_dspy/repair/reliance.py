"""How much a text relies on the help with which it was written: its log-probability with the help and without it.

References:
    HiLL (arXiv:2604.00698) rewards hints whose result stays likely without the hint; here the measure tells which
    repaired texts an agent would hardly have written by itself, so that training on them teaches little but guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.errors import PromptTooLongError
from sirius_dspy.running.native import tool_calls_field

Scorer = Callable[[Sequence[Mapping[str, str]], str], Sequence[float]]
"""Returns the log-probability of each token of a reply to messages, as `LocalLM.score` does."""


def scorer_of(lm: dspy.LM) -> Scorer | None:
    """Return the LM's `score`; `None` for the many LMs that cannot say how likely a given reply is."""
    score = getattr(lm, "score", None)
    return score if callable(score) else None


def score_reply(
    lm: dspy.LM,
    signature: type[dspy.Signature],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    demos: Sequence[dspy.Example] = (),
) -> Sequence[float] | None:
    """Return the log-probability of each token with which an LM would write these outputs, in nats.

    Args:
        lm: The agent's.
        signature: What the prompt is made of.
        inputs: Its input fields.
        outputs: The reply.
        demos: Demonstrations in the prompt.

    Returns:
        `None` if the LM cannot score, or calls tools natively here, or the prompt is too long for it.
    """
    score, adapter = scorer_of(lm), dspy.settings.adapter or dspy.ChatAdapter()
    if score is None or _calls_natively(lm, signature, adapter):
        return None
    messages = adapter.format(signature, [demo.toDict() for demo in demos], dict(inputs))
    reply = adapter.format_assistant_message_content(signature, dict(outputs))
    try:
        return score(messages, reply) or None
    except PromptTooLongError:
        return None


def _calls_natively(lm: dspy.LM, signature: type[dspy.Signature], adapter: Adapter) -> bool:
    """Return whether the adapter hands tools and calls to the LM natively: then neither is in the text to score."""
    is_native = getattr(adapter, "use_native_function_calling", False)
    return bool(is_native and tool_calls_field(signature) and getattr(lm, "supports_function_calling", False))


def mean_difference(pairs: Sequence[tuple[Sequence[float] | None, Sequence[float] | None]]) -> float | None:
    """Return the mean difference per token between scores with help and without it; `None` if one is missing."""
    total, tokens = 0.0, 0
    for helped, alone in pairs:
        if helped is None or alone is None:
            return None
        total += sum(helped) - sum(alone)
        tokens += len(alone)
    return total / tokens if tokens else None
