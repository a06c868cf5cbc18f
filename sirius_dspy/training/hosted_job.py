"""One fine-tuning job at a server with OpenAI's API, and the requests about it that must not be made twice."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.openai import OpenAIProvider

from sirius_dspy.errors import TrainingError
from sirius_dspy.redact import redact, remember_secrets
from sirius_dspy.training.hosted_records import RECORD, HostedRecord, read_record
from sirius_dspy.training.refusals import is_transient
from sirius_dspy.training.trainers import TrainingRequest

if TYPE_CHECKING:
    import openai

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
    seen: str = ""
    """Id of the last event that was reported."""

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
        page = self.client.fine_tuning.jobs.list(limit=100)
        data_in(page)
        for found in page:  # and of the pages after it
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
        """Pass on what the server has reported since the last time: losses to the progress, the rest to the log."""
        for event in reversed(self._fresh_events()):
            data = event.data if isinstance(event.data, Mapping) else {}
            if {"step", "train_loss"} <= data.keys():
                step = int(data["step"])
                self.request.on_progress(step, int(data.get("total_steps") or step), float(data["train_loss"]))
            elif event.message:
                logger.info("Job %s of agent %r: %s", self.record.job, self.request.agent, redact(event.message))
            loss = data.get("full_valid_loss", data.get("valid_loss"))
            if loss is not None:
                text = "Job %s of agent %r: the loss on the rows that are held out is %.4f."
                logger.info(text, self.record.job, self.request.agent, float(loss))
            self.seen = event.id

    def _fresh_events(self) -> list[Any]:
        """Return the events that were not seen, newest first; none if the server has no events."""
        import openai

        try:
            page = self.client.fine_tuning.jobs.list_events(self.record.job, limit=100)
        except openai.NotFoundError:
            return []
        data_in(page)
        fresh: list[Any] = []
        for event in page:  # and of the pages after it
            if event.id == self.seen:
                break
            fresh.append(event)
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


def data_in(answer: Any) -> list[Any]:
    """Return the list in an answer; see `id_in`."""
    if not isinstance(getattr(answer, "data", None), list):
        raise ValueError(f"the server answered {str(answer)[:200]!r}")
    return list(answer.data)


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
