"""Runs of the calendar written by hand, about appointments that the generator does not have."""

from __future__ import annotations

from sirius_dspy.demo.tracking.task import Shown


def _run(thing: str, start: str, *told: tuple[str, str, str]) -> Shown:
    return Shown(start, f"On which day is the {thing} at the end?", told)


CALENDAR_RUNS = (
    _run(
        "wedding",
        "Monday",
        ("Then everything on Monday moves to Friday.", "Everything on Monday moves to Friday.", "Friday"),
    ),
    _run(
        "trip",
        "Tuesday",
        ("Everything on Sunday moves to Thursday after all.", "Everything on Sunday moves to Thursday.", "Tuesday"),
    ),
    _run(
        "race",
        "Wednesday",
        ("Later everything on Wednesday moves to Saturday.", "Everything on Wednesday moves to Saturday.", "Saturday"),
        (
            "Friday is free. Everything on Saturday moves to Friday.",
            "Everything on Saturday moves to Friday.",
            "Friday",
        ),
    ),
    _run(
        "fair",
        "Thursday",
        ("Everything on Monday moves to Thursday.", "Everything on Monday moves to Thursday.", "Thursday"),
        ("Soon everything on Sunday moves to Monday.", "Everything on Sunday moves to Monday.", "Thursday"),
        ("Everything on Thursday moves to Sunday, and all agree.", "Everything on Thursday moves to Sunday.", "Sunday"),
    ),
    _run(
        "play",
        "Saturday",
        ("Everything on Saturday moves to Tuesday.", "Everything on Saturday moves to Tuesday.", "Tuesday"),
    ),
    _run(
        "vote",
        "Friday",
        (
            "After a storm everything on Wednesday moves to Friday.",
            "Everything on Wednesday moves to Friday.",
            "Friday",
        ),
    ),
    _run(
        "lunch",
        "Sunday",
        (
            "A phone rings. Later everything on Monday moves to Tuesday.",
            "Everything on Monday moves to Tuesday.",
            "Sunday",
        ),
        ("Everything on Sunday moves to Tuesday.", "Everything on Sunday moves to Tuesday.", "Tuesday"),
    ),
    _run(
        "walk",
        "Monday",
        (
            "Everything on Monday moves to Wednesday. Nobody asks why.",
            "Everything on Monday moves to Wednesday.",
            "Wednesday",
        ),
        ("Everything on Monday moves to Saturday.", "Everything on Monday moves to Saturday.", "Wednesday"),
    ),
    _run(
        "debate",
        "Friday",
        ("By a letter everything on Friday moves to Sunday.", "Everything on Friday moves to Sunday.", "Sunday"),
        ("Everything on Sunday moves to Thursday.", "Everything on Sunday moves to Thursday.", "Thursday"),
        ("Everything on Tuesday moves to Thursday, as usual.", "Everything on Tuesday moves to Thursday.", "Thursday"),
    ),
    _run(
        "match",
        "Tuesday",
        (
            "Sunday is a holiday. Everything on Tuesday moves to Sunday.",
            "Everything on Tuesday moves to Sunday.",
            "Sunday",
        ),
    ),
    _run(
        "sale",
        "Thursday",
        ("At last everything on Saturday moves to Monday.", "Everything on Saturday moves to Monday.", "Thursday"),
    ),
    _run(
        "hike",
        "Wednesday",
        (
            "Monday looks good. Everything on Wednesday moves to Monday.",
            "Everything on Wednesday moves to Monday.",
            "Monday",
        ),
        ("Everything on Friday moves to Wednesday.", "Everything on Friday moves to Wednesday.", "Monday"),
    ),
)
