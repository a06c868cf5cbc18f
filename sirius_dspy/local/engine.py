"""What an engine is: one weight set that continues prompts, for many threads at once."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from sirius_dspy.local.chat import Chat


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to continue a prompt."""

    max_tokens: int = 256
    """Tokens to write at most; fewer where the context window ends first."""
    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: int | None = None
    """Sample from this many likeliest tokens; `None` is all."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    seed: int | None = None
    """Equal seeds repeat a sample; `None` draws a fresh one."""

    def __post_init__(self) -> None:
        """Refuse what no engine can do, before it reaches a batch that others share.

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
        """A seed that fits the engines' 32 bits: the given one, else a fresh one."""
        return secrets.randbits(31) if self.seed is None else self.seed % 2**31


class Generation(NamedTuple):
    """What a model wrote."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """All tokens that were generated, with the end of the turn and a stop string."""
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """One weight set, ready to answer; called from many threads."""

    chat: Chat
    """The tokenizer and chat template of its weights."""

    def generate(self, prompt: str, options: GenerationOptions) -> Generation:
        """Continue a prompt that already went through the chat template.

        Raises:
            PromptTooLongError: The prompt fills the context window.
            RolloutError: The engine is broken or closed.
        """

    @property
    def failure(self) -> Exception | None:
        """Why this engine can no longer answer; `None` while it can."""

    def close(self) -> None:
        """Give the memory back; calls under way end in a `RolloutError`. Closing again does nothing."""
