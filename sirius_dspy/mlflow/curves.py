"""Losses on their way from the threads of fine-tuning jobs to the thread that writes."""

from __future__ import annotations

import threading
import time

from sirius_dspy.tracking.events import TrainingProgress

Point = tuple[int, float, int]
"""Step, value, and milliseconds since 1970."""


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return time.time_ns() // 1_000_000


class Curves:
    """The loss curves of jobs that have not ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects `_points`: jobs add while the compile thread takes
        self._points: dict[tuple[int, str], dict[int, Point]] = {}

    def add(self, event: TrainingProgress) -> None:
        """Keep one loss. By step: a job that is retried replaces what its first try reported."""
        point = (event.step, float(event.loss), now_ms())
        with self._lock:
            self._points.setdefault((event.iteration, event.agent), {})[event.step] = point

    def take(self, iteration: int, agent: str) -> list[Point]:
        """The curve of a job, which is forgotten here."""
        with self._lock:
            return list(self._points.pop((iteration, agent), {}).values())

    def take_all(self) -> dict[tuple[int, str], list[Point]]:
        """All curves, which are forgotten here."""
        with self._lock:
            points, self._points = self._points, {}
        return {job: list(steps.values()) for job, steps in points.items()}
