"""What an LM was really asked during one predictor call, and how its reply ended.

DSPy tells neither its callers nor its callbacks why a reply ended, and adapters send what they like: another prompt
after a first one did not parse, tools beside the messages. Both stand in the entry that DSPy writes into an LM's
history, so the LM of a recorded call is replaced by an alias of it, which shares all its state and takes the entry for
the recording instead.

This is the one place that depends on how DSPy keeps histories.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError, LMProviderError

from sirius_dspy.plain import canonical, to_plain
from sirius_dspy.trajectory import Usage

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """One request to an LM that was answered."""

    messages: Messages
    has_tools: bool
    """Whether native tools were sent beside the messages, which a training row cannot hold."""
    finish: str
    """Why the LM stopped, in its own word; empty if it did not say."""


class Listener:
    """Stands in for DSPy's usage tracker during one call, and passes usage on to the caller's own, if there is one."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.usage = Usage()
        self.requests: list[Request] = []
        self.is_void = False
        """Whether the last answer came without any token count."""
        self._lock = threading.Lock()  # protects the three above: a program may call LMs from several threads

    def add_usage(self, lm: str, entry: Mapping[str, Any]) -> None:
        """DSPy's method: one answered request; answers from a cache are not told."""
        used = Usage(1, int(entry.get("prompt_tokens") or 0), int(entry.get("completion_tokens") or 0))
        with self._lock:
            self.usage += used
            self.is_void = not used.prompt_tokens and not used.completion_tokens
        if self.parent is not None:
            self.parent.add_usage(lm, entry)

    def hear(self, entry: Mapping[str, Any]) -> None:
        """Note an entry of an LM's history."""
        messages = entry.get("messages") or [{"role": "user", "content": entry.get("prompt") or ""}]
        request = Request(messages, bool((entry.get("kwargs") or {}).get("tools")), _finish(entry.get("response")))
        with self._lock:
            self.requests.append(request)


@contextmanager
def listening(without: Any = None) -> Iterator[Listener]:
    """The context in which an alias tells its listener what it was asked.

    Args:
        without: A DSPy callback that is not to hear of these calls.
    """
    listener = Listener(dspy.settings.get("usage_tracker"))
    callbacks = [callback for callback in dspy.settings.callbacks if callback is not without]
    with dspy.context(usage_tracker=listener, disable_history=False, callbacks=callbacks):
        yield listener


def alias_of(lm: Any) -> Any:
    """The same LM, all state shared, whose history entries go to the listener; what is no DSPy LM stays as it is."""
    if not isinstance(lm, dspy.BaseLM) or not hasattr(lm, "__dict__"):
        return lm
    kind: Any = type(lm)
    alias = object.__new__(_aliased(kind))
    object.__setattr__(alias, "__dict__", vars(lm))
    return alias


@contextmanager
def refused_if_void(lm: Any, kwargs: dict[str, Any], listener: Listener) -> Iterator[list[dict[str, Any]]]:
    """Refuse an empty text that a server sent without a token count: its body was JSON, but no reply.

    DSPy takes `{}` for an empty text and caches it, so that the next try has to pass the cache by.

    Raises:
        LMProviderError: It was.
    """
    outputs: list[dict[str, Any]] = []
    listener.is_void = False
    has_server = isinstance(getattr(lm, "_engine_spec", None), str)
    try:
        yield outputs
        text: Any = "".join(str(value or "") for output in outputs for value in output.values())
    except AdapterParseError as error:
        text = error.lm_response
        if text or not listener.is_void or not has_server:
            raise
    if not text and listener.is_void and has_server:
        kwargs["cache"] = False
        raise LMProviderError("The server sent a body without a reply in it.", model=lm.model, status=200)


@lru_cache(maxsize=128)
def _aliased(kind: type[dspy.BaseLM]) -> type[dspy.BaseLM]:
    def update_history(self: dspy.BaseLM, entry: dict[str, Any]) -> None:
        listener = dspy.settings.get("usage_tracker")
        if isinstance(listener, Listener):
            listener.hear(entry)

    return type(kind.__name__, (kind,), {"update_history": update_history, "__module__": kind.__module__})


def _finish(response: Any) -> str:
    """Of the first completion: of lm15's responses, or of one in OpenAI's shape."""
    first = response[0] if isinstance(response, list | tuple) and response else response
    choices = first.get("choices") if isinstance(first, Mapping) else getattr(first, "choices", None)
    if choices:
        first = choices[0]
    found = first.get("finish_reason") if isinstance(first, Mapping) else getattr(first, "finish_reason", None)
    return str(found or "")


def prompt_text(messages: Messages) -> str:
    """Messages as they are stored and compared: canonical JSON of their roles and contents."""
    return canonical([{"role": item["role"], "content": to_plain(item.get("content") or "")} for item in messages])
