"""Runs of the boxes written by hand, about things that the generator does not have."""

from __future__ import annotations

from sirius_dspy.demo.tracking.task import Shown


def _run(thing: str, start: str, *told: tuple[str, str, str]) -> Shown:
    return Shown(start, f"Which box has the {thing} at the end?", told)


BOXES_RUNS = (
    _run(
        "stamp",
        "red box",
        ("Then the red box is emptied into the green box.", "The red box is emptied into the green box.", "green box"),
    ),
    _run(
        "marble",
        "blue box",
        (
            "The pink box is emptied into the gray box at last.",
            "The pink box is emptied into the gray box.",
            "blue box",
        ),
    ),
    _run(
        "feather",
        "white box",
        (
            "Later the white box is emptied into the brown box.",
            "The white box is emptied into the brown box.",
            "brown box",
        ),
        (
            "The red box is open. The brown box is emptied into the red box.",
            "The brown box is emptied into the red box.",
            "red box",
        ),
    ),
    _run(
        "dime",
        "black box",
        ("The green box is emptied into the black box.", "The green box is emptied into the black box.", "black box"),
        (
            "At dawn the gray box is emptied into the green box.",
            "The gray box is emptied into the green box.",
            "black box",
        ),
        (
            "The black box is emptied into the gray box, and all sigh.",
            "The black box is emptied into the gray box.",
            "gray box",
        ),
    ),
    _run(
        "seed",
        "orange box",
        ("The orange box is emptied into the black box.", "The orange box is emptied into the black box.", "black box"),
    ),
    _run(
        "bolt",
        "silver box",
        (
            "At home the blue box is emptied into the silver box.",
            "The blue box is emptied into the silver box.",
            "silver box",
        ),
    ),
    _run(
        "thimble",
        "yellow box",
        (
            "The pink box is lost. Soon the red box is emptied into the blue box.",
            "The red box is emptied into the blue box.",
            "yellow box",
        ),
        ("The yellow box is emptied into the blue box.", "The yellow box is emptied into the blue box.", "blue box"),
    ),
    _run(
        "badge",
        "purple box",
        (
            "The purple box is emptied into the white box. A dog barks.",
            "The purple box is emptied into the white box.",
            "white box",
        ),
        (
            "The purple box is emptied into the yellow box.",
            "The purple box is emptied into the yellow box.",
            "white box",
        ),
    ),
    _run(
        "ticket",
        "green box",
        (
            "In the shed the green box is emptied into the orange box.",
            "The green box is emptied into the orange box.",
            "orange box",
        ),
        ("The orange box is emptied into the pink box.", "The orange box is emptied into the pink box.", "pink box"),
        (
            "The white box is emptied into the pink box, as usual.",
            "The white box is emptied into the pink box.",
            "pink box",
        ),
    ),
    _run(
        "needle",
        "gray box",
        (
            "Bells ring. The gray box is emptied into the silver box.",
            "The gray box is emptied into the silver box.",
            "silver box",
        ),
    ),
    _run(
        "whistle",
        "brown box",
        (
            "At last the black box is emptied into the red box.",
            "The black box is emptied into the red box.",
            "brown box",
        ),
    ),
    _run(
        "candle",
        "pink box",
        (
            "The blue box is heavy. The pink box is emptied into the blue box.",
            "The pink box is emptied into the blue box.",
            "blue box",
        ),
        ("The gray box is emptied into the pink box.", "The gray box is emptied into the pink box.", "blue box"),
    ),
)
