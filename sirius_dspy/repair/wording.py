"""Compares texts of LMs with labels, whatever the case, the typography, and how a number is written."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any


def as_written(value: Any) -> str:
    """A value as an LM would write it: 4, where a label says 4.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def bare(text: str) -> str:
    """A text without what means nothing when two are compared: case and typography, and space and stops around it."""
    return _normal(text).strip(" \n.")


def mentions(text: str, gold: str) -> bool:
    """Whether the text holds the gold answer as words or numbers of its own: 12 is not in 120, nor in 3.12."""
    if len(gold) == 1 and gold.isascii() and gold.isalpha():
        return _names_letter(text, gold)
    text, gold = _normal(text), _normal(gold).strip("\"'").rstrip(".")
    if not gold:
        return False
    words = _number_pattern(gold) or r"\s+".join(map(re.escape, gold.split()))
    before = "" if _runs_on(gold[0]) else r"(?<![\w.])"
    after = "" if _runs_on(gold[-1]) else r"(?!\w|\.\d)"
    return re.search(before + words + after, text) is not None


def _names_letter(text: str, letter: str) -> bool:
    """Whether a text names an option, such as A. The word that begins a sentence is none: A man, I think."""
    apostrophe = r"['\u2019]"
    for found in re.finditer(rf"(?<![\w.])(?<!{apostrophe}){letter}(?!\w|\.\d|{apostrophe})", text):
        before, after = text[: found.start()].rstrip(" \"'(*"), text[found.end() :]
        is_begin = not before or before[-1] in "\n.!?:"
        if letter not in "AI" or not is_begin or not re.match(r"\s+[a-z]", after):
            return True
    return False


@lru_cache(maxsize=256)
def _normal(text: str) -> str:
    """A text as it is compared: in one case, and without the differences that typography and Markdown make."""
    text = re.sub(r"(?<=\d)[,'_\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)  # 1,200 is 1200
    text = unicodedata.normalize("NFKC", text).casefold().translate(_PLAIN)
    text = re.sub(r"(?<![^\W_])_+|_+(?![^\W_])", "", text)  # _Paris_
    return re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", text)  # New-York


_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff\u0307", ""),  # unseen, and the dot of a Turkish I
    }
)

_NUMBERS = {
    word: number
    for number, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], start=2
    )
}
"""Words that mean a number, and little else."""


def _number_pattern(text: str) -> str:
    """Return what matches a number however many zeros end it, 4, 4.0 and four; empty for other texts."""
    text = str(_NUMBERS.get(text, text))
    if not (number := re.fullmatch(r"(-?)(\d*)(?:\.(\d+))?", text, re.ASCII)) or not text.strip("-"):
        return ""
    sign, whole, decimals = number[1], number[2] or "0", (number[3] or "").rstrip("0")
    if decimals:
        return rf"{sign}{'0?' if whole == '0' else whole}\.{decimals}0*"
    words = "".join(f"|{word}" for word, value in _NUMBERS.items() if text == str(value))
    return rf"(?:{sign}{whole}(?:\.0+)?{words})"


def _runs_on(character: str) -> bool:
    """Whether it is of a script without upper and lower case; many of those put no spaces between words."""
    return unicodedata.category(character) == "Lo"
