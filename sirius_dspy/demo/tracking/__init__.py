"""Tracking: who or what holds a thing after the events of a story that is read in parts.

A reader writes the event of a part, a tracker says who holds the thing after it, and a reporter answers the question.
One short answer cannot replace them for any number of events: a transformer of fixed depth cannot follow all swaps
(arXiv:2207.00729).

    crown      people swap hands, and the crown changes hands with them
    boxes      boxes are emptied into others; a coin is in one of them
    rooms      everyone in a room goes to another one
    calendar   everything on a day moves to another one

Splits never share a story, for any seeds, sizes and settings; see `sirius_dspy.demo.generated`.
"""

import dspy

from sirius_dspy.demo.tracking.boxes_runs import BOXES_RUNS
from sirius_dspy.demo.tracking.calendar_runs import CALENDAR_RUNS
from sirius_dspy.demo.tracking.crown_runs import CROWN_RUNS
from sirius_dspy.demo.tracking.rooms_runs import ROOMS_RUNS
from sirius_dspy.demo.tracking.task import Shown, TrackingTask
from sirius_dspy.demo.tracking.world import Event, World
from sirius_dspy.demo.tracking.worlds import BOXES, CALENDAR, CROWN, ROOMS

__all__ = ["Event", "Shown", "TrackingTask", "World", "boxes", "build", "calendar", "crown", "rooms"]

crown = TrackingTask(CROWN, CROWN_RUNS)
boxes = TrackingTask(BOXES, BOXES_RUNS)
rooms = TrackingTask(ROOMS, ROOMS_RUNS)
calendar = TrackingTask(CALENDAR, CALENDAR_RUNS)


def build() -> dspy.Module:
    """Build the team that the demo trains, the one of the crown, without LMs."""
    return crown.build()
