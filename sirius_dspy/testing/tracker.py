"""What every tracker must bear."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sirius_dspy.testing.events import Event, compile_events
from sirius_dspy.tracking.events import Tracker, TrainingProgress


class TrackerContract:
    """What every `Tracker` must bear. Subclass it with a fixture `tracker` that gives a new tracker.

    A tracker that raises is left out for the rest of a compile, so each of these tests fails where it would go silent.
    """

    def test_follows_a_whole_compile(self, tracker: Tracker, tmp_path: Path) -> None:
        """Every hook gets its events, with names as DSPy makes them."""
        _tell(tracker, compile_events(tmp_path))

    def test_leaves_the_events_alone(self, tracker: Tracker, tmp_path: Path) -> None:
        """Other trackers get the same objects."""
        events = list(compile_events(tmp_path))
        before = copy.deepcopy(events)
        _tell(tracker, events)
        assert events == before

    def test_a_failed_compile_leaves_nothing_behind(self, tracker: Tracker, tmp_path: Path) -> None:
        """The same tracker follows the next compile, although the last one stopped in the middle of an iteration."""
        for status in ("failed", "interrupted"):
            events = list(compile_events(tmp_path / status, run=status, status=status))
            started, ended = events[0], events[-1]
            _tell(tracker, [started, ended])
            _tell(tracker, [*events[: len(events) // 2], ended])
        _tell(tracker, compile_events(tmp_path / "next", run="next"))

    def test_a_compile_can_be_resumed(self, tracker: Tracker, tmp_path: Path) -> None:
        """The same run id comes again after a restart."""
        _tell(tracker, compile_events(tmp_path, status="interrupted"))
        _tell(tracker, compile_events(tmp_path, resumed=True))

    def test_progress_comes_from_another_thread(self, tracker: Tracker, tmp_path: Path) -> None:
        """`on_training_progress` is the one hook that the compile's own thread does not call."""
        events = list(compile_events(tmp_path))
        _tell(tracker, events[:1])
        report = TrainingProgress(iteration=1, agent="solver.predict", step=1, total=1, loss=0.1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(tracker.on_training_progress, report).result()
        _tell(tracker, events[-1:])


def _tell(tracker: Tracker, events: Iterator[Event] | Sequence[Event]) -> None:
    for hook, event in events:
        getattr(tracker, hook)(event)
