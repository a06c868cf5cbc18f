"""The kinds of stories for plans: things of some worth, of which there are several."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

_LEGS: Mapping[str, int] = {
    "dog": 4, "cat": 4, "horse": 4, "cow": 4, "lion": 4, "tiger": 4, "pig": 4, "bear": 4,
    "duck": 2, "hen": 2, "owl": 2, "parrot": 2, "eagle": 2, "crow": 2,
    "ant": 6, "bee": 6, "beetle": 6, "wasp": 6, "spider": 8, "scorpion": 8, "crab": 10, "snake": 0, "snail": 0,
}  # fmt: skip

_GOODS = (
    "pen", "cup", "book", "ball", "lamp", "hat", "bag", "fork", "plate", "towel", "brush", "candle", "rope", "chair",
)  # fmt: skip


class Order(NamedTuple):
    """Some things of one kind."""

    thing: str
    number: int
    worth: int
    """Of one: its legs or its price."""


class Story(ABC):
    """One kind of story."""

    name: ClassVar[str]
    planning: ClassVar[str]
    """Instructions of the planner."""

    @abstractmethod
    def draw(self, kinds: int, most: int, source: random.Random) -> list[Order]:
        """Draw what a question is about.

        Args:
            kinds: Number of kinds of things.
            most: Maximum number of each kind.
            source: Source of chance.
        """

    @abstractmethod
    def write(self, orders: Sequence[Order]) -> str:
        """Write the question."""

    @abstractmethod
    def read(self, question: str) -> list[Order]:
        """Read the orders of a question that `write` wrote."""


class Legs(Story):
    """Animals, whose legs are counted."""

    name = "legs"
    planning = "Write how to calculate the legs: for each animal, its number * its legs."

    def draw(self, kinds: int, most: int, source: random.Random) -> list[Order]:
        """See the base class."""
        animals = source.sample(sorted(_LEGS), kinds)
        return [Order(animal, source.randint(2, most), _LEGS[animal]) for animal in animals]

    def write(self, orders: Sequence[Order]) -> str:
        """See the base class."""
        return f"How many legs do {_list([f'{order.number} {order.thing}s' for order in orders])} have?"

    def read(self, question: str) -> list[Order]:
        """See the base class."""
        found = re.findall(r"(\d+) (\w+)s\b", question)
        return [Order(animal, int(number), _LEGS[animal]) for number, animal in found]


class Prices(Story):
    """Goods, whose prices are added."""

    name = "prices"
    planning = "Write how to calculate the cost: for each thing, its number * its price."

    def draw(self, kinds: int, most: int, source: random.Random) -> list[Order]:
        """See the base class."""
        return [Order(thing, source.randint(2, most), source.randint(2, 9)) for thing in source.sample(_GOODS, kinds)]

    def write(self, orders: Sequence[Order]) -> str:
        """See the base class."""
        listed = " ".join(f"A {order.thing} costs {order.worth} coins." for order in orders)
        return f"{listed} How many coins do {_list([f'{order.number} {order.thing}s' for order in orders])} cost?"

    def read(self, question: str) -> list[Order]:
        """See the base class."""
        worth = {thing: int(price) for thing, price in re.findall(r"A (\w+) costs (\d+) coins", question)}
        asked = re.findall(r"(\d+) (\w+)s\b", question.partition("How many")[2])
        return [Order(thing, int(number), worth[thing]) for number, thing in asked]


def _list(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
