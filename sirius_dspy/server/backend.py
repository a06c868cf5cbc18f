"""The interface of what answers and trains behind the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sirius_dspy.local.engine import Generation, GenerationOptions, OnText
from sirius_dspy.server.wire import Hyperparameters

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a backend answers with, or trains from."""

    model: str
    """One of the backend's own models."""
    folder: Path | None = None
    """The folder of the job that trained it; `None` for the model itself."""


@dataclass(frozen=True, slots=True)
class Training:
    """One fine-tuning job, as its backend sees it."""

    start: Weights
    rows: Sequence[Mapping[str, Any]]
    """Chats in `messages`, the last of which is the reply to learn; with `tools` if they were offered natively."""
    validation: Sequence[Mapping[str, Any]]
    """Chats that are not trained on; the loss on them is measured at the end."""
    hyperparameters: Hyperparameters
    seed: int
    folder: Path
    """Where the weights are written; it does not exist unless an earlier attempt finished."""
    on_progress: Callable[[int, int, float], None]
    """Called with the step, the number of steps and the loss in nats per token."""
    stop: threading.Event


class Backend(Protocol):
    """Answers and trains, for many threads at once."""

    @property
    def models(self) -> Sequence[str]:
        """The names of the models that are there before any training."""

    def complete(
        self, weights: Weights, messages: Messages, options: GenerationOptions, on_text: OnText | None = None
    ) -> Generation:
        """Continue a chat; see `Engine.generate` for `on_text`.

        Raises:
            PromptTooLongError: The chat fills the context window.
            SiriuSError: The model cannot answer.
        """

    def trains_on_tools(self, weights: Weights) -> bool:
        """Return whether rows may hold native tools, tool calls and their results."""

    def train(self, training: Training) -> float | None:
        """Train, write the weights into the job's folder, and return the loss on the validation rows if there are any.

        The folder appears when it is complete. A repeated call with the same job finds it and returns at once.

        Raises:
            SiriuSError: The job failed, or was stopped.
        """
