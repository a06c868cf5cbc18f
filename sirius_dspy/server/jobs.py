"""Fine-tuning jobs: a queue on disk, and the one thread that works on it."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from sirius_dspy.errors import SiriuSError
from sirius_dspy.redact import redact, redact_error
from sirius_dspy.server.answers import ApiError
from sirius_dspy.server.backend import Backend, Training
from sirius_dspy.server.events import Events
from sirius_dspy.server.files import Files
from sirius_dspy.server.models import Models
from sirius_dspy.server.store import Records, new_id
from sirius_dspy.server.wire import Hyperparameters, JobError, JobObject, JobRequest, Method, Supervised

logger = logging.getLogger(__name__)

_PAUSE_S = 10.0
"""Seconds between two attempts to write to a full disk."""

_ENDED = ("succeeded", "failed", "cancelled")


class Jobs:
    """The jobs. One trains at a time, in the order in which they were created.

    A job that was running when the server ended, however it ended, is queued again.

    Args:
        data: The server's data folder.
        backend: Trains.
        files: Has the rows.
        models: Gets the new models.

    Attributes:
        events: What happened in each job.
    """

    def __init__(self, data: Path, backend: Backend, files: Files, models: Models) -> None:
        self.backend, self.files, self.models = backend, files, models
        self.events = Events(data / "jobs")
        self.records = Records(data / "jobs", JobObject, "fine-tuning job")
        self._changed = threading.Condition()  # guards the status of all jobs
        self._running: tuple[str, threading.Event] | None = None
        self._is_closing = False
        self._worker = threading.Thread(target=self._work, name="fine-tuning")

    def start(self) -> None:
        """Take up the jobs that are left, and wait for more."""
        for job in self.records:
            if job.status == "running":
                self._set(job.id, status="queued")
                self.events.add(job.id, "The server was restarted. The job begins again.", level="warn")
        self._worker.start()

    def close(self) -> None:
        """Stop training, and wait until it has stopped. The job goes on after the next start."""
        with self._changed:
            self._is_closing = True
            if self._running is not None:
                self._running[1].set()
            self._changed.notify_all()
        self._worker.join()

    def create(self, request: JobRequest) -> JobObject:
        """Queue a job.

        Raises:
            ApiError: The model or a file does not exist, or the model cannot be trained on the tools in a file.
        """
        weights = self.models.weights_of(self.models.get(request.model))
        for place in ("training_file", "validation_file"):
            name = getattr(request, place)
            if name is not None and all(record.id != name for record in self.files.records):
                raise ApiError(400, f"`{place}` names no file: {name[:200]!r}. Upload it first.", param=place)
            line = None if name is None else self.files.find_tools(name)
            if line is not None and not self.backend.trains_on_tools(weights):
                raise ApiError(
                    400,
                    f"Line {line} of {name!r} has native tools, which the chat template of {request.model!r} does not "
                    "write. Choose another model, or write tool calls as text.",
                    code="invalid_training_file",
                    param=place,
                )
        job = _new_job(request)
        with self._changed:
            self.events.add(job.id, f"Created fine-tuning job: {job.id}")
            self.records.put(job.id, job)
            self._changed.notify_all()
        return job

    def cancel(self, job_id: str) -> JobObject:
        """Cancel a job that has not ended.

        Raises:
            ApiError: There is no such job, or it has ended.
        """
        with self._changed:
            job = self.records.get(job_id)
            if job.status in _ENDED:
                raise ApiError(400, f"The job has already ended: it has {_PAST[job.status]}.", code="invalid_state")
            if self._running is not None and self._running[0] == job_id:
                self._running[1].set()
            self.events.add(job_id, "The job was cancelled.")
            return self._set(job_id, status="cancelled", finished_at=int(time.time()))

    # The worker

    def _work(self) -> None:
        while not self._is_closing:
            try:
                self._queue_again()
                self._work_on_next()
            except OSError as error:  # the disk is full, so the job's end cannot be written
                logger.error("The data folder cannot be written.", exc_info=error)
                with self._changed:
                    self._changed.wait(_PAUSE_S)

    def _queue_again(self) -> None:
        """Queue the job whose end could not be written: a backend that finds the weights returns at once."""
        with self._changed:
            self._running = None
            for job in self.records:
                if job.status == "running":
                    self._set(job.id, status="queued")

    def _work_on_next(self) -> None:
        claimed = self._claim()
        if claimed is None:
            return
        job, stop = claimed
        try:
            root = self.models.get(job.model).root
            loss = self.backend.train(self._training(job, stop))
        except Exception as error:  # whatever a backend raises ends this job, not the worker
            self._fail(job, error)
        else:
            self._succeed(job, root, loss)

    def _claim(self) -> tuple[JobObject, threading.Event] | None:
        """Wait for the next job, and return it with the event that stops it; `None` when the server ends."""
        with self._changed:
            while not self._is_closing:
                job = next((job for job in self.records if job.status == "queued"), None)
                if job is not None:
                    self._running = (job.id, threading.Event())
                    self.events.add(job.id, "Fine-tuning job started")
                    return self._set(job.id, status="running"), self._running[1]
                self._changed.wait()
        return None

    def _training(self, job: JobObject, stop: threading.Event) -> Training:
        def report(step: int, steps: int, loss: float) -> None:
            self.events.add_step(job.id, step, steps, loss)

        return Training(
            start=self.models.weights_of(self.models.get(job.model)),
            rows=self.files.rows(job.training_file),
            validation=self.files.rows(job.validation_file) if job.validation_file else (),
            hyperparameters=job.hyperparameters,
            seed=job.seed,
            folder=self.models.folder(job.id),
            on_progress=report,
            stop=stop,
        )

    def _succeed(self, job: JobObject, root: str, loss: float | None) -> None:
        with self._changed:
            self._running = None
            if self.records.get(job.id).status != "running":
                return  # it was cancelled in the last moment
            model = self.models.add(job, root)
            if loss is not None:
                self.events.add(job.id, f"Validation loss {loss:.4f}", data={"full_valid_loss": loss})
            self.events.add(job.id, f"New fine-tuned model created: {model.id}")
            self.events.add(job.id, "The job has successfully completed")
            self._set(job.id, status="succeeded", fine_tuned_model=model.id, finished_at=int(time.time()))

    def _fail(self, job: JobObject, error: Exception) -> None:
        with self._changed:
            self._running = None
            if self._is_closing or self.records.get(job.id).status != "running":
                return  # it was stopped, and did not fail
            reason = _reason(job, error)
            self.events.add(job.id, f"The job failed: {reason}", level="error")
            failure = JobError(code="training_failed", message=reason)
            self._set(job.id, status="failed", error=failure, finished_at=int(time.time()))

    def _set(self, job_id: str, **changes: Any) -> JobObject:
        return self.records.put(job_id, self.records.get(job_id).model_copy(update=changes))


def _reason(job: JobObject, error: Exception) -> str:
    """Return what the client is told of an error; what nobody foresaw is only logged."""
    if isinstance(error, ApiError):
        return error.detail
    if isinstance(error, SiriuSError):
        return redact(str(error))
    logger.error("The fine-tuning job %s failed.", job.id, exc_info=redact_error(error))
    return "The server failed. Its log says why."


_PAST = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


def _new_job(request: JobRequest) -> JobObject:
    given = request.method.supervised.hyperparameters if request.method else request.hyperparameters
    hyperparameters = given or Hyperparameters()
    return JobObject(
        id=new_id("ftjob"),
        created_at=int(time.time()),
        model=request.model,
        training_file=request.training_file,
        validation_file=request.validation_file,
        hyperparameters=hyperparameters,
        method=Method(type="supervised", supervised=Supervised(hyperparameters=hyperparameters)),
        seed=request.seed or 0,
        user_provided_suffix=request.suffix,
        metadata=request.metadata,
    )
