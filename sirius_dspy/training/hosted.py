"""Fine-tuning jobs of OpenAI, and of servers with its API: side by side, and taken up again after a restart."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.openai import OpenAIProvider

from sirius_dspy import checks
from sirius_dspy.errors import TrainingError, UnpreparedProgramError
from sirius_dspy.files import write_text
from sirius_dspy.redact import redact, remember_secrets
from sirius_dspy.training.trainers import (
    OPENAI_LEAST_ROWS,
    ProviderTrainer,
    Trainer,
    TrainFrom,
    TrainingRequest,
    too_few_rows,
)
from sirius_dspy.trajectory import digest

if TYPE_CHECKING:
    import openai
    from openai.types.fine_tuning import FineTuningJob

logger = logging.getLogger(__name__)

_RECORD = "job.json"
_ENDED = ("succeeded", "failed", "cancelled")
_LONGEST_PAUSE_S = 60.0
_OPENAI = "https://api.openai.com/v1"

_SETTINGS = {
    "hyperparameters": checks.optional(checks.table("a mapping of names to values, such as `{'n_epochs': 3}`")),
    "train_from": checks.choice("base", "current"),
    "poll_s": checks.number(above=0),
    "patience_s": checks.number(0),
}


class HostedTrainer(Trainer):
    """Fine-tunes `dspy.LM("openai/...")` through OpenAI's API, all agents at the same time.

    The id of each job is on disk before anything waits for it. So a compile that was killed, or interrupted, does not
    pay twice: the same call takes up the jobs that run or have ended meanwhile. While the server does not answer, jobs
    go on, and so does the waiting.

    An LM with an `api_base` is fine-tuned there, with the LM's `api_key`; otherwise at OpenAI, or at `OPENAI_BASE_URL`.
    Agents with other LMs, such as `LocalLM`, are trained by `ProviderTrainer` in the meantime.

    Args:
        hyperparameters: Of the jobs, such as `{"n_epochs": 3}`; the server chooses by default.
        train_from: See `Trainer.train_from`.
        poll_s: Seconds between two looks at a job.
        patience_s: Seconds for which the server may be out of reach while jobs run.

    References:
        https://platform.openai.com/docs/api-reference/fine-tuning
    """

    def __init__(
        self,
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        train_from: TrainFrom = "base",
        poll_s: float = 20.0,
        patience_s: float = 1800.0,
    ) -> None:
        self.hyperparameters = hyperparameters
        self.train_from = train_from
        self.poll_s = poll_s
        self.patience_s = patience_s

    @property
    def _others(self) -> ProviderTrainer:
        return ProviderTrainer(train_from=self.train_from)

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`; asks the server whether this key may fine-tune, which costs nothing."""
        checks.check("HostedTrainer", vars(self), _SETTINGS)
        if not _is_hosted(lm):
            self._others.check(agent, lm)
            return
        import openai

        try:
            _client(lm).fine_tuning.jobs.list(limit=1)
        except openai.OpenAIError as error:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained with {lm.model!r} at {_address(lm)!r}: {_explain(error)} Otherwise "
                f"give the agent a `sirius_dspy.LocalLM(...)`, or freeze it with `SiriuS(frozen=[{agent!r}])`."
            ) from error

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """See `Trainer.check_rows`; OpenAI's own server needs ten."""
        if not _is_hosted(lm):
            self._others.check_rows(agent, lm, num_rows)
        elif num_rows < (least := OPENAI_LEAST_ROWS if _address(lm) == _OPENAI else 1):
            raise too_few_rows(agent, num_rows, f"the server at {_address(lm)!r}", least)

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_images`."""
        return _is_hosted(lm) or self._others.trains_on_images(lm)

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`."""
        return next(self.train_all([request]))

    def train_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """See `Trainer.train_all`. All hosted jobs are started before anything waits for one of them."""
        for request in requests:
            self.check_rows(request.agent, request.lm, len(request.rows))
        jobs = {id(request): self._start(request) for request in requests if _is_hosted(request.lm)}
        others = self._others.train_all([request for request in requests if id(request) not in jobs])
        for request in requests:
            yield self._finish(jobs[id(request)]) if id(request) in jobs else next(others)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`."""
        return lm.copy(model=model) if _is_hosted(lm) else self._others.restore(lm, model, workdir)

    # One job

    def _start(self, request: TrainingRequest) -> _Job:
        """Upload the rows and create the job, unless an earlier call did."""
        import openai

        rows = [{"messages": row["messages"]} for row in request.rows]
        base = (request.lm.finetuning_model or request.lm.model).removeprefix("openai/")
        settings = {**request.lm.train_kwargs, **(self.hyperparameters or {})}
        job = _Job(request, _client(request.lm), digest([rows, base, settings, request.seed, _address(request.lm)]))
        job.read()
        try:
            if job.file and not job.name:
                job.name = job.find()  # the last call may have been killed before it read the answer
            if not job.file:
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                name = f"{job.suffix}.jsonl"
                job.file = _id(job.client.files.create(file=(name, lines.encode()), purpose="fine-tune"))
                job.write()
            if not job.name:
                job.name = job.create(base, settings)
        except (openai.OpenAIError, ValueError) as error:
            raise job.failure(_explain(error)) from error
        job.write()
        return job

    def _finish(self, job: _Job) -> dspy.LM:
        """Wait for the end of a job, and return the new LM."""
        try:
            ended = self._wait(job)
        except KeyboardInterrupt:
            logger.warning("Job %s goes on at the server. The same `compile` takes it up.", job.name)
            raise
        if ended.status != "succeeded" or not ended.fine_tuned_model:
            job.forget()  # so that the next call starts another one
            reason = f"{ended.error.message} ({ended.error.code})" if ended.error and ended.error.message else ""
            raise job.failure(f"it ended as {ended.status!r}. {redact(reason)}".strip())
        return job.request.lm.copy(model=f"openai/{ended.fine_tuned_model.removeprefix('openai/')}")

    def _wait(self, job: _Job) -> FineTuningJob:
        import openai

        lost_at: float | None = None
        pause = self.poll_s
        while True:
            try:
                found = job.client.fine_tuning.jobs.retrieve(job.name)
                _id(found)
                job.report()
                if found.status in _ENDED:
                    return found
                lost_at, pause = None, self.poll_s
            except (openai.OpenAIError, ValueError) as error:  # the latter for a body that is no JSON
                if isinstance(error, openai.NotFoundError):
                    job.forget()
                if not _is_transient(error):
                    raise job.failure(_explain(error)) from error
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > self.patience_s:
                    raise job.failure(f"the server has not answered for {self.patience_s:g} seconds.") from error
                pause = min(2 * pause, max(_LONGEST_PAUSE_S, self.poll_s))
            time.sleep(pause)


