"""The fine-tuning jobs of a run directory, with what their server says of them now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sirius_dspy.errors import RunDirError, TrainingError
from sirius_dspy.redact import redact
from sirius_dspy.training.hosted_job import default_address, id_in
from sirius_dspy.training.hosted_records import RECORD, HostedRecord, read_record
from sirius_dspy.training.refusals import explain

_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class ListedJob:
    """One job, for a table."""

    job: str
    """Its id."""
    agent: str
    iteration: int
    state: str
    """What the server says, or `unknown`; a job that is known to have succeeded is not asked about."""
    rows: int
    tokens: int | None
    """What the server counted once it has ended, over all epochs; before, an estimate. `None` if the server chooses the
    number of epochs."""
    is_final: bool
    """Whether the tokens are those that the server counted."""
    usd: float | None
    """US dollars for these tokens; `None` without a price."""
    created: float
    """In seconds since 1970."""


def read_jobs(run_dir: Path) -> list[tuple[int, HostedRecord]]:
    """Return the iteration and record of each job that was created, in order.

    Raises:
        RunDirError: There is no such folder.
    """
    if not run_dir.is_dir():
        raise RunDirError(f"There is no folder {str(run_dir)!r}. Pass the `run_dir` of a compile.")
    files = (run_dir / "weights").glob(f"iteration-*/*/{RECORD}")
    found = [(_iteration(path), read_record(path.parent)) for path in files]
    jobs = [(iteration, record) for iteration, record in found if record is not None and record.job]
    return sorted(jobs, key=lambda item: (item[0], item[1].agent))


def list_jobs(run_dir: Path, usd_per_million: float | None = None) -> tuple[list[ListedJob], str]:
    """Return the jobs of a run directory, and why the state of some is unknown, if it is.

    The key of the environment is sent only to the server of the environment, whatever a run directory says.

    Args:
        run_dir: Of a compile.
        usd_per_million: US dollars for a million tokens of training.

    Raises:
        RunDirError: There is no such folder.
    """
    listed: list[ListedJob] = []
    problem = ""
    for iteration, record in read_jobs(run_dir):
        state, trained = "succeeded" if record.trained_tokens is not None else "unknown", record.trained_tokens
        if state == "unknown":
            try:
                state, trained = _ask(record)
            except TrainingError as error:
                problem = str(error)
        tokens = trained if trained is not None else record.epochs and record.tokens * record.epochs
        usd = None if usd_per_million is None or tokens is None else tokens * usd_per_million / 1e6
        listed.append(
            ListedJob(
                job=record.job,
                agent=record.agent,
                iteration=iteration,
                state=state,
                rows=record.rows,
                tokens=tokens,
                is_final=trained is not None,
                usd=usd,
                created=record.created,
            )
        )
    return listed, problem


def cancel_job(run_dir: Path, job: str) -> str:
    """Cancel one of the jobs of a run directory, and return its state.

    Raises:
        RunDirError: There is no such folder, or it has no such job.
        TrainingError: The server refuses, or may not be asked.
    """
    records = {record.job: record for _, record in read_jobs(run_dir)}
    if job not in records:
        known = ", ".join(records) or "none"
        raise RunDirError(f"The run directory {str(run_dir)!r} has no job {job!r}. Its jobs: {known}.")
    return _ask(records[job], cancel=True)[0]


def _ask(record: HostedRecord, *, cancel: bool = False) -> tuple[str, int | None]:
    """Ask the server for a job's state and trained tokens, perhaps after it was cancelled.

    Raises:
        TrainingError: It refuses, or may not be asked.
    """
    import openai

    if (reason := _why_not(record.address, os.environ)) is not None:
        raise TrainingError(reason, agent=record.agent)
    try:
        with openai.OpenAI(base_url=default_address(), max_retries=2, timeout=30.0) as client:
            call = client.fine_tuning.jobs.cancel if cancel else client.fine_tuning.jobs.retrieve
            answer = call(record.job)
            id_in(answer)
    except (openai.OpenAIError, ValueError) as error:
        raise TrainingError(f"The job {record.job!r} at {record.address!r}: {explain(error)}") from error
    return answer.status, answer.trained_tokens if answer.status == "succeeded" else None


def _why_not(address: str, environment: Mapping[str, str]) -> str | None:
    """Return why the server of a job cannot be asked."""
    if address != redact(default_address()):  # records hold no credentials, which an address may
        return f"To ask the server, set OPENAI_BASE_URL to {address!r}, and {_KEY} to its key."
    return None if environment.get(_KEY) else f"To ask the server at {address!r}, set {_KEY}."


def _iteration(path: Path) -> int:
    number = path.parent.parent.name.removeprefix("iteration-")
    return int(number) if number.isdecimal() else -1
