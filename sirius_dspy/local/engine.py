"""The interface of engines: an engine continues prompts with one weight set, for many threads at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from sirius_dspy.local.chat import Chat

OnText = Callable[[str], None]
"""Called with what follows in the text, in the thread that asks, after every token or so; often with nothing, because
later tokens may still change the end of the text. An exception that it raises ends the generation."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to continue a prompt."""

    max_tokens: int = 256
    """Maximum number of tokens to generate; fewer if the context window ends first."""
    temperature: float = 0.0
    """0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability."""
    top_k: int | None = None
    """Sample from this many most likely tokens; `None` means all."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    seed: int | None = None
    """Equal seeds give equal samples; `None` draws a new seed."""

    def __post_init__(self) -> None:
        """Refuse invalid options before they reach a batch that other calls share.

        Raises:
            ValueError: A number is outside its range.
        """
        if self.max_tokens < 1:
            raise ValueError(f"`max_tokens` is {self.max_tokens!r}; expected at least 1.")
        if self.temperature < 0:
            raise ValueError(f"`temperature` is {self.temperature!r}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p!r}; expected a number above 0, at most 1.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"`top_k` is {self.top_k!r}; expected at least 1, or None for all tokens.")

    @property
    def rng_seed(self) -> int:
        """Return the given seed, or a new one, as a 32-bit number."""
        return secrets.randbits(31) if self.seed is None else self.seed % 2**31


class Generation(NamedTuple):
    """The text that a model generated."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Number of generated tokens, including the end of the turn and a stop string."""
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """One weight set that is ready to answer, from many threads."""

    chat: Chat
    """The tokenizer and chat template of its weights."""

    def generate(self, prompt: str, options: GenerationOptions, on_text: OnText | None = None) -> Generation:
        """Continue a prompt that the chat template has rendered.

        Args:
            prompt: The rendered prompt.
            options: How to continue it.
            on_text: Gets the text while it is generated; its pieces together are the text that is returned.

        Raises:
            PromptTooLongError: The prompt fills the context window.
            RolloutError: The engine has failed or is closed.
        """

    def score(self, prompt: str, reply: str) -> list[float]:
        """Return the log-probability of each token of a reply to a rendered prompt, in nats, its end of turn included.

        Raises:
            PromptTooLongError: Prompt and reply do not fit into the context window.
            RolloutError: The engine has failed or is closed.
        """

    @property
    def failure(self) -> Exception | None:
        """The error because of which this engine can no longer answer; `None` while it can."""

    def close(self) -> None:
        """Free the memory. Calls in progress raise a `RolloutError`. Closing again does nothing."""
