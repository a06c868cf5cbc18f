"""Runs of the ledgers written by hand, with names that the generator does not have."""

from __future__ import annotations

from dataclasses import dataclass

import dspy


@dataclass(frozen=True)
class Shown:
    """A run that was written by hand.

    Attributes:
        subject: What the question is about.
        start: First note.
        told: For each part, its text and the note after it.
    """

    subject: str
    start: str
    told: tuple[tuple[str, str], ...]

    @property
    def notes(self) -> list[str]:
        """The notes after all parts."""
        return [note for _, note in self.told]

    def example(self, question: str) -> dspy.Example:
        """Return the example of this run, with a question about `{subject}`."""
        parts = [part for part, _ in self.told]
        asked = question.format(subject=self.subject)
        example = dspy.Example(start=self.start, parts=parts, question=asked, answer=self.notes[-1])
        return example.with_inputs("start", "parts", "question")


def _run(subject: str, start: str, *told: tuple[str, str]) -> Shown:
    return Shown(subject, start, told)


ENTRIES_RUNS = (
    _run("hall", "Bea", ("Carl enters the hall.", "Carl")),
    _run("kitchen", "Olga", ("Sven enters the attic.", "Olga")),
    _run(
        "garden",
        "Greta",
        ("Timo enters the garden. Rolf leaves the garden.", "Timo"),
        ("Rolf enters the cellar.", "Timo"),
    ),
    _run(
        "library",
        "Milo",
        ("Dora leaves the library.", "Milo"),
        ("Lars enters the office. Dora enters the library.", "Dora"),
        ("Lars enters the library.", "Lars"),
    ),
    _run("office", "Wanda", ("Ulf leaves the office.", "Wanda")),
    _run("attic", "Jette", ("Ralf enters the attic. Britt enters the lobby.", "Ralf")),
    _run("cellar", "Pia", ("Joel enters the garage.", "Pia"), ("Kurt enters the cellar.", "Kurt")),
    _run(
        "garage",
        "Axel",
        ("Tilda enters the garage. Gus enters the garage.", "Gus"),
        ("Tilda leaves the garage.", "Gus"),
    ),
    _run(
        "lobby",
        "Selma",
        ("Boris enters the lobby.", "Boris"),
        ("Cleo enters the hall. Ute leaves the lobby.", "Boris"),
        ("Ute enters the lobby.", "Ute"),
    ),
    _run("bedroom", "Hedda", ("Knut enters the pantry. Liv leaves the pantry.", "Hedda")),
    _run("pantry", "Fritz", ("Mabel enters the kitchen. Ella enters the pantry.", "Ella")),
    _run("hall", "Dirk", ("Nora enters the hall. Ivan enters the attic.", "Nora"), ("Ivan enters the hall.", "Ivan")),
    _run(
        "kitchen",
        "Sara",
        ("Todd enters the office.", "Sara"),
        ("Judy leaves the kitchen.", "Sara"),
        ("Abel enters the kitchen. Judy enters the office.", "Abel"),
    ),
)

SHELLS_RUNS = (
    _run("Bea", "3", ("Bea finds 2 shells.", "5")),
    _run("Olga", "6", ("Sven finds 4 shells.", "6")),
    _run("Greta", "7", ("Greta loses 3 shells.", "4"), ("Timo loses 2 shells. Greta finds 5 shells.", "9")),
    _run(
        "Milo",
        "4",
        ("Milo finds 1 shell.", "5"),
        ("Lars finds 3 shells.", "5"),
        ("Milo loses 2 shells. Milo finds 4 shells.", "7"),
    ),
    _run("Wanda", "8", ("Wanda loses 5 shells.", "3")),
    _run("Jette", "2", ("Jette finds 5 shells. Ralf loses 1 shell.", "7")),
    _run("Pia", "5", ("Joel loses 4 shells.", "5"), ("Pia loses 1 shell.", "4")),
    _run("Axel", "9", ("Axel finds 3 shells. Axel loses 4 shells.", "8"), ("Gus finds 2 shells.", "8")),
    _run(
        "Selma",
        "2",
        ("Selma finds 4 shells.", "6"),
        ("Selma finds 3 shells.", "9"),
        ("Boris finds 5 shells. Selma loses 1 shell.", "8"),
    ),
    _run("Hedda", "7", ("Knut finds 3 shells. Hedda finds 4 shells.", "11")),
    _run("Fritz", "6", ("Fritz loses 4 shells. Mabel finds 1 shell.", "2")),
    _run("Nora", "3", ("Nora finds 3 shells.", "6"), ("Dirk loses 5 shells. Nora loses 2 shells.", "4")),
    _run("Ivan", "9", ("Ivan finds 1 shell.", "10"), ("Ivan finds 2 shells.", "12"), ("Ivan loses 3 shells.", "9")),
)
