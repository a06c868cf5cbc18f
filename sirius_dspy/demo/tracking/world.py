"""A world of stories: something has a holder, and events move it from holder to holder.

A holder is whoever or whatever has the thing: a person, a box, a room, a day. An event names two holders. In a world of
swaps, the thing moves if either has it; otherwise, it moves only from the first to the second one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Event(NamedTuple):
    """Two holders, in the order of the sentence."""

    first: str
    second: str


@dataclass(frozen=True)
class World:
    """The words of one kind of story."""

    name: str
    things: tuple[str, ...]
    """What may be tracked; the question names it."""
    holders: tuple[str, ...]
    """Who or what may hold it."""
    is_swap: bool
    beginning: str
    """Sentence with `{holder}` that opens the story."""
    event: str
    """Sentence with `{first}` and `{second}`."""
    question: str
    """Question with `{thing}`."""
    reading: str
    """Instructions of the agent that reads a part of the story."""
    tracking: str
    """Instructions of the agent that follows the thing."""
    answering: str
    """Instructions of an agent that answers."""
    naming: str
    """Instructions of an agent that names the holders of an event."""
    checking: str
    """Instructions of an agent that says whether the thing moves."""
    openings: tuple[str, ...]
    """What may stand before the event in its sentence."""
    endings: tuple[str, ...]
    """What may stand after it, before the full stop."""
    asides: tuple[str, ...]
    """Sentences with `{holder}` that mean nothing."""

    def write(self, event: Event) -> str:
        """Write the event as a bare sentence."""
        return self.event.format(first=event.first, second=event.second)

    def read(self, text: str) -> Event | None:
        """Read the event in a text; `None` if it has none."""
        found = self._pattern.search(text)
        return Event(found["first"], found["second"]) if found else None

    def write_names(self, event: Event) -> str:
        """Name the two holders of the event in its order."""
        return f"{event.first}, {event.second}"

    def read_names(self, text: str) -> Event | None:
        """Read what `write_names` writes; `None` if these are not two names."""
        names = [name.strip(" .") for name in text.split(",")]
        return Event(*names) if len(names) == 2 else None

    def move(self, holder: str, event: Event | None) -> str:
        """Return the holder after an event."""
        if event is None:
            return holder
        if _is_same(holder, event.first):
            return event.second
        return event.first if self.is_swap and _is_same(holder, event.second) else holder

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        name = r"\w+(?: box)?"  # not only `holders`: demonstrations have others
        first, second = (rf"(?P<{group}>{name})" for group in ("first", "second"))
        return re.compile(
            re.escape(self.event.rstrip(".")).replace(r"\{first\}", first).replace(r"\{second\}", second), re.IGNORECASE
        )


def _is_same(holder: str, other: str) -> bool:
    return holder.strip(" .").casefold() == other.casefold()
