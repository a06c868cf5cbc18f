"""Trainers fine-tune one agent: `Trainer` is the base class, `ProviderTrainer` uses the provider of the LM."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
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
from sirius_dspy.training.last_replies import learn_last_replies

logger = logging.getLogger(__name__)

OPENAI_LEAST_ROWS = 10
"""With fewer rows, OpenAI fails a job after the upload."""

TrainFrom = Literal["base", "current"]
"""See `Trainer.train_from`."""

ProgressHook = Callable[[int, int, float], None]
"""Called with (step, total steps, loss in nats per completion token)."""


@dataclass(frozen=True)
class TrainingRequest:
    """One agent's fine-tuning job."""

    agent: str
    lm: dspy.LM
    """The LM from which training starts; it is not changed."""
    rows: Sequence[Mapping[str, Any]]
    """Chat rows, `{"messages": [...]}`; the last message is the completion to learn. A row whose prompt offered tools
    natively has `tools` in OpenAI's format, and one that does not count like the others has a `weight`."""
    workdir: Path
    """A folder for this job only; a trainer on this machine writes the weights into it."""
    seed: int
    on_progress: ProgressHook
    pairs: Sequence[Mapping[str, Any]] = ()
    """Preference pairs in TRL's conversational format, `{"prompt", "chosen", "rejected"}` with lists of messages, from
    the repairs of the iteration; empty unless `Trainer.wants_pairs`."""


class Trainer(ABC):
    """Turns an agent's training set into an LM with new weights. Subclass it and define `train`."""

    train_from: TrainFrom = "base"
    """The weights from which the jobs of an iteration start: `base`, the initial weights of the student, as in the
    paper, or
    `current`, the ones that were kept last."""

    wants_pairs: bool = False
    """Whether requests are to hold `pairs`."""

    @property
    def trains_like(self) -> Trainer:
        """The trainer that gives the same weights, here itself; a compile may be resumed with one for the other."""
        return self

    @abstractmethod
    def train(self, request: TrainingRequest) -> dspy.LM:
        """Fine-tune and return the new LM, whose `model` differs from that of every other weight set.

        Raises:
            TrainingError: The job failed, or returned no usable LM.
        """

    def train_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """Yield the new LM of each request, in order, each as soon as it is there.

        This implementation trains one after another, and begins a job when its LM is asked for. A trainer that can
        train several agents at once overrides it; the result of an agent must not depend on which others are trained.

        Raises:
            TrainingError: A job failed.
        """
        for request in requests:
            yield self.train(request)

    def order(self, requests: Sequence[TrainingRequest]) -> list[TrainingRequest]:
        """Return the requests in the order in which `train_all` is to yield their LMs, here as they are.

        A trainer whose jobs partly run elsewhere puts these last, so that nothing waits for them that need not.
        """
        return list(requests)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """Return the LM of a job that finished before a restart.

        Args:
            lm: The LM from which training started. This implementation returns a copy of it with the new `model`.
            model: The `model` of the LM that `train` returned.
            workdir: The folder of the job.
        """
        return lm.copy(model=model)

    def check(self, agent: str, lm: dspy.LM) -> None:
        """Refuse an LM that this trainer cannot train; this implementation accepts all. Called before any LM call.

        Raises:
            UnpreparedProgramError: The LM cannot be fine-tuned; the message says what to change.
        """

    def check_agents(self, agents: Collection[str]) -> None:
        """Refuse settings about agents that are not trained; this implementation has none. Called before any LM call.

        Args:
            agents: The names of all that are trained, with that of a critic that learns.

        Raises:
            SettingsError: A setting names another one.
        """

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """Refuse training sets that are too small; this implementation accepts all. Called before the first job.

        Raises:
            TrainingError: There are too few rows.
        """

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """Return whether rows may contain images, here false. If not, agents that read images are refused."""
        return False

    def trains_on_tools(self, lm: dspy.LM) -> bool:
        """Return whether rows may hold native tool calls, their results and `tools`, here false.

        If not, agents that call tools natively are refused.
        """
        return False

    def price(self, lm: dspy.LM) -> float | None:
        """Return US dollars per million trained tokens: here 0, as on this machine; `None` if nobody knows."""
        return 0.0

    def num_epochs(self, lm: dspy.LM, num_rows: int) -> int:
        """Return how often a job reads its rows, here once. Plans ask, if the trainer has a price."""
        return 1

    def trained_tokens(self, request: TrainingRequest) -> int:
        """Return the tokens that a job is charged for, over all epochs, here 0.

        Before the job has ended, this is an estimate from its rows; afterwards, it is what the server counted.
        """
        return 0

    def has_begun(self, request: TrainingRequest) -> bool:
        """Return whether an earlier call began the job, so that it costs nothing more; here false."""
        return False


