"""Runs of plans written by hand, about things that the generator does not have."""

from __future__ import annotations

from dataclasses import dataclass

import dspy


@dataclass(frozen=True)
class Shown:
    """A run that was written by hand."""

    question: str
    expression: str
    answer: str

    @property
    def example(self) -> dspy.Example:
        """The example of this run."""
        return dspy.Example(question=self.question, answer=self.answer).with_inputs("question")


LEGS_RUNS = (
    Shown("How many legs do 3 goats have?", "3 * 4", "12"),
    Shown("How many legs do 2 swans and 5 rabbits have?", "2 * 2 + 5 * 4", "24"),
    Shown("How many legs do 4 mosquitos and 3 foxes have?", "4 * 6 + 3 * 4", "36"),
    Shown("How many legs do 6 eels have?", "6 * 0", "0"),
    Shown("How many legs do 7 pigeons and 2 wolves have?", "7 * 2 + 2 * 4", "22"),
    Shown("How many legs do 5 lobsters have?", "5 * 10", "50"),
    Shown("How many legs do 2 ticks and 8 zebras have?", "2 * 8 + 8 * 4", "48"),
    Shown("How many legs do 9 turkeys have?", "9 * 2", "18"),
    Shown("How many legs do 3 moths and 4 robins have?", "3 * 6 + 4 * 2", "26"),
    Shown("How many legs do 8 camels and 3 worms have?", "8 * 4 + 3 * 0", "32"),
    Shown("How many legs do 6 locusts have?", "6 * 6", "36"),
    Shown("How many legs do 4 deer and 9 storks have?", "4 * 4 + 9 * 2", "34"),
    Shown("How many legs do 5 shrimps and 2 llamas have?", "5 * 10 + 2 * 4", "58"),
)

PRICES_RUNS = (
    Shown("A nail costs 3 coins. How many coins do 4 nails cost?", "4 * 3", "12"),
    Shown(
        "A spoon costs 6 coins. A jar costs 2 coins. How many coins do 3 spoons and 5 jars cost?",
        "3 * 6 + 5 * 2",
        "28",
    ),
    Shown("A tent costs 9 coins. How many coins do 2 tents cost?", "2 * 9", "18"),
    Shown(
        "A coat costs 8 coins. A scarf costs 4 coins. How many coins do 7 coats and 2 scarfs cost?",
        "7 * 8 + 2 * 4",
        "64",
    ),
    Shown(
        "A drum costs 5 coins. A bell costs 7 coins. How many coins do 6 drums and 4 bells cost?",
        "6 * 5 + 4 * 7",
        "58",
    ),
    Shown("A stamp costs 2 coins. How many coins do 9 stamps cost?", "9 * 2", "18"),
    Shown(
        "A shirt costs 7 coins. A sock costs 3 coins. How many coins do 2 shirts and 8 socks cost?",
        "2 * 7 + 8 * 3",
        "38",
    ),
    Shown("A kite costs 4 coins. How many coins do 5 kites cost?", "5 * 4", "20"),
    Shown(
        "A vase costs 9 coins. A tray costs 6 coins. How many coins do 3 vases and 3 trays cost?",
        "3 * 9 + 3 * 6",
        "45",
    ),
    Shown(
        "A map costs 2 coins. A comb costs 8 coins. How many coins do 6 maps and 2 combs cost?",
        "6 * 2 + 2 * 8",
        "28",
    ),
    Shown("A ring costs 6 coins. How many coins do 7 rings cost?", "7 * 6", "42"),
    Shown(
        "A bowl costs 5 coins. A flute costs 9 coins. How many coins do 8 bowls and 4 flutes cost?",
        "8 * 5 + 4 * 9",
        "76",
    ),
)
