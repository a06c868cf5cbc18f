"""A table of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """One section of a report.

    Attributes:
        name: Of the section; plots go by it.
        title: Of the section.
        header: Names of the columns.
        rows: As many texts each as there are columns.
        note: What the numbers are, in a sentence or two.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def is_text(self) -> tuple[bool, ...]:
        """Which columns hold words; the others hold numbers."""
        return tuple(name in _WORDS for name in self.header)


_WORDS = frozenset(
    {"agent", "dropped", "kept", "loss", "origin", "program", "promoted", "stage", "verdicts", "weights"}
)