class ProviderTrainer(Trainer):
    """Trains through `lm.finetune`: OpenAI, the embedded `LocalLM`, or any `dspy.Provider` that can fine-tune.

    Args:
        train_kwargs: Passed to the provider in addition to the LM's `train_kwargs`, e.g. `{"n_epochs": 3}` for OpenAI
            or `{"learning_rate": 3e-4}` for `LocalLM`.
        train_from: `base` trains every iteration from the initial weights of the student, as in the paper; `current`
            from the weights that were kept last.

    A provider whose attribute `weighs_rows` is true receives the `weight` of rows, which others would refuse.
    A provider whose attribute `writes_weights` is true also receives `output_dir`, `seed` and `on_progress`, which
    hosted providers would refuse. DSPy's hosted providers print their progress; while they train, stdout is redirected
    to stderr.
    """

    def __init__(self, train_kwargs: Mapping[str, Any] | None = None, *, train_from: TrainFrom = "base") -> None:
        self.train_kwargs = train_kwargs
        self.train_from = train_from

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`; the `check()` of the provider is also called if it has one."""
        kinds = {
            "train_kwargs": checks.optional(checks.table("a mapping of names to values, such as `{'n_epochs': 3}`")),
            "train_from": checks.choice("base", "current"),
        }
        checks.check("ProviderTrainer", vars(self), kinds)
        provider = getattr(lm, "provider", None)
        if not isinstance(lm, dspy.LM) or provider is None or not provider.finetunable:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained: the provider of its LM {lm.model!r} does not fine-tune. Give the "
                "agent a `sirius_dspy.LocalLM(...)`, an LM with a provider that can (`dspy.LM('openai/...')`), or "
                f"freeze it with `SiriuS(frozen=[{agent!r}])`."
            )
        if isinstance(provider, OpenAIProvider):
            _check_openai(agent, lm)
        own_check = getattr(provider, "check", None)
        if callable(own_check):
            own_check()

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """Refuse fewer rows than the provider accepts, before they are uploaded.

        Raises:
            TrainingError: There are no rows, or fewer than OpenAI accepts.
        """
        if num_rows == 0:
            raise TrainingError(f"Agent {agent!r} has no training rows.", agent=agent)
        if isinstance(lm.provider, OpenAIProvider) and num_rows < OPENAI_LEAST_ROWS:
            raise too_few_rows(agent, num_rows, "OpenAI", OPENAI_LEAST_ROWS)

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """Return whether the LM's provider accepts rows with images: OpenAI's does, and any that declares it."""
        return isinstance(lm.provider, OpenAIProvider) or bool(getattr(lm.provider, "trains_on_images", False))

    def trains_on_tools(self, lm: dspy.LM) -> bool:
        """Return whether the LM's provider declares so, for its model; DSPy's for OpenAI accepts only texts."""
        declared = getattr(getattr(lm, "provider", None), "trains_on_tools", False)
        return bool(declared(lm.finetuning_model or lm.model) if callable(declared) else declared)

    def price(self, lm: dspy.LM) -> float | None:
        """See `Trainer.price`; OpenAI takes one that only `HostedTrainer` can be told."""
        return None if isinstance(lm.provider, OpenAIProvider) else 0.0

    def order(self, requests: Sequence[TrainingRequest]) -> list[TrainingRequest]:
        """See `Trainer.order`; requests that can be trained together become neighbors."""
        groups: dict[Hashable, list[TrainingRequest]] = {}
        for request in requests:
            groups.setdefault(_shared_base(request), []).append(request)
        return list(itertools.chain.from_iterable(groups.values()))

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`; an interrupt cancels the job before it propagates."""
        self.check_rows(request.agent, request.lm, len(request.rows))
        with _quiet(request.lm.provider):
            job = request.lm.finetune(_rows(request), TrainDataFormat.CHAT, self._train_kwargs(request))
            try:
                result = _wait(job)
            except BaseException:
                _cancel(job)
                raise
        return _check_result(result, request, job)

    def train_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """See `Trainer.train_all`. Neighbors with the same base and provider are trained together if it can do that.

        A provider can if it has `finetune_all(model, train_data, train_kwargs)`, which takes a list of rows and a table
        of settings for each agent and returns the ids of the new weights, of all agents or of none. Providers that are
        different objects count as the same if both have an equal `trains_like`. A subclass with its own `train` trains
        one after another.
        """
        if type(self).train is not ProviderTrainer.train:
            yield from super().train_all(requests)
            return
        for _, group in itertools.groupby(requests, _shared_base):
            together = list(group)
            if len(together) > 1:
                yield from self._train_together(together)
            else:
                yield self.train(together[0])

    def _train_together(self, requests: Sequence[TrainingRequest]) -> list[dspy.LM]:
        for request in requests:
            self.check_rows(request.agent, request.lm, len(request.rows))
        lm = requests[0].lm
        provider: Any = lm.provider
        rows, settings = [_rows(request) for request in requests], [self._train_kwargs(request) for request in requests]
        try:
            models = provider.finetune_all(lm.finetuning_model or lm.model, rows, settings)
        except Exception as error:
            agents = ", ".join(repr(request.agent) for request in requests)
            raise TrainingError(
                f"The job of the agents {agents} failed: {error} Everything collected so far is kept; run the same "
                "`compile` again to resume."
            ) from error
        trained = [request.lm.copy(model=model) for request, model in zip(requests, models, strict=True)]
        return [_check_result(*pair, None) for pair in zip(trained, requests, strict=True)]

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`; a provider that keeps weights in folders finds them with `restore(model, workdir)`."""
        own_restore = getattr(lm.provider, "restore", None)
        if callable(own_restore):
            own_restore(model, workdir)
        return lm.copy(model=model)

    def _train_kwargs(self, request: TrainingRequest) -> dict[str, Any]:
        kwargs = {**request.lm.train_kwargs, **(self.train_kwargs or {})}
        if getattr(request.lm.provider, "writes_weights", False):
            kwargs |= {"output_dir": str(request.workdir), "seed": request.seed, "on_progress": request.on_progress}
        return kwargs


