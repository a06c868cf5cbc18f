"""Fine-tuning one agent: the `Trainer` to subclass, and the one that uses whatever provider an LM brings along."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.clients.openai import OpenAIProvider
from dspy.clients.provider import TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat

from sirius_dspy import checks
from sirius_dspy.errors import TrainingError, UnpreparedProgramError
from sirius_dspy.redact import redact, redact_error

logger = logging.getLogger(__name__)

OPENAI_LEAST_ROWS = 10
"""OpenAI fails a job with fewer rows, after the upload."""

TrainFrom = Literal["base", "current"]
"""See `Trainer.train_from`."""

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


class Trainer(ABC):
    """Turns an agent's training set into an LM with new weights. Subclass it and define `train`."""

    train_from: TrainFrom = "base"
    """Where the jobs of an iteration start: from the weights that the student came with, as in the paper, or from the
    `current` ones, those that were kept last."""

    @abstractmethod
    def train(self, request: TrainingRequest) -> dspy.LM:
        """Fine-tune and return the new LM, whose `model` differs from that of every other weight set.

        Raises:
            TrainingError: The job failed, or gave no usable LM.
        """

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """Return the LM of a job that finished before a restart; not called for jobs of the same process.

        Args:
            lm: The LM that training had started from; here the result is a copy of it with the other `model`.
            model: `model` of the LM that `train` had returned.
            workdir: The folder of the job.
        """
        return lm.copy(model=model)

    def check(self, agent: str, lm: dspy.LM) -> None:
        """Refuse, before anything is paid for, an LM that this trainer cannot train; here none is refused.

        Raises:
            UnpreparedProgramError: The LM cannot be fine-tuned; the message says what to change.
        """

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """Refuse, before the first job of an iteration, training sets that are too small; here none is refused.

        Raises:
            TrainingError: There are too few rows.
        """

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """Whether rows may hold images. Agents that read images are refused where they may not, as here."""
        return False


