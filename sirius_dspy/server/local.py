"""Answers and trains with `LocalLM` on this machine."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sirius_dspy.checkpoint import load_agent, verify
from sirius_dspy.errors import PromptTooLongError, ServerError, TrainingError
from sirius_dspy.local import LocalLM
from sirius_dspy.local.engine import Generation, GenerationOptions, OnText
from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.local.provider import LocalProvider
from sirius_dspy.local.serving import engines, pool_key
from sirius_dspy.server.backend import Messages, Training, Weights
from sirius_dspy.server.wire import Hyperparameters


class LocalBackend:
    """The embedded models.

    Args:
        lms: Name to LM of the models that are there from the start.

    Raises:
        MissingDependencyError: A package for training is not installed.
    """

    def __init__(self, lms: Mapping[str, LocalLM]) -> None:
        LocalProvider().check()
        self._own = dict(lms)
        self._trained: dict[Path, LocalLM] = {}
        self._lock = threading.Lock()  # guards `_trained`

    @property
    def models(self) -> Sequence[str]:
        """See `Backend.models`."""
        return tuple(self._own)

    def complete(
        self, weights: Weights, messages: Messages, options: GenerationOptions, on_text: OnText | None = None
    ) -> Generation:
        """See `Backend.complete`."""
        lm = self._lm(weights)
        with engines().lend(pool_key(lm.model, lm.device)) as engine:
            return engine.generate(engine.chat.prompt(messages), options, on_text)

    def trains_on_tools(self, weights: Weights) -> bool:
        """See `Backend.trains_on_tools`."""
        lm = self._lm(weights)
        return LocalProvider().trains_on_tools(lm.model)

    def train(self, training: Training) -> float | None:
        """See `Backend.train`."""
        lm = self._lm(training.start)
        settings: dict[str, Any] = {
            **_lora_options(training.hyperparameters, lm.lora),
            "seed": training.seed,
            "output_dir": training.folder,
            "on_progress": training.on_progress,
        }
        LocalProvider(lm.lora, lm.device).finetune_all(lm.model, [training.rows], [settings], training.stop)
        return self._validate(training)

    def _validate(self, training: Training) -> float | None:
        """Return the mean loss in nats per token of the rows that fit into the context window."""
        lm = self._lm(Weights(training.start.model, training.folder))
        scores: list[float] = []
        for row in training.validation:
            if training.stop.is_set():
                raise TrainingError("The job was stopped.")
            try:
                scores += lm.score_row(row)
            except PromptTooLongError:
                continue
        return -fmean(scores) if scores else None

    def _lm(self, weights: Weights) -> LocalLM:
        own = self._own[weights.model]
        if weights.folder is None:
            return own
        with self._lock:
            if weights.folder not in self._trained:
                self._trained[weights.folder] = LocalLM(weights.folder, lora=own.lora, device=own.device)
            return self._trained[weights.folder]


def load_models(names: Sequence[str], checkpoint: Path | None) -> dict[str, LocalLM]:
    """Load models by name, and the agents of a checkpoint under the agents' names.

    Args:
        names: Anything that `LocalLM` takes.
        checkpoint: A folder that `sirius_dspy.save` wrote.

    Raises:
        ServerError: There is nothing to serve, an agent has no local weights, or two models have one name.
        ModelNotFoundError: The weights of a model do not exist.
        CheckpointError: The checkpoint cannot be read.
    """
    lms = {_shown_name(name): LocalLM(name) for name in names}
    for agent in verify(checkpoint).agents if checkpoint else ():
        lm = load_agent(str(checkpoint), agent)
        if not isinstance(lm, LocalLM):
            raise ServerError(f"The agent {agent!r} runs on {lm.model!r}, whose weights are not here to be served.")
        if agent in lms:
            raise ServerError(f"Both a model and an agent are called {agent!r}. Serve them with two servers.")
        lms[agent] = lm
    if not lms:
        raise ServerError("There is no model to serve. Name one with `--model`, or a `--checkpoint`.")
    return lms


def _shown_name(name: str) -> str:
    """Return what clients call a model: files lose their folder, which is nobody's business."""
    return Path(name).stem if name.endswith(".gguf") and Path(name).expanduser().exists() else name


def _lora_options(given: Hyperparameters, defaults: LoraOptions) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if given.n_epochs != "auto":
        options["epochs"] = given.n_epochs
    if given.batch_size != "auto":
        options["batch_size"] = given.batch_size
    if given.learning_rate_multiplier != "auto":
        options["learning_rate"] = defaults.learning_rate * given.learning_rate_multiplier
    return options
