"""Reading one number as people and LMs write it: `1,234.5`, `-3/4`, `1.12e4`, `3.0 x 10^8 m/s`, `x = 5`.

Nothing is evaluated: what is not exactly one number, with a unit at most, is no number.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MANTISSA = r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = r"10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<power>[+-]?[0-9]{1,3})\s*[)}]?"
_VALUE = re.compile(
    rf"(?P<mantissa>{_MANTISSA})(?:[eE](?P<exponent>[+-]?[0-9]{{1,3}})(?![0-9])"
    rf"|\s*(?:[x\u00d7*\u00b7]|\\times|\\cdot)\s*{_POWER}|\s*/\s*(?P<divisor>{_MANTISSA}))?"
)
_BARE_POWER = re.compile(rf"(?P<sign>-?){_POWER}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_LEAD = re.compile(r"(?:about|approximately|approx\.?|roughly|around|~|\u2248|\\approx)\s*", re.IGNORECASE)
_UNIT = re.compile(r"\s*[/%\u00b0\u00b5\u03bc\u03a9\u212b\u00c5A-Za-z\\]\S*(?:\s+\S+){0,3}")
_UNSOLVED = re.compile(r"\s[-+*/]\s|[0-9]\s*[-+*/A-Za-z]|[-+*/]\s*[0-9]")
_NOT_UNITS = frozenset({"and", "but", "by", "if", "is", "minus", "not", "or", "over", "plus", "than", "times", "to"})
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")

_LONGEST = 200
"""Characters of a line that may hold one number and its unit; a longer one is an essay."""


def parse(line: str) -> Fraction | None:
    r"""Read a line that holds one number, and a unit at most.

    Of `v = 3/2 = 1.5` or `66 - 18 = 48`, the part after the last `=` or `≈` counts; of `10 - x = 5`, which is no answer
    but an equation to be solved, nothing does. A sentence after the number does not count.

    Returns:
        The exact value, so that nothing is lost to binary floating point; `None` if the line is anything else.

    Examples:
        >>> [str(parse(line)) for line in ("1.12e4", "1,234.5", "-3/4", "0.955 ft^3", "v = 3 m/s", "4 or 5")]
        ['11200', '2469/2', '-3/4', '191/200', '3', 'None']
    """
    if len(line) > _LONGEST:
        return None
    text = _LATEX_FRACTION.sub(r"\1/\2", line.replace("\u2212", "-").replace("\\,", " "))
    text = re.sub(r"(?<=10)([\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+)", _spell_power, text)
    *left, text = re.split(r"=|\u2248|\\approx", text)
    if left and _UNSOLVED.search(left[0]) and re.search(r"[A-Za-z]", left[0]):
        return None
    text = _LEAD.sub("", re.split(r"[.;](?=\s)|\s\(", text.strip())[0].strip(), count=1).rstrip(" .;")
    match = _BARE_POWER.match(text) or _VALUE.match(text)  # in this order: 10^5 is no 10 with a unit
    if match is None or not is_unit(text[match.end() :]):
        return None
    return _value(match.groupdict())


def is_unit(text: str) -> bool:
    """Whether what follows a number is nothing, or a unit such as `m/s^2`, `%`, `apples`, and not another statement."""
    if not text.strip():
        return True
    if re.match(r"[eEx_][+-]?[0-9]", text):  # the rest of a number that was not read, such as 1e9999 or 0x10
        return False
    words = text.lower().split()
    return bool(_UNIT.fullmatch(text.rstrip())) and not any(
        word.strip(",") in _NOT_UNITS or word[0] in "0123456789+-.=" for word in words
    )


def _spell_power(match: re.Match[str]) -> str:
    return "^" + match.group(1).translate(_SUPERSCRIPTS)


def _value(parts: dict[str, str | None]) -> Fraction | None:
    if "sign" in parts:
        return (-1 if parts["sign"] else 1) * Fraction(10) ** int(parts["power"] or 0)
    value = _fraction(parts["mantissa"] or "")
    if parts["divisor"] is not None:
        divisor = _fraction(parts["divisor"])
        return value / divisor if divisor else None
    return value * Fraction(10) ** int(parts["exponent"] or parts["power"] or 0)


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