class ProviderTrainer(Trainer):
    """Trains through `lm.finetune`: OpenAI, the embedded `LocalLM`, or any `dspy.Provider` that can fine-tune.

    Args:
        train_kwargs: Passed to the provider on top of the LM's own `train_kwargs`, e.g. `{"n_epochs": 3}` for OpenAI or
            `{"learning_rate": 3e-4}` for `LocalLM`.
        train_from: `base` trains every iteration from the weights the student came with, as the paper does; `current`
            from those that were kept last.

    A provider with a true attribute `writes_weights` is also given `output_dir`, `seed` and `on_progress`; hosted ones
    would refuse such names. DSPy's hosted ones report with `print`: while they train, stdout goes to stderr.
    """

    def __init__(self, train_kwargs: Mapping[str, Any] | None = None, *, train_from: TrainFrom = "base") -> None:
        self.train_kwargs = train_kwargs
        self.train_from = train_from

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`; a provider's own `check()` is asked, too, where it has one."""
        kinds = {
            "train_kwargs": checks.optional(checks.table("names with values, such as `{'n_epochs': 3}`")),
            "train_from": checks.choice("base", "current"),
        }
        checks.check("ProviderTrainer", vars(self), kinds)
        provider = getattr(lm, "provider", None)
        if not isinstance(lm, dspy.LM) or provider is None or not provider.finetunable:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained: the provider of its LM {lm.model!r} does not fine-tune. Give the "
                "agent a `sirius_dspy.LocalLM(...)`, an LM with a provider that can (`dspy.LM('openai/...')`), or "
                f"leave it as it is with `SiriuS(frozen=[{agent!r}])`."
            )
        if isinstance(provider, OpenAIProvider):
            _check_openai(agent, lm)
        own_check = getattr(provider, "check", None)
        if callable(own_check):
            own_check()

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """Refuse, before anything is uploaded, fewer rows than the provider takes.

        Raises:
            TrainingError: There are none, or fewer than OpenAI takes.
        """
        if num_rows == 0:
            raise TrainingError(f"Agent {agent!r} has no training rows.", agent=agent)
        if isinstance(lm.provider, OpenAIProvider) and num_rows < OPENAI_LEAST_ROWS:
            raise TrainingError(
                f"Agent {agent!r} has {num_rows} training rows, and OpenAI takes no file of fewer than "
                f"{OPENAI_LEAST_ROWS}. What was collected is kept in the library. Compile again with more examples or "
                f"more `samples`, or leave the agent as it is with `SiriuS(frozen=[{agent!r}])`.",
                agent=agent,
            )

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """Whether the LM's provider takes rows with images: OpenAI's does, and one that says so by this name."""
        return isinstance(lm.provider, OpenAIProvider) or bool(getattr(lm.provider, "trains_on_images", False))

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`; an interrupt cancels the job before it goes on."""
        self.check_rows(request.agent, request.lm, len(request.rows))
        with _quiet(request.lm.provider):
            rows = [dict(row) for row in request.rows]
            job = request.lm.finetune(rows, TrainDataFormat.CHAT, self._train_kwargs(request))
            try:
                result = _wait(job)
            except BaseException:
                _cancel(job)
                raise
        return _check_result(result, request, job)

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


def _check_openai(agent: str, lm: dspy.LM) -> None:
    """DSPy fine-tunes with the `openai` module's own key and address, whatever the LM was given to answer with.

    Raises:
        UnpreparedProgramError: There is no key, or the LM answers from another server than the one that would train.
    """
    import openai

    if not (openai.api_key or os.environ.get("OPENAI_API_KEY")):
        raise UnpreparedProgramError(
            f"Agent {agent!r} cannot be trained: fine-tuning {lm.model!r} reads its key from the environment. Set "
            "OPENAI_API_KEY, also if the LM has an `api_key`."
        )
    trains_at = str(openai.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
    answers_at = str(lm.kwargs.get("api_base") or lm.kwargs.get("base_url") or trains_at).rstrip("/")
    if answers_at != trains_at:
        raise UnpreparedProgramError(
            f"Agent {agent!r} cannot be trained: {lm.model!r} answers from {answers_at!r}, but its fine-tuning would "
            f"go to {trains_at!r}. Set OPENAI_BASE_URL if the server can fine-tune; else give the agent a "
            f"`sirius_dspy.LocalLM(...)`, or leave it as it is with `SiriuS(frozen=[{agent!r}])`."
        )


def _quiet(provider: Any) -> contextlib.AbstractContextManager[Any]:
    """Keep stdout for results. Trainers of weights on this machine report through `on_progress` and need no `print`."""
    if getattr(provider, "writes_weights", False):
        return contextlib.nullcontext()
    return contextlib.redirect_stdout(sys.stderr)


def _wait(job: TrainingJob) -> Any:
    """Wait in short naps, so that an interrupt is noticed at once on every platform."""
    while True:
        try:
            return job.result(timeout=0.2)
        except FutureTimeoutError:
            if job.thread is not None and not job.thread.is_alive() and not job.done():
                return RuntimeError("The job's thread ended without a result.")  # a provider that called `sys.exit`


def _cancel(job: TrainingJob) -> None:
    """Cancel without hiding why: a job that ended a moment ago refuses to be cancelled."""
    try:
        job.cancel()
    except Exception as error:
        logger.warning("The fine-tuning job%s could not be cancelled.", _format_id(job), exc_info=redact_error(error))


def _format_id(job: TrainingJob) -> str:
    """The provider's id of a job, to look it up there; nothing if it has none."""
    name = getattr(job, "provider_job_id", None)
    return f" {name!r}" if name else ""


def _reason(lm: dspy.LM, job: TrainingJob) -> str:
    """What OpenAI says of a failed job; DSPy gives its status alone. Nothing where it cannot be asked."""
    name = getattr(job, "provider_job_id", None)
    if not name or not isinstance(lm.provider, OpenAIProvider):
        return ""
    import openai

    try:
        error = openai.fine_tuning.jobs.retrieve(name).error
    except Exception:  # the failure itself is what the user must hear of
        return ""
    return redact(f"OpenAI says: {error.message} ({error.code}) ") if error is not None and error.message else ""


def _check_result(result: Any, request: TrainingRequest, job: TrainingJob) -> dspy.LM:
    """DSPy gives a failed job's exception back as its result, and takes any string for a model."""
    if isinstance(result, Exception):
        raise TrainingError(
            f"The job{_format_id(job)} of agent {request.agent!r} failed on {len(request.rows)} rows: {result} "
            f"{_reason(request.lm, job)}Everything collected so far is kept; run the same `compile` again to go on "
            "from there.",
            agent=request.agent,
        ) from result
    if not isinstance(result, dspy.LM) or not isinstance(result.model, str) or result.model == request.lm.model:
        raise TrainingError(
            f"Fine-tuning agent {request.agent!r} gave {getattr(result, 'model', result)!r}, expected an LM with a new "
            "model id.",
            agent=request.agent,
        )
    if result.model.startswith("ft:"):  # OpenAI's bare id would send DSPy through LiteLLM, which is slow
        return result.copy(model=f"openai/{result.model}")
    return result
