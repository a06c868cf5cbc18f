"""The tracking tasks among the example programs; they are defined in `sirius_dspy.demo.tracking`, for the wheel."""

from sirius_dspy.demo.tracking import Event, Shown, TrackingTask, World, boxes, calendar, crown, rooms

__all__ = ["Event", "Shown", "TrackingTask", "World", "boxes", "calendar", "crown", "rooms"]
