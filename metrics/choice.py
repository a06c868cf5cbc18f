"""Multiple choice: the reply must commit itself to one letter."""

from __future__ import annotations

import re
from typing import Any

import dspy

from metrics.answer_line import answer_line
from sirius_dspy.demo.gold import gold_answer, read_reply
from sirius_dspy.errors import DatasetError

LETTERS = "ABCD"


def choice(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Score 1.0 if the reply states the gold letter, and 0.0 otherwise.

    Args:
        example: Has the gold letter in `answer`: `A`, `B`, `C` or `D`.
        prediction: Has the reply in `answer`; one that cannot be parsed scores 0.0. Count these with `parse`.
        trace: Not used; DSPy passes it to every metric.

    Raises:
        DatasetError: The example has no gold letter.
    """
    gold = gold_answer(example).strip()
    if gold not in list(LETTERS):
        raise DatasetError(f"Gold answer {gold!r}, expected one of {list(LETTERS)}. Correct the example's `answer`.")
    return float(parse(read_reply(prediction)) == gold)


def parse(text: str, letters: str = LETTERS) -> str | None:
    r"""Read the one letter that a reply commits itself to.

    The letter stands alone at the start of the answer line, or before a closing mark with the option's text after it:
    `C`, `(C)`, `**C**`, `C) 10 eV`, `Option C.` are read. A second letter offered beside it, or a word that only begins
    with one (`can't`), is no answer.

    Args:
        text: The reply.
        letters: Allowed letters, in capitals.

    Returns:
        A capital letter; `None` if the reply cannot be parsed.

    Examples:
        >>> [parse(reply) for reply in ("Answer: (C)", "It is hot.\nAnswer: C) 10 eV", "Answer: can't", "A or B")]
        ['C', 'C', None, None]
    """
    line = answer_line(text)
    match = line and re.match(rf"(?:option |choice )?\(?\s*([{letters}])\s*(?:[).:,;]+\W*|\Z)", line, re.IGNORECASE)
    if not line or not match:
        return None
    another = rf"(?:(?:or|and) )?\(?[{letters}]\)?\s*(?:\Z|[),.;:/]|or\b|and\b)"
    return None if re.match(another, line[match.end() :], re.IGNORECASE) else match.group(1).upper()
