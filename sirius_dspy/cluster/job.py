"""One fine-tuning on the cluster, as the compile sees it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from sirius_dspy.cluster.task import Begun, Done, Failed, Message, Piece, Progress, run_job
from sirius_dspy.errors import TrainingError
from sirius_dspy.executors.packing import unpack
from sirius_dspy.training.trainers import TrainingRequest

logger = logging.getLogger(__name__)

OPTIONS = {"num_returns": "streaming", "max_retries": 0}
"""Of each task: its messages come one after another, and `Job` itself begins it again."""

_RESUME = "Everything collected so far is kept; run the same `compile` again to resume."


class Job:
    """One fine-tuning, which begins again if its machine is lost.

    Args:
        ray: The package, connected.
        request: What is asked for; its folder receives the weights.
        parcel: What the machine gets, from `pack_job`.
        resources: What the task reserves.
        max_restarts: How many times it may begin again.
    """

    def __init__(
        self,
        ray: ModuleType,
        request: TrainingRequest,
        parcel: bytes,
        resources: Mapping[str, Any],
        max_restarts: int,
    ) -> None:
        self.request = request
        self.resources = dict(resources)
        self.model = ""
        """That of the new LM, once it is there."""
        self.error: Exception | None = None
        self.has_machine = False
        self.draft = request.workdir.with_name(f".{request.workdir.name}.draft")
        self._ray = ray
        self._parcel = parcel
        self._restarts_left = max_restarts
        self._reported = 0
        self._begin()

    @property
    def is_done(self) -> bool:
        """Whether nothing more comes."""
        return bool(self.model) or self.error is not None

    def _begin(self) -> None:
        self.has_machine = False
        self._repeated = self._reported  # reports that the compile has heard from a machine that is lost
        shutil.rmtree(self.draft, ignore_errors=True)
        task = self._ray.remote(run_job).options(**OPTIONS, **self.resources)
        self.stream: Any = task.remote(self._parcel)
        """The messages of the task, for `ray.wait`."""

    def take(self) -> None:
        """Take the next message, which is there."""
        errors = self._ray.exceptions
        try:
            message: Message = self._ray.get(next(self.stream))
        except errors.RayTaskError as error:
            self._fail(
                f"its machine cannot load the job: {error.cause or error} Its packages and modules must be there, too; "
                "Ray's `runtime_env` brings them.",
                error,
            )
        except (errors.RayError, StopIteration) as error:
            self._lose(error)
        else:
            self._heed(message)

    def _heed(self, message: Message) -> None:
        match message:
            case Begun():
                self.has_machine = True
            case Progress(step, total, loss):
                self._report(step, total, loss)
            case Piece(name, data):
                path = self.draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(data)
            case Done(model):
                if self.draft.exists():
                    shutil.rmtree(self.request.workdir, ignore_errors=True)  # of an earlier call that was killed
                    self.draft.rename(self.request.workdir)
                self.model = model
            case Failed(error):
                cause: Exception = unpack(error)
                self._fail(str(cause), cause)

    def _report(self, step: int, total: int, loss: float) -> None:
        if self._repeated > 0:
            self._repeated -= 1
            return
        self._reported += 1
        self.request.on_progress(step, total, loss)

    def _lose(self, error: Exception) -> None:
        if self._restarts_left == 0:
            self._fail(f"its machines were lost again and again, the last one with: {error}", error)
            return
        self._restarts_left -= 1
        logger.warning("The fine-tuning of agent %r lost its machine and begins again: %s", self.request.agent, error)
        self._begin()

    def _fail(self, why: str, cause: Exception) -> None:
        if isinstance(cause, TrainingError):
            self.error = cause
            return
        agent = self.request.agent
        self.error = TrainingError(f"The fine-tuning of agent {agent!r} on the cluster failed: {why} {_RESUME}")
        self.error.agent = agent
        self.error.__cause__ = cause

    def end(self) -> None:
        """End the task if it has not ended, and leave no partial folder."""
        if not self.is_done:
            with suppress(Exception):
                self._ray.cancel(self.stream, force=True)
        shutil.rmtree(self.draft, ignore_errors=True)