def too_few_rows(agent: str, num_rows: int, server: str, least: int) -> TrainingError:
    """Return the error about a training set that a server would refuse."""
    return TrainingError(
        f"Agent {agent!r} has {num_rows} training rows, but {server} requires at least {least}. The collected runs are "
        "kept in the library. Compile again with more examples or more `samples`, or freeze the agent with "
        f"`SiriuS(frozen=[{agent!r}])`.",
        agent=agent,
    )


def _shared_base(request: TrainingRequest) -> Hashable:
    """Equal for requests that may be trained together."""
    provider = request.lm.provider
    is_able = callable(getattr(provider, "finetune_all", None))
    trains_like = getattr(provider, "trains_like", id(provider))
    return (trains_like, request.lm.finetuning_model or request.lm.model) if is_able else id(request)


def _rows(request: TrainingRequest) -> list[dict[str, Any]]:
    """Copy the rows, with the weights that the provider takes: of replies, of rows, or none."""
    if isinstance(request.lm.provider, OpenAIProvider):
        return learn_last_replies(request.rows)
    left_out = () if getattr(request.lm.provider, "weighs_rows", False) else ("weight",)
    return [{name: value for name, value in row.items() if name not in left_out} for row in request.rows]


def _check_openai(agent: str, lm: dspy.LM) -> None:
    """Check key and address: DSPy fine-tunes with those of the `openai` module and not with those of the LM.

    Raises:
        UnpreparedProgramError: There is no key, or the LM uses another server than fine-tuning would.
    """
    import openai

    if not (openai.api_key or os.environ.get("OPENAI_API_KEY")):
        raise UnpreparedProgramError(
            f"Agent {agent!r} cannot be trained: fine-tuning {lm.model!r} reads its key from the environment. Set "
            "OPENAI_API_KEY, even if the LM has an `api_key`."
        )
    trains_at = str(openai.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
    answers_at = str(lm.kwargs.get("api_base") or lm.kwargs.get("base_url") or trains_at).rstrip("/")
    if answers_at != trains_at:
        raise UnpreparedProgramError(
            f"Agent {agent!r} cannot be trained: {lm.model!r} answers from {answers_at!r}, but its fine-tuning would "
            f"use {trains_at!r}. Set OPENAI_BASE_URL if the server can fine-tune; otherwise give the agent a "
            f"`sirius_dspy.LocalLM(...)`, or freeze it with `SiriuS(frozen=[{agent!r}])`."
        )


def _quiet(provider: Any) -> contextlib.AbstractContextManager[Any]:
    """Redirect stdout to stderr for hosted providers, which print; local ones report through `on_progress`."""
    if getattr(provider, "writes_weights", False):
        return contextlib.nullcontext()
    return contextlib.redirect_stdout(sys.stderr)


def _wait(job: TrainingJob) -> Any:
    """Wait in short intervals, so that an interrupt is noticed at once on every platform."""
    while True:
        try:
            return job.result(timeout=0.2)
        except FutureTimeoutError:
            if job.thread is not None and not job.thread.is_alive() and not job.done():
                return RuntimeError("The job's thread ended without a result.")  # a provider that called `sys.exit`


def _cancel(job: TrainingJob) -> None:
    """Cancel a job, and only log if that fails, e.g. because the job has just ended."""
    try:
        job.cancel()
    except Exception as error:
        logger.warning("The fine-tuning job%s could not be cancelled.", _format_id(job), exc_info=redact_error(error))


def _format_id(job: TrainingJob | None) -> str:
    """Format the provider's id of a job for a message; empty if it has none."""
    name = getattr(job, "provider_job_id", None)
    return f" {name!r}" if name else ""


def _reason(lm: dspy.LM, job: TrainingJob | None) -> str:
    """Return OpenAI's message about a failed job, which DSPy does not pass on; empty if there is none."""
    name = getattr(job, "provider_job_id", None)
    if not name or not isinstance(lm.provider, OpenAIProvider):
        return ""
    import openai

    try:
        error = openai.fine_tuning.jobs.retrieve(name).error
    except Exception:  # the failure of the job is more important
        return ""
    return redact(f"OpenAI says: {error.message} ({error.code}) ") if error is not None and error.message else ""


def _check_result(result: Any, request: TrainingRequest, job: TrainingJob | None) -> dspy.LM:
    """Check the result of a job: DSPy returns the exception of a failed job, and accepts any string as a model."""
    if isinstance(result, Exception):
        raise TrainingError(
            f"The job{_format_id(job)} of agent {request.agent!r} failed on {len(request.rows)} rows: {result} "
            f"{_reason(request.lm, job)}Everything collected so far is kept; run the same `compile` again to "
            "resume.",
            agent=request.agent,
        ) from result
    if not isinstance(result, dspy.LM) or not isinstance(result.model, str) or result.model == request.lm.model:
        raise TrainingError(
            f"Fine-tuning agent {request.agent!r} returned {getattr(result, 'model', result)!r}, expected an LM with a "
            "new model id.",
            agent=request.agent,
        )
    if result.model.startswith("ft:"):  # with OpenAI's bare id, DSPy would use LiteLLM, which is slow
        return result.copy(model=f"openai/{result.model}")
    return result
