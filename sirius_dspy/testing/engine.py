"""The base of the fake LMs: a DSPy engine that answers with a Python function and records its requests."""

from __future__ import annotations

import asyncio
import importlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import dspy
from dspy.lm15 import Message, Request, Response, TextPart
from dspy.lm15 import Usage as LMUsage

from sirius_dspy.errors import SiriuSError


class UnexpectedCallError(SiriuSError, AssertionError):
    """The script of an LM has no answer to a request."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request to an LM, as plain text."""

    model: str
    """Id of the LM; tells copies with different weights apart."""
    system: str
    messages: tuple[tuple[str, str], ...]
    """(role, text) in order, without the system message."""
    temperature: float | None = None
    seed: int | None = None
    """Seed of the sampling; `None` if the call set none or is greedy (temperature 0)."""

    @property
    def user(self) -> str:
        """The last user message, which is the question after all demonstrations."""
        return next((text for role, text in reversed(self.messages) if role == "user"), "")

    @property
    def text(self) -> str:
        """All messages, one after the other."""
        return "\n\n".join(filter(None, [self.system, *(text for _, text in self.messages)]))

    def field(self, name: str) -> str | None:
        """Return the value of an input field in the last user message as text, or `None` if it is not there.

        Both the `[[ ## name ## ]]` blocks of ChatAdapter and `name: value` lines are understood. In the latter, a line
        that looks like `word: ` ends the value.
        """
        chat = rf"\[\[ ## {re.escape(name)} ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with |\Z)"
        plain = rf"^{re.escape(name)}: (.*?)(?=\n\w+: |\nReply with |\Z)"
        match = re.search(chat, self.user, re.S) or re.search(plain, self.user, re.S | re.M)
        return match and match.group(1).strip()

    def asks_for(self, name: str) -> bool:
        """Return whether the prompt names this output field. A prompt for a single plain output names none."""
        return f"`[[ ## {name} ## ]]`" in self.user or f"'{name}:'" in self.user


def prompt_of(request: Request) -> Prompt:
    """Convert a request to plain text."""
    system = request.system or ""
    config = request.config
    return Prompt(
        model=request.model,
        system=system if isinstance(system, str) else "".join(getattr(part, "text", "") for part in system),
        messages=tuple((message.role, message.text or "") for message in request.messages),
        temperature=config.temperature,
        seed=None if config.temperature == 0 else config.seed,
    )


class Engine:
    """Answers requests with a Python function and records them. All copies of an LM share it, including deep copies.

    Subclasses define `answer`. The lock protects the record and any counters of a subclass.
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.requests: list[Prompt] = []
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process gets: it has a record of its own."""
        return {**vars(self), "requests": [], "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.Lock())

    def dump_state(self) -> dict[str, Any]:
        """Return an empty state: the LM saves what it needs to create a new engine."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """Create a new engine; DSPy requires this pair of methods."""
        return cls(**state)

    def answer(self, prompt: Prompt) -> str:
        """Return the reply to a prompt."""
        raise NotImplementedError

    def complete(self, request: Request) -> Response:
        """Answer a request; DSPy calls this from many threads at once."""
        prompt = self._note(request)
        if self.latency_s:
            time.sleep(self.latency_s)
        return self._respond(prompt)

    async def acomplete(self, request: Request) -> Response:
        """Answer a request with asyncio."""
        prompt = self._note(request)
        await asyncio.sleep(self.latency_s)
        return self._respond(prompt)

    def _note(self, request: Request) -> Prompt:
        prompt = prompt_of(request)
        with self.lock:
            self.requests.append(prompt)
        return prompt

    def _respond(self, prompt: Prompt) -> Response:
        text = self.answer(prompt)
        if not isinstance(text, str):
            raise UnexpectedCallError(
                f"The script answered {text!r}, expected a string. The prompt was:\n{prompt.text}\nCorrect the script."
            )
        usage = LMUsage(input_tokens=len(prompt.text.split()), output_tokens=len(text.split()))
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=prompt.model, message=message, finish_reason="stop", usage=usage)


class AsyncEngine:
    """The same engine for asyncio: DSPy requires a second object whose `complete` is a coroutine function."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Return an empty state; see `Engine.dump_state`."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """Restore the engine; DSPy requires this pair of methods, but the LM's state never contains this engine."""
        return cls(Engine(**state))

    async def complete(self, request: Request) -> Response:
        """Answer a request; DSPy calls this."""
        return await self.engine.acomplete(request)


class EngineLM(dspy.LM):
    """A `dspy.LM` with one of these engines, whose `rollout_id` becomes the sampling seed, as in `LocalLM`."""

    def __init__(self, model: str, engine: Engine, **kwargs: Any) -> None:
        kwargs.setdefault("cache", False)
        super().__init__(model, engine=engine, async_engine=AsyncEngine(engine), **kwargs)

    @property
    def requests(self) -> tuple[Prompt, ...]:
        """All requests to this LM and its copies, in order of arrival, without those answered by a cache."""
        with self.engine.lock:
            return tuple(self.engine.requests)

    @property
    def calls(self) -> int:
        """The number of requests."""
        return len(self.requests)

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the LM; see `dspy.LM`. A `rollout_id` is also the sampling seed."""
        return super().__call__(prompt, messages=messages, **self._add_seed(prompt, kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Call the LM without blocking the event loop."""
        return await super().acall(prompt, messages=messages, **self._add_seed(prompt, kwargs))

    def dump_state(self) -> dict[str, Any]:
        """Return the state without the engines, which a loaded LM creates again."""
        return {key: value for key, value in super().dump_state().items() if key not in ("engine", "async_engine")}

    def _add_seed(self, prompt: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = {**self.kwargs, **kwargs}
        rollout_id = options.get("rollout_id")
        if rollout_id is None or options.get("seed") is not None or isinstance(prompt, Request):
            return kwargs  # a Request has its own configuration
        return {**kwargs, "seed": rollout_id}


def path_of(function: Callable[..., Any] | None) -> str | None:
    """Return `module:name` of a function that can be imported, or `None`."""
    path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        return path if function_at(path) is function else None
    except (ImportError, AttributeError, ValueError):
        return None


def function_at(path: str | None) -> Callable[..., Any] | None:
    """Import the function that `path_of` named."""
    if path is None:
        return None
    module, _, name = path.partition(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target
