"""The requests that an LM really got during one predictor call, and how its replies ended.

DSPy tells neither its callers nor its callbacks why a reply ended, and adapters send what they like: another prompt
after a first one did not parse, tools beside the messages. Both are in the entry that DSPy writes into an LM's history.
So the LM of a recorded call is replaced by an alias, which shares all its state and gives the entry to the recording
instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError, LMProviderError

from sirius_dspy.dspy_internals import has_server, usage_tracker
from sirius_dspy.running.prompt import SentPrompt
from sirius_dspy.trajectory import Usage


@dataclass(frozen=True)
class Request:
    """One request to an LM that was answered."""

    prompt: SentPrompt
    is_forced: bool
    """Whether the LM was told which tool to call, or to call one or none: a training row cannot say so."""
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
        """Count one answered request; DSPy calls this, but not for answers from a cache."""
        used = Usage(1, int(entry.get("prompt_tokens") or 0), int(entry.get("completion_tokens") or 0))
        with self._lock:
            self.usage += used
        if self.parent is not None:
            self.parent.add_usage(lm, entry)

    def add_request(self, entry: Mapping[str, Any]) -> None:
        """Note an entry of an LM's history."""
        messages = entry.get("messages") or [{"role": "user", "content": entry.get("prompt") or ""}]
        kwargs = entry.get("kwargs") or {}
        prompt = SentPrompt(messages, tuple(kwargs.get("tools") or ()), kwargs.get("parallel_tool_calls"))
        is_forced = bool(prompt.tools) and kwargs.get("tool_choice") not in (None, "auto")
        request = Request(prompt, is_forced, _finish(entry.get("response")))
        with self._lock:
            self.requests.append(request)
            self.is_void = not _has_token_count(entry)


@contextmanager
def listen(without: Any = None) -> Iterator[Listener]:
    """Open the context in which an alias tells the listener what it was asked.

    Args:
        without: A DSPy callback that does not hear of these calls.
    """
    listener = Listener(usage_tracker())
    callbacks = [callback for callback in dspy.settings.callbacks if callback is not without]
    with dspy.context(usage_tracker=listener, disable_history=False, callbacks=callbacks):
        yield listener


def alias_lm(lm: Any) -> Any:
    """Return the same LM, all state shared, with its history entries going to the listener; no DSPy LM, no alias."""
    if not isinstance(lm, dspy.BaseLM) or not hasattr(lm, "__dict__"):
        return lm
    kind: Any = type(lm)
    alias = object.__new__(_alias_class(kind))
    object.__setattr__(alias, "__dict__", vars(lm))
    return alias


@contextmanager
def refuse_empty_body(lm: Any, kwargs: dict[str, Any], listener: Listener) -> Iterator[list[dict[str, Any]]]:
    """Refuse an empty text that a server sent without a token count: its body was JSON, but no reply.

    DSPy takes `{}` for an empty text and caches it, also on disk. So the next try goes past the cache, and a text that
    comes out of the cache is looked at in the same way.

    Raises:
        LMProviderError: It was.
    """
    outputs: list[dict[str, Any]] = []
    listener.is_void = False
    try:
        yield outputs
        text: Any = "".join(str(value or "") for output in outputs for value in output.values())
    except AdapterParseError as error:
        text = error.lm_response
        if text or not listener.is_void or not has_server(lm):
            raise
    if not text and listener.is_void and has_server(lm):
        kwargs["cache"] = False
        raise LMProviderError("The server sent a body without a reply in it.", model=lm.model, status=200)


@lru_cache(maxsize=128)
def _alias_class(kind: type[dspy.BaseLM]) -> type[dspy.BaseLM]:
    def update_history(self: dspy.BaseLM, entry: dict[str, Any]) -> None:
        listener = usage_tracker()
        if isinstance(listener, Listener):
            of_lm = {name: self.kwargs[name] for name in _OF_TOOLS if name in self.kwargs}
            listener.add_request({**entry, "kwargs": {**of_lm, **(entry.get("kwargs") or {})}})

    return type(kind.__name__, (kind,), {"update_history": update_history, "__module__": kind.__module__})


def _has_token_count(entry: Mapping[str, Any]) -> bool:
    """Whether the server counted tokens; the entry itself says nothing of a reply that came out of a cache."""
    response = entry.get("response")
    first = response[0] if isinstance(response, list | tuple) and response else response
    usages = (entry.get("usage"), _read(first, "usage"))
    return any(_read(usage, name) for usage in usages for name in _COUNTS)


def _read(value: Any, name: str) -> Any:
    """A field of a mapping or of an object; `None` if it has none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


_OF_TOOLS = ("tool_choice", "parallel_tool_calls")
"""Settings of an LM that belong to a request with tools; the entry holds only those of the call."""

_COUNTS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")
"""What servers and DSPy call the numbers of tokens."""


def _finish(response: Any) -> str:
    """The finish reason of the first completion, in lm15's responses or in OpenAI's shape."""
    first = response[0] if isinstance(response, list | tuple) and response else response
    choices = _read(first, "choices")
    if choices:
        first = choices[0]
    return str(_read(first, "finish_reason") or "")
