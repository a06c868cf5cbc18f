"""Passes losses from the threads of fine-tuning jobs to the thread that writes."""

from __future__ import annotations

import threading
import time

from sirius_dspy.tracking.events import TrainingProgress

Point = tuple[int, float, int]
"""Step, value, and milliseconds since 1970."""


def now_ms() -> int:
    """Return the milliseconds since 1970, which is MLflow's unit of time."""
    return time.time_ns() // 1_000_000


class Curves:
    """Keeps the loss curves of jobs that have not ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects `_points`: jobs add while the compile thread takes
        self._points: dict[tuple[int, str], dict[int, Point]] = {}

    def add(self, event: TrainingProgress) -> None:
        """Keep one loss. A retried job replaces the losses of its first attempt, step by step."""
        point = (event.step, float(event.loss), now_ms())
        with self._lock:
            self._points.setdefault((event.iteration, event.agent), {})[event.step] = point

    def take(self, iteration: int, agent: str) -> list[Point]:
        """Return the curve of a job and remove it."""
        with self._lock:
            return list(self._points.pop((iteration, agent), {}).values())

    def take_all(self) -> dict[tuple[int, str], list[Point]]:
        """Return all curves and remove them."""
        with self._lock:
            points, self._points = self._points, {}
        return {job: list(steps.values()) for job, steps in points.items()}
