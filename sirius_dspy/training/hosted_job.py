"""One fine-tuning job at a server with OpenAI's API, and the requests about it that must not be made twice."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.openai import OpenAIProvider

from sirius_dspy.errors import TrainingError
from sirius_dspy.redact import redact, remember_secrets
from sirius_dspy.training.hosted_records import RECORD, HostedRecord, read_record
from sirius_dspy.training.refusals import explain, is_transient
from sirius_dspy.training.trainers import TrainingRequest

if TYPE_CHECKING:
    import openai
    from openai.pagination import SyncCursorPage

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"

TIMEOUT_S = 120.0
"""Seconds to wait for an answer, or for its next part."""


@dataclass
class HostedJob:
    """One agent's job, and its record on disk."""

    request: TrainingRequest
    client: openai.OpenAI
    record: HostedRecord
    seen: set[str] = field(default_factory=set)
    """Ids of the events that were reported."""
    is_silent: bool = False
    """Whether the log says that events cannot be read."""

    @property
    def path(self) -> Path:
        """The file of the record."""
        return self.request.workdir / RECORD

    @property
    def suffix(self) -> str:
        """The agent's name, as far as it may be part of the new model's id."""
        return re.sub(r"[^A-Za-z0-9-]+", "-", self.request.agent).strip("-")[:40] or "agent"

    def read(self) -> None:
        """Take up what an earlier call wrote."""
        found = read_record(self.request.workdir)
        if found is not None and found.key == self.record.key:
            self.record.file, self.record.validation, self.record.job = found.file, found.validation, found.job
            self.record.created = found.created or self.record.created
            self.record.is_denied = found.is_denied

    def write(self) -> None:
        """Put the record on disk."""
        self.record.write(self.request.workdir)

    def forget(self) -> None:
        """Remove the record of a job that ended without a model."""
        self.path.unlink(missing_ok=True)

    def upload(self, rows: Sequence[Mapping[str, Any]], name: str) -> str:
        """Upload rows, and return the id of the file."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return id_in(self.client.files.create(file=(name, lines.encode()), purpose="fine-tune"))

    def find(self) -> str:
        """Return the id of a job on the uploaded file, which no other job has; empty if there is none."""
        for found in pages_of(lambda: self.client.fine_tuning.jobs.list(limit=100), set()):
            if found.training_file == self.record.file:
                return found.id
        return ""

    def find_denied(self) -> None:
        """Look on its file for a job that the server denied; without one, the rows have to be uploaded again."""
        found = self.find()
        if not found:
            text = "The server at %s has no job on the rows of agent %r any more, so that another one is started."
            logger.warning(text, self.record.address, self.request.agent)
            self.record.file = self.record.validation = ""
        self.record.job, self.record.is_denied = found, False

    def create(self, hyperparameters: Mapping[str, Any]) -> str:
        """Create the job. After an answer that was lost, look for it before another one is created."""
        method = {"type": "supervised", "supervised": {"hyperparameters": dict(hyperparameters)}}
        settings: dict[str, Any] = {"method": method} if hyperparameters else {}
        if self.record.validation:
            settings["validation_file"] = self.record.validation

        def once() -> str:
            client = self.client.with_options(max_retries=0)
            return id_in(
                client.fine_tuning.jobs.create(
                    model=self.record.model,
                    training_file=self.record.file,
                    suffix=self.suffix,
                    seed=self.request.seed,
                    **settings,
                )
            )

        return _persist(once, self.find)

    def report(self) -> None:
        """Pass on what the server has reported since the last time: losses to the progress, the rest to the log.

        Nothing that the server says here, or does not say, changes the job. So what cannot be read is left out.
        """
        for event in reversed(self._fresh_events()):
            self._report_one(event.message, event.data if isinstance(event.data, Mapping) else {})

    def _report_one(self, message: object, data: Mapping[str, Any]) -> None:
        step, loss = _number(data.get("step")), _number(data.get("train_loss"))
        if step is not None and loss is not None:
            self.request.on_progress(int(step), int(_number(data.get("total_steps")) or step), loss)
        elif isinstance(message, str) and message:
            logger.info("Job %s of agent %r: %s", self.record.job, self.request.agent, redact(message))
        of_all, of_some = _number(data.get("full_valid_loss")), _number(data.get("valid_loss"))
        if (held_out := of_some if of_all is None else of_all) is not None:
            text = "Job %s of agent %r: the loss on the rows that are held out is %.4f."
            logger.info(text, self.record.job, self.request.agent, held_out)

    def _fresh_events(self) -> list[Any]:
        """Return the events that were not seen, newest first; none if the server does not tell."""
        import openai

        events = self.client.with_options(max_retries=0).fine_tuning.jobs  # the next look is the next try
        seen = set(self.seen)
        try:
            fresh = list(pages_of(lambda: events.list_events(self.record.job, limit=100), seen))
        except (openai.OpenAIError, ValueError) as error:
            if not self.is_silent:
                text = "Job %s of agent %r: its losses cannot be shown, but it goes on. %s"
                logger.warning(text, self.record.job, self.request.agent, explain(error))
            self.is_silent = True
            return []
        self.seen = seen
        return fresh

    def failure(self, reason: str) -> TrainingError:
        """Return the error about this job."""
        name = f" {self.record.job!r}" if self.record.job else ""
        return TrainingError(
            f"The job{name} of agent {self.request.agent!r} on {self.record.rows} rows at "
            f"{self.record.address!r}: {reason} Everything collected so far is kept; run the same `compile` "
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
            if attempt == attempts - 1 or not is_transient(error):
                raise
            time.sleep(2.0**attempt / 4)
            if found := find():
                return found
    raise AssertionError("the last attempt returns or raises")


def id_in(answer: Any) -> str:
    """Return the id in an answer.

    Raises:
        ValueError: It is no JSON, such as the page of a proxy, whose text the client gives.
    """
    if not isinstance(getattr(answer, "id", None), str):
        raise ValueError(f"the server answered {str(answer)[:200]!r}")
    return str(answer.id)


def pages_of(ask: Callable[[], SyncCursorPage[Any]], seen: set[str]) -> Iterator[Any]:
    """Yield the entries of all pages of a list, and end at a page with nothing new.

    A server may ignore which page it is asked for, or never say that one is the last.

    Args:
        ask: Returns the first page.
        seen: The ids that are known already; those that are yielded are added.

    Raises:
        ValueError: The answer is no list; see `id_in`.
    """
    page = _page(ask)
    while True:
        fresh = [entry for entry in page.data if isinstance(getattr(entry, "id", None), str) and entry.id not in seen]
        seen.update(entry.id for entry in fresh)
        yield from fresh
        if not (fresh and page.has_next_page()):
            return
        page = _page(page.get_next_page)


def _page(ask: Callable[[], SyncCursorPage[Any]]) -> SyncCursorPage[Any]:
    try:
        page = ask()
    except AttributeError as error:  # the client's, for a body such as `null`
        raise ValueError("the server answered something that is no list") from error
    if not isinstance(getattr(page, "data", None), list):
        raise ValueError(f"the server answered {str(page)[:200]!r}")
    return page


def _number(value: Any) -> float | None:
    """Return a finite number, and `None` for anything else that a server may send."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_hosted(lm: dspy.LM) -> bool:
    """Return whether an LM is fine-tuned with OpenAI's API."""
    return isinstance(lm, dspy.LM) and isinstance(lm.provider, OpenAIProvider)


def client_of(lm: dspy.LM) -> openai.OpenAI:
    """Return a client for the server and with the key of an LM, or of the environment."""
    import openai

    remember_secrets(lm)  # so that no message of the server repeats its key
    return openai.OpenAI(
        api_key=lm.kwargs.get("api_key"), base_url=_given_address(lm), max_retries=4, timeout=TIMEOUT_S
    )


def address_of(lm: dspy.LM) -> str:
    """Return where an LM is fine-tuned."""
    return (_given_address(lm) or default_address()).rstrip("/")


def default_address() -> str:
    """Return where LMs without an address of their own are fine-tuned."""
    return (os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")


def _given_address(lm: dspy.LM) -> str | None:
    address = lm.kwargs.get("api_base") or lm.kwargs.get("base_url")
    return None if address is None else str(address)