@dataclass
class _Job:
    """One agent's job, and its record on disk."""

    request: TrainingRequest
    client: openai.OpenAI
    key: str
    """What the job is made from; a record of other rows or settings does not count."""
    file: str = ""
    name: str = ""
    seen: str = ""
    """Id of the last event that was reported."""

    @property
    def path(self) -> Path:
        return self.request.workdir / _RECORD

    @property
    def suffix(self) -> str:
        """The agent's name, as far as it may be part of the new model's id."""
        return re.sub(r"[^A-Za-z0-9-]+", "-", self.request.agent).strip("-")[:40] or "agent"

    def read(self) -> None:
        """Take up what an earlier call wrote."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(record, dict) and record.get("key") == self.key:
            self.file, self.name = str(record.get("file", "")), str(record.get("job", ""))

    def write(self) -> None:
        """Put the ids on disk at once: they are all that is needed not to pay twice."""
        write_text(self.path, json.dumps({"key": self.key, "file": self.file, "job": self.name}))

    def forget(self) -> None:
        """Remove the record of a job that cannot be taken up."""
        self.path.unlink(missing_ok=True)

    def find(self) -> str:
        """Return the id of a job on the uploaded file, which no other job has; empty if there is none."""
        page = self.client.fine_tuning.jobs.list(limit=100)
        _data(page)
        for found in page:  # and of the pages after it
            if found.training_file == self.file:
                return found.id
        return ""

    def create(self, base: str, hyperparameters: Mapping[str, Any]) -> str:
        """Create the job. After an answer that was lost, look for it before another one is created."""
        method = {"type": "supervised", "supervised": {"hyperparameters": dict(hyperparameters)}}
        settings: dict[str, Any] = {"method": method} if hyperparameters else {}

        def once() -> str:
            client = self.client.with_options(max_retries=0)
            return _id(
                client.fine_tuning.jobs.create(
                    model=base, training_file=self.file, suffix=self.suffix, seed=self.request.seed, **settings
                )
            )

        return _persist(once, self.find)

    def report(self) -> None:
        """Pass the losses that the server has reported since the last time on to the progress."""
        page = _data(self.client.fine_tuning.jobs.list_events(self.name, limit=100))
        fresh = page[: next((number for number, event in enumerate(page) if event.id == self.seen), len(page))]
        for event in reversed(fresh):
            data = event.data if isinstance(event.data, Mapping) else {}
            if {"step", "train_loss"} <= data.keys():
                step = int(data["step"])
                self.request.on_progress(step, int(data.get("total_steps") or step), float(data["train_loss"]))
            elif event.message:
                logger.info("Job %s of agent %r: %s", self.name, self.request.agent, redact(event.message))
        self.seen = page[0].id if page else self.seen

    def failure(self, reason: str) -> TrainingError:
        """Return the error about this job."""
        name = f" {self.name!r}" if self.name else ""
        return TrainingError(
            f"The job{name} of agent {self.request.agent!r} on {len(self.request.rows)} rows at "
            f"{_address(self.request.lm)!r}: {reason} Everything collected so far is kept; run the same `compile` "
            "again to resume. It takes up jobs that are still running.",
            agent=self.request.agent,
        )


def _persist(call: Callable[[], str], find: Callable[[], str], attempts: int = 4) -> str:
    """Make a call that must not be made twice: after a lost answer, look whether it was made."""
    import openai

    for attempt in range(attempts):
        try:
            return call()
        except (openai.OpenAIError, ValueError) as error:
            if attempt == attempts - 1 or not _is_transient(error):
                raise
            time.sleep(2.0**attempt / 4)
            if found := find():
                return found
    raise AssertionError("the last attempt returns or raises")


def _id(answer: Any) -> str:
    """Return the id in an answer; the client gives the text of one that is no JSON, such as the page of a proxy."""
    if not isinstance(getattr(answer, "id", None), str):
        raise ValueError(f"the server answered {str(answer)[:200]!r}")
    return str(answer.id)


def _data(answer: Any) -> list[Any]:
    """Return the list in an answer; see `_id`."""
    if not isinstance(getattr(answer, "data", None), list):
        raise ValueError(f"the server answered {str(answer)[:200]!r}")
    return list(answer.data)


def _is_hosted(lm: dspy.LM) -> bool:
    return isinstance(lm, dspy.LM) and isinstance(lm.provider, OpenAIProvider)


def _client(lm: dspy.LM) -> openai.OpenAI:
    """Return a client for the server and with the key of an LM, or of the environment."""
    import openai

    remember_secrets(lm)  # so that no message of the server repeats its key
    return openai.OpenAI(api_key=lm.kwargs.get("api_key"), base_url=_given_address(lm), max_retries=4, timeout=120.0)


def _given_address(lm: dspy.LM) -> str | None:
    address = lm.kwargs.get("api_base") or lm.kwargs.get("base_url")
    return None if address is None else str(address)


def _address(lm: dspy.LM) -> str:
    return (_given_address(lm) or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")


def _is_transient(error: Exception) -> bool:
    """Return whether a server is out of reach, busy or answers nonsense; a used-up quota does not pass by itself."""
    import openai

    if isinstance(error, openai.RateLimitError):
        return str(error.code) not in _REASONS
    return isinstance(
        error, ValueError | openai.APIConnectionError | openai.InternalServerError | openai.APIResponseValidationError
    )


_REASONS = {
    "insufficient_quota": "The account has no credit left. Add some, or raise its limit.",
    "invalid_api_key": "The key is not valid. Set OPENAI_API_KEY, or the `api_key` of the LM.",
    "model_not_found": "This model cannot be fine-tuned, or not by this account. Choose one that the server lists.",
    "exceeded_quota": "The account may not run more jobs now. Wait for one to end, or ask for a higher limit.",
}
"""Code of a refusal to what it means and what to do."""


def _explain(error: Exception) -> str:
    """Say in plain words why a server refused, with its own message."""
    import openai

    said = redact(str(getattr(error, "message", error)))[:500]
    code = str(getattr(error, "code", "") or "")
    if code in _REASONS:
        return f"{_REASONS[code]} The server says: {said}"
    if isinstance(error, openai.AuthenticationError):
        return f"{_REASONS['invalid_api_key']} The server says: {said}"
    if isinstance(error, openai.PermissionDeniedError):
        return (
            "The key may not fine-tune: its project or role lacks the permission, or fine-tuning is closed for this "
            f"account. The server says: {said}"
        )
    if isinstance(error, openai.NotFoundError):
        return f"The server does not know fine-tuning, this model or this job. The server says: {said}"
    if isinstance(error, openai.APIConnectionError):
        return f"The server cannot be reached ({said})."
    if isinstance(error, openai.APIStatusError):
        return f"The server refused: {said}"
    return f"{said} Set OPENAI_API_KEY, or the `api_key` of the LM."
