"""Who receives the events of a compile."""

from __future__ import annotations

import sys

from sirius_dspy.optimizer.cut_replies import CutReplies
from sirius_dspy.tracking.events import Tracker, Trackers
from sirius_dspy.tracking.progress import RichProgress


def make_trackers(tracker: Tracker | None, *others: Tracker) -> Trackers:
    """The user's tracker, and others; without one of the user's, in a terminal, the progress display."""
    if tracker is None and sys.stderr.isatty():
        tracker = RichProgress()
    return Trackers([*([] if tracker is None else [tracker]), CutReplies(), *others])
