"""The kinds of ledgers: what a text tells, and how a note changes with it."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from sirius_dspy.demo.people import PEOPLE

_ROOMS = ("kitchen", "hall", "garden", "attic", "cellar", "library", "garage", "lobby", "office", "bedroom", "pantry")


class Told(NamedTuple):
    """What a text is about."""

    question: str
    people: tuple[str, ...]
    rooms: tuple[str, ...] = ()


class Ledger(ABC):
    """One kind of ledger."""

    name: ClassVar[str]
    question: ClassVar[str]
    """Question about `{subject}`."""
    noting: ClassVar[str]
    """Instructions of the worker."""
    answering: ClassVar[str]
    """Instructions of an agent that answers."""

    @abstractmethod
    def begin(self, source: random.Random) -> tuple[str, Told]:
        """Draw a first note, and what the text is about."""

    @abstractmethod
    def tell(self, told: Told, note: str, source: random.Random) -> str:
        """Write a sentence that may follow this note."""

    @abstractmethod
    def update(self, note: str, question: str, text: str) -> str:
        """Return the note after a text of one or more sentences."""

    @abstractmethod
    def write_start(self, start: str, subject: str) -> str:
        """Write the first note as a sentence."""

    @abstractmethod
    def is_note(self, text: str) -> bool:
        """Return whether a text can be a note."""

    @abstractmethod
    def find_notes(self, text: str) -> list[str]:
        """Return all names or numbers in a text that look like a note."""

    def subject_of(self, question: str) -> str:
        """Return what the question is about."""
        before, after = self.question.split("{subject}")
        return question.removeprefix(before).removesuffix(after)

    def write_whole(self, start: str, parts: Sequence[str], question: str) -> str:
        """Write a text as a whole, with the same information as its parts."""
        return " ".join([self.write_start(start, self.subject_of(question)), *parts])


class Entries(Ledger):
    """People enter and leave rooms; asked is who entered one of them last."""

    name = "entries"
    question = "Who was the last to enter the {subject}?"
    noting = "Who was the last to enter? If nobody enters the room in this part, repeat the note."
    answering = "Answer with one name."

    def begin(self, source: random.Random) -> tuple[str, Told]:
        """See the base class."""
        first, *people = source.sample(PEOPLE, 5)
        rooms = tuple(source.sample(_ROOMS, 2))
        return first, Told(self.question.format(subject=rooms[0]), tuple(people), rooms)

    def tell(self, told: Told, note: str, source: random.Random) -> str:
        """See the base class."""
        person = source.choice(told.people)
        kind = source.random()
        if kind < 0.2:  # more often, and the last name of a text would be a good guess
            return f"{person} enters the {told.rooms[0]}."
        if kind < 0.6:
            return f"{person} enters the {told.rooms[1]}."
        return f"{person} leaves the {source.choice(told.rooms)}."

    def update(self, note: str, question: str, text: str) -> str:
        """See the base class."""
        entered = re.findall(rf"(\w+) enters the {re.escape(self.subject_of(question))}\b", text)
        return entered[-1] if entered else note

    def write_start(self, start: str, subject: str) -> str:
        """See the base class."""
        return f"{start} enters the {subject}."

    def is_note(self, text: str) -> bool:
        """See the base class."""
        return bool(text.strip())

    def find_notes(self, text: str) -> list[str]:
        """See the base class."""
        return re.findall(r"(\w+) (?:enters|leaves)", text)


class Shells(Ledger):
    """People find and lose shells; asked is how many one of them has."""

    name = "shells"
    question = "How many shells does {subject} have at the end?"
    noting = "How many shells does this person have after this part? The note is the number before it."
    answering = "Answer with one number."

    def begin(self, source: random.Random) -> tuple[str, Told]:
        """See the base class."""
        people = tuple(source.sample(PEOPLE, 2))
        return str(source.randint(2, 9)), Told(self.question.format(subject=people[0]), people)

    def tell(self, told: Told, note: str, source: random.Random) -> str:
        """See the base class."""
        person = told.people[0] if source.random() < 0.7 else told.people[1]
        number = source.randint(1, 5)
        may_lose = person != told.people[0] or int(note) >= number
        verb = "loses" if may_lose and source.random() < 0.5 else "finds"
        return f"{person} {verb} {number} shell{'s' if number > 1 else ''}."

    def find_notes(self, text: str) -> list[str]:
        """See the base class."""
        return re.findall(r"\d+", text)

    def update(self, note: str, question: str, text: str) -> str:
        """See the base class."""
        if not self.is_note(note):
            return note
        person = re.escape(self.subject_of(question))
        changes = re.findall(rf"\b{person} (finds|loses) (\d+) shells?\b", text)
        return str(int(note) + sum(int(number) * (1 if verb == "finds" else -1) for verb, number in changes))

    def write_start(self, start: str, subject: str) -> str:
        """See the base class."""
        return f"{subject} has {start} shells."

    def is_note(self, text: str) -> bool:
        """See the base class."""
        return re.fullmatch(r"\s*-?\d{1,9}\s*", text, re.ASCII) is not None
