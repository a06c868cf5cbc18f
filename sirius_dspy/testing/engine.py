"""What the fake LMs are built on: a DSPy engine that answers with a Python function, and keeps a record."""

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
    """A scripted LM was asked something that its script has no answer for."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an LM was asked, in plain text."""

    model: str
    """Id of the LM; tells copies with different weights apart."""
    system: str
    messages: tuple[tuple[str, str], ...]
    """(role, text) in order, without the system message."""
    temperature: float | None = None
    seed: int | None = None
    """Of the sampling; `None` if the call did not set one, or is greedy (temperature 0)."""

    @property
    def user(self) -> str:
        """The last user message: the question itself, after all demonstrations."""
        return next((text for role, text in reversed(self.messages) if role == "user"), "")

    @property
    def text(self) -> str:
        """Everything, one message after the other."""
        return "\n\n".join(filter(None, [self.system, *(text for _, text in self.messages)]))

    def field(self, name: str) -> str | None:
        """Value of an input field in the last user message, as text; `None` if the prompt does not have it.

        Reads `[[ ## name ## ]]` blocks as ChatAdapter writes them, and `name: value` lines; there, a line in the value
        that looks like `word: ` ends it.
        """
        chat = rf"\[\[ ## {re.escape(name)} ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with |\Z)"
        plain = rf"^{re.escape(name)}: (.*?)(?=\n\w+: |\nReply with |\Z)"
        found = re.search(chat, self.user, re.S) or re.search(plain, self.user, re.S | re.M)
        return found and found.group(1).strip()

    def asks_for(self, name: str) -> bool:
        """Whether the prompt names this output field; one that asks for a single plain text names none."""
        return f"`[[ ## {name} ## ]]`" in self.user or f"'{name}:'" in self.user


def prompt_of(request: Request) -> Prompt:
    """What a request asks, in plain text."""
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
    """Answers requests with a Python function and keeps a record; shared by all copies of an LM, also by deep ones.

    Subclasses say what the answer is. The lock protects the record and whatever a subclass counts.
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.requests: list[Prompt] = []
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Nothing: the LM saves what it needs to build a new engine."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """A new engine; DSPy requires the pair of methods."""
        return cls(**state)

    def answer(self, prompt: Prompt) -> str:
        """The reply; subclasses say what it is."""
        raise NotImplementedError

    def complete(self, request: Request) -> Response:
        """Called by DSPy, from many threads at once."""
        prompt = self._note(request)
        if self.latency_s:
            time.sleep(self.latency_s)
        return self._respond(prompt)

    async def acomplete(self, request: Request) -> Response:
        """The same under asyncio."""
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
                f"The script answered {text!r}, expected a text; it was asked:\n{prompt.text}\nCorrect the script."
            )
        usage = LMUsage(input_tokens=len(prompt.text.split()), output_tokens=len(text.split()))
        message = Message.assistant([TextPart(text)])
        return Response(id=None, model=prompt.model, message=message, finish_reason="stop", usage=usage)


class AsyncEngine:
    """The same engine under asyncio: DSPy wants a second object whose `complete` is a coroutine function."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def dump_state(self) -> dict[str, Any]:
        """Nothing; see `Engine.dump_state`."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """DSPy requires the pair of methods; the LM's own state never has this engine."""
        return cls(Engine(**state))

    async def complete(self, request: Request) -> Response:
        """Called by DSPy."""
        return await self.engine.acomplete(request)


class EngineLM(dspy.LM):
    """A `dspy.LM` over one of our engines, whose `rollout_id` becomes the sampling seed, as in `LocalLM`."""

    def __init__(self, model: str, engine: Engine, **kwargs: Any) -> None:
        kwargs.setdefault("cache", False)
        super().__init__(model, engine=engine, async_engine=AsyncEngine(engine), **kwargs)

    @property
    def requests(self) -> tuple[Prompt, ...]:
        """Everything that this LM and its copies were asked, in order of arrival; answers from a cache do not count."""
        with self.engine.lock:
            return tuple(self.engine.requests)

    @property
    def calls(self) -> int:
        """Number of requests."""
        return len(self.requests)

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """See `dspy.LM`; a `rollout_id` is the sampling seed, too."""
        return super().__call__(prompt, messages=messages, **self._add_seed(prompt, kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Like a call, without blocking the event loop."""
        return await super().acall(prompt, messages=messages, **self._add_seed(prompt, kwargs))

    def dump_state(self) -> dict[str, Any]:
        """State without the engines, which a loaded LM builds again."""
        return {key: value for key, value in super().dump_state().items() if key not in ("engine", "async_engine")}

    def _add_seed(self, prompt: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = {**self.kwargs, **kwargs}
        rollout_id = options.get("rollout_id")
        if rollout_id is None or options.get("seed") is not None or isinstance(prompt, Request):
            return kwargs  # a Request carries its own configuration
        return {**kwargs, "seed": rollout_id}


def path_of(function: Callable[..., Any] | None) -> str | None:
    """`module:name` of a function that can be imported, `None` of any other."""
    path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        return path if function_at(path) is function else None
    except (ImportError, AttributeError, ValueError):
        return None


def function_at(path: str | None) -> Callable[..., Any] | None:
    """The function that `path_of` named."""
    if path is None:
        return None
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
