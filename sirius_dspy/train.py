"""Fine-tuning one agent: the `Trainer` protocol, and the trainer that uses whatever provider an LM brings along."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dspy
from dspy.clients.provider import TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat

from sirius_dspy.errors import TrainingError, UnpreparedProgramError

ProgressHook = Callable[[int, int, float], None]
"""Called with (step, total steps, loss in nats per completion token)."""


@dataclass(frozen=True)
class TrainingRequest:
    """One agent's fine-tuning job."""

    agent: str
    lm: dspy.LM
    """Where training starts from; it is not changed."""
    rows: Sequence[Mapping[str, Any]]
    """Chat rows, `{"messages": [...]}`, the last message being the completion to learn."""
    workdir: Path
    """A folder for this job alone; a trainer on this machine puts the weights there."""
    seed: int
    on_progress: ProgressHook


class Trainer(Protocol):
    """Turns an agent's training set into an LM with new weights."""

    def check(self, agent: str, lm: dspy.LM) -> None:
        """Refuse, before anything is paid for, an LM that this trainer cannot train.

        Raises:
            UnpreparedProgramError: The LM cannot be fine-tuned; the message says what to change.
        """

    def train(self, request: TrainingRequest) -> dspy.LM:
        """Fine-tune and return the new LM, whose `model` differs from that of every other weight set.

        Raises:
            TrainingError: The job failed, or gave no usable LM.
        """

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """Give back the LM of a job that finished before a restart.

        Args:
            lm: The LM that training had started from.
            model: `model` of the LM that `train` had returned.
            workdir: The folder of the job.
        """


class ProviderTrainer:
    """Trains through `lm.finetune`: OpenAI, the embedded `LocalLM`, or any `dspy.Provider` that can fine-tune.

    Args:
        train_kwargs: Passed to the provider on top of the LM's own `train_kwargs`, e.g. `{"n_epochs": 3}` for OpenAI or
            `{"learning_rate": 3e-4}` for `LocalLM`.

    A provider with a true attribute `writes_weights` is also given `output_dir`, `seed` and `on_progress`; hosted ones
    would refuse such names.
    """

    def __init__(self, train_kwargs: Mapping[str, Any] | None = None) -> None:
        self.train_kwargs = train_kwargs

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`; a provider's own `check()` is asked, too, where it has one."""
        provider = getattr(lm, "provider", None)
        if not isinstance(lm, dspy.LM) or provider is None or not provider.finetunable:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained: the provider of its LM {lm.model!r} does not fine-tune. Give the "
                "agent a `sirius_dspy.LocalLM(...)`, an LM with a provider that can (`dspy.LM('openai/...')`), or "
                f"leave it as it is with `SiriuS(frozen=[{agent!r}])`."
            )
        own_check = getattr(provider, "check", None)
        if callable(own_check):
            own_check()

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`; an interrupt cancels the job before it goes on."""
        if not request.rows:
            raise TrainingError(f"Agent {request.agent!r} has no training rows.", agent=request.agent)
        job = request.lm.finetune(
            [dict(row) for row in request.rows], TrainDataFormat.CHAT, self._train_kwargs(request)
        )
        try:
            result = _wait(job)
        except BaseException:
            job.cancel()
            raise
        return _checked(result, request)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`; a provider that keeps weights in folders finds them by a `restore(model, workdir)`."""
        own_restore = getattr(lm.provider, "restore", None)
        if callable(own_restore):
            own_restore(model, workdir)
        return lm.copy(model=model)

    def _train_kwargs(self, request: TrainingRequest) -> dict[str, Any]:
        kwargs = {**request.lm.train_kwargs, **(self.train_kwargs or {})}
        if getattr(request.lm.provider, "writes_weights", False):
            kwargs |= {"output_dir": str(request.workdir), "seed": request.seed, "on_progress": request.on_progress}
        return kwargs


def _wait(job: TrainingJob) -> Any:
    """Wait in short naps, so that an interrupt is noticed at once on every platform."""
    while True:
        try:
            return job.result(timeout=0.2)
        except FutureTimeoutError:
            time.sleep(0)


def _checked(result: Any, request: TrainingRequest) -> dspy.LM:
    """DSPy gives a failed job's exception back as its result, and takes any string for a model."""
    if isinstance(result, Exception):
        raise TrainingError(
            f"Fine-tuning agent {request.agent!r} on {len(request.rows)} rows failed: {result} Everything collected "
            "so far is kept; run the same `compile` again to go on from there.",
            agent=request.agent,
        ) from result
    if not isinstance(result, dspy.LM) or not isinstance(result.model, str) or result.model == request.lm.model:
        raise TrainingError(
            f"Fine-tuning agent {request.agent!r} gave {getattr(result, 'model', result)!r}, expected an LM with a new "
            "model id.",
            agent=request.agent,
        )
    return result
