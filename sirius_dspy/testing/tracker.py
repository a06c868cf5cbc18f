"""Contract tests for trackers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sirius_dspy.testing.events import Event, compile_events
from sirius_dspy.tracking.events import Tracker, TrainingProgress


class TrackerContract:
    """Tests that every `Tracker` must pass. Subclass it with a fixture `tracker` that returns a new tracker.

    A compile stops calling a tracker that raises, so these tests fail if a hook raises.
    """

    def test_follows_a_whole_compile(self, tracker: Tracker, tmp_path: Path) -> None:
        """Every hook receives its events, with names that DSPy generates."""
        _send(tracker, compile_events(tmp_path))

    def test_leaves_the_events_alone(self, tracker: Tracker, tmp_path: Path) -> None:
        """Other trackers receive the same objects."""
        events = list(compile_events(tmp_path))
        before = copy.deepcopy(events)
        _send(tracker, events)
        assert events == before

    def test_a_failed_compile_leaves_nothing_behind(self, tracker: Tracker, tmp_path: Path) -> None:
        """The same tracker can follow another compile after one that stopped in the middle of an iteration."""
        for status in ("failed", "interrupted"):
            events = list(compile_events(tmp_path / status, run=status, status=status))
            started, ended = events[0], events[-1]
            _send(tracker, [started, ended])
            _send(tracker, [*events[: len(events) // 2], ended])
        _send(tracker, compile_events(tmp_path / "next", run="next"))

    def test_a_compile_can_be_resumed(self, tracker: Tracker, tmp_path: Path) -> None:
        """After a restart, the same run id occurs again."""
        _send(tracker, compile_events(tmp_path, status="interrupted"))
        _send(tracker, compile_events(tmp_path, resumed=True))

    def test_progress_comes_from_another_thread(self, tracker: Tracker, tmp_path: Path) -> None:
        """`on_training_progress` is the only hook that another thread calls."""
        events = list(compile_events(tmp_path))
        _send(tracker, events[:1])
        report = TrainingProgress(iteration=1, agent="solver.predict", step=1, total=1, loss=0.1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(tracker.on_training_progress, report).result()
        _send(tracker, events[-1:])


def _send(tracker: Tracker, events: Iterator[Event] | Sequence[Event]) -> None:
    for hook, event in events:
        getattr(tracker, hook)(event)
