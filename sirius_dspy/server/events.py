"""What happened in each job: one file of lines per job, which grows while it trains."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Literal

from sirius_dspy.files import append_line
from sirius_dspy.server.store import new_id
from sirius_dspy.server.wire import JobEvent


class Events:
    """The events of all jobs.

    Args:
        folder: Where their files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        job_id: str,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        data: dict[str, float] | None = None,
    ) -> None:
        """Add an event to a job.

        Args:
            job_id: Of the job.
            message: For people.
            level: How bad it is.
            data: Numbers for programs; those that are not finite, which JSON cannot hold, are left out.
        """
        event = JobEvent(
            id=new_id("ftevent"),
            created_at=int(time.time()),
            level=level,
            message=message,
            type="message" if data is None else "metrics",
            data=data and {name: value for name, value in data.items() if math.isfinite(value)},
        )
        append_line(self._path(job_id), event.model_dump_json())

    def add_step(self, job_id: str, step: int, steps: int, loss: float) -> None:
        """Add the loss of a training step."""
        numbers = {"step": step, "total_steps": steps, "train_loss": loss}
        self.add(job_id, f"Step {step}/{steps}: training loss={loss:.4f}", data=numbers)

    def of(self, job_id: str) -> list[JobEvent]:
        """Return the events of a known job, oldest first; a line that was cut off by a kill is left out."""
        path = self._path(job_id)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [JobEvent.model_validate_json(line) for line in lines if line.endswith(b"}\n")]

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.jsonl"
