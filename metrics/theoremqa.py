"""TheoremQA's comparison of typed answers, without evaluating anything that a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import dspy

from metrics import choice, number
from metrics.answer_line import answer_line
from sirius_dspy.demo.gold import gold_answer, read_reply
from sirius_dspy.errors import DatasetError

AnswerType = Literal["bool", "option", "integer", "float", "list of integer", "list of float"]
Answer = bool | str | Fraction | tuple[Fraction, ...]
"""By type: bool; a capital letter; an exact number; numbers in the order in which they were written."""

TOLERANCE = Fraction(4, 100)
"""Share of the gold value by which a float may be off. A gold of 0 thus has no tolerance."""

_OPTIONS = "ABCDEF"
_TRUTH = {"true": True, "yes": True, "false": False, "no": False}
_MOST_ITEMS = 50


def theoremqa(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Score 1.0 if the reply states the gold answer as TheoremQA compares it, and 0.0 otherwise.

    Integers are equal after rounding, floats within 4 % of the gold value, lists are compared sorted, item by item.

    Args:
        example: Has the gold value in `answer`, as JSON text (`0.955`, `true`, `[0, 5]`; an option as `(a)`), and its
            type in `dspy_answer_type`, which no agent is shown.
        prediction: Has the reply in `answer`; one that cannot be parsed scores 0.0. Count these with `parse`.
        trace: Not used; DSPy passes it to every metric.

    Raises:
        DatasetError: The example has no gold answer, or not one of its type.

    References:
        Chen et al., TheoremQA (arXiv:2305.12524), and the comparison in github.com/TIGER-AI-Lab/TheoremQA. Departures:
        the reply is read by an anchored parser, where the source searches it for words and calls `eval`.
    """
    kind, gold = gold_of(example)
    reply = parse(read_reply(prediction), kind)
    return float(reply is not None and matches(reply, gold, kind))


def gold_of(example: dspy.Example) -> tuple[AnswerType, Answer]:
    """Type and value of an example's gold answer.

    Raises:
        DatasetError: The type is unknown, or the answer is not of this type.
    """
    kind, text = example.get("dspy_answer_type"), gold_answer(example)
    try:
        gold = _gold(text, kind)
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"Gold answer {text!r} of type {kind!r}: {error}. Expected JSON of one of the types bool, option, integer, "
            "float, list of integer, list of float. Correct the example's `answer` and `dspy_answer_type`."
        ) from error
    return kind, gold


def parse(text: str, kind: AnswerType) -> Answer | None:
    r"""Read the one answer of a type that a reply states.

    Returns:
        The value; `None` if the reply states none of this type. A whole number where a float is asked for is fine, and
        so is a decimal one for an integer, since comparing rounds.

    Examples:
        >>> parse("It follows.\nAnswer: 0.955 ft^3", "float")
        Fraction(191, 200)
        >>> parse("The answer is [1, 2.5].", "list of float")
        (Fraction(1, 1), Fraction(5, 2))
        >>> parse("__import__('os').getcwd()", "float") is None
        True
    """
    if kind == "option":
        return choice.parse(text, _OPTIONS)
    line = answer_line(text)
    if line is None:
        return None
    if kind == "bool":
        return _truth(line)
    return _numbers(line) if kind.startswith("list") else number.parse(line)


def matches(reply: Answer, gold: Answer, kind: AnswerType) -> bool:
    """Compare two values of one type."""
    if isinstance(reply, tuple) and isinstance(gold, tuple):
        pairs = zip(sorted(reply), sorted(gold), strict=True) if len(reply) == len(gold) else [(None, None)]
        return all(r is not None and g is not None and _close(r, g, "integer" in kind) for r, g in pairs)
    if isinstance(reply, Fraction) and isinstance(gold, Fraction):
        return _close(reply, gold, kind == "integer")
    return type(reply) is type(gold) and reply == gold


def _close(reply: Fraction, gold: Fraction, is_integer: bool) -> bool:
    return round(reply) == gold if is_integer else abs(reply - gold) <= TOLERANCE * abs(gold)


def _gold(text: str, kind: Any) -> Answer:
    if kind == "option":
        letter = choice.parse(text, _OPTIONS)
        if letter is None:
            raise ValueError("no letter in brackets")
        return letter
    value = json.loads(text, parse_float=Fraction, parse_int=Fraction)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("integer", "float") and isinstance(value, Fraction):
        return value
    if kind in ("list of integer", "list of float") and isinstance(value, list) and _all_numbers(value):
        return tuple(value)
    raise TypeError(f"the value is {type(value).__name__}")


def _all_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, Fraction) for value in values)


def _truth(line: str) -> bool | None:
    """The one truth value that a line begins with; `not true` begins with none, `True or False` offers two."""
    words = re.findall(r"[a-z']+", line.lower())
    offered = {_TRUTH[word] for word in words if word in _TRUTH}
    return _TRUTH.get(words[0]) if words and len(offered) == 1 else None


def _numbers(line: str) -> tuple[Fraction, ...] | None:
    text = line.rpartition("=")[2]
    match = re.match(r"[^\[(]{0,40}[\[(]([^\[\]()]{1,500})[\])]", text)
    if match is None or not number.is_unit(text[match.end() :].strip(" .")):
        return None
    items = match.group(1).split(",")
    values = [number.parse(item.strip()) for item in items[:_MOST_ITEMS]]
    numbers = tuple(value for value in values if value is not None)
    return numbers if len(numbers) == len(items) else None
