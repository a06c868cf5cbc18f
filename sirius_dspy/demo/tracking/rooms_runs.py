"""Runs of the rooms written by hand, about people that the generator does not have."""

from __future__ import annotations

from sirius_dspy.demo.tracking.task import Shown


def _run(person: str, start: str, *told: tuple[str, str, str]) -> Shown:
    return Shown(start, f"In which room is {person} at the end?", told)


ROOMS_RUNS = (
    _run(
        "Bea",
        "kitchen",
        ("Then everyone in the kitchen goes to the attic.", "Everyone in the kitchen goes to the attic.", "attic"),
    ),
    _run(
        "Carl",
        "hall",
        ("Everyone in the garden goes to the lobby at dusk.", "Everyone in the garden goes to the lobby.", "hall"),
    ),
    _run(
        "Greta",
        "cellar",
        ("At night everyone in the cellar goes to the office.", "Everyone in the cellar goes to the office.", "office"),
        (
            "The hall is dark. Everyone in the office goes to the hall.",
            "Everyone in the office goes to the hall.",
            "hall",
        ),
    ),
    _run(
        "Sven",
        "library",
        ("Everyone in the garage goes to the library.", "Everyone in the garage goes to the library.", "library"),
        ("Soon everyone in the studio goes to the garage.", "Everyone in the studio goes to the garage.", "library"),
        (
            "Everyone in the library goes to the studio, and all yawn.",
            "Everyone in the library goes to the studio.",
            "studio",
        ),
    ),
    _run(
        "Wanda",
        "bedroom",
        ("Everyone in the bedroom goes to the pantry.", "Everyone in the bedroom goes to the pantry.", "pantry"),
    ),
    _run(
        "Axel",
        "lobby",
        ("At dawn everyone in the attic goes to the lobby.", "Everyone in the attic goes to the lobby.", "lobby"),
    ),
    _run(
        "Selma",
        "office",
        (
            "A cat sleeps. Later everyone in the hall goes to the cellar.",
            "Everyone in the hall goes to the cellar.",
            "office",
        ),
        ("Everyone in the office goes to the cellar.", "Everyone in the office goes to the cellar.", "cellar"),
    ),
    _run(
        "Fritz",
        "attic",
        (
            "Everyone in the attic goes to the kitchen. It smells good.",
            "Everyone in the attic goes to the kitchen.",
            "kitchen",
        ),
        ("Everyone in the attic goes to the garden.", "Everyone in the attic goes to the garden.", "kitchen"),
    ),
    _run(
        "Judy",
        "garden",
        (
            "After supper everyone in the garden goes to the library.",
            "Everyone in the garden goes to the library.",
            "library",
        ),
        ("Everyone in the library goes to the bedroom.", "Everyone in the library goes to the bedroom.", "bedroom"),
        (
            "Everyone in the lobby goes to the bedroom, as usual.",
            "Everyone in the lobby goes to the bedroom.",
            "bedroom",
        ),
    ),
    _run(
        "Ivan",
        "studio",
        (
            "The pantry is full. Everyone in the studio goes to the pantry.",
            "Everyone in the studio goes to the pantry.",
            "pantry",
        ),
    ),
    _run(
        "Nora",
        "pantry",
        (
            "At last everyone in the bedroom goes to the garage.",
            "Everyone in the bedroom goes to the garage.",
            "pantry",
        ),
    ),
    _run(
        "Milo",
        "garage",
        (
            "The attic is empty. Everyone in the garage goes to the attic.",
            "Everyone in the garage goes to the attic.",
            "attic",
        ),
        ("Everyone in the cellar goes to the garage.", "Everyone in the cellar goes to the garage.", "attic"),
    ),
)
