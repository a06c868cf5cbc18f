r"""Where a reply states its answer: the last line that says so, or the only line there is.

One rule for all metrics, used alike for rollouts, repairs and tests. What it does not find is unparseable and never
guessed: a number or a letter somewhere in the reasoning is not an answer.
"""

from __future__ import annotations

import re

_HEADER = re.compile(
    r"^[^\w\n]*(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct |best )?answer"
    r"[ \t*_]*(?:is\b[ \t*_]*:?|:)",
    re.IGNORECASE | re.MULTILINE,
)
_WRAPPER = re.compile(r"\\(?:boxed|text|mathrm|mathbf)[ ]?\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![0-9A-Za-z)])\*\*|\*\*(?![0-9A-Za-z(])")  # 9**9 is a power and stays one
_MATH = re.compile(r"[$`]|\\[()\[\]]")
_MARKS = " \t\r\n*_\"'`\u201c\u201d\u2018\u2019"


def answer_line(text: str) -> str | None:
    r"""The line after the last `Answer:` (or `The answer is`), without emphasis and LaTeX wrappers.

    An answer may stand on the line below its header. A reply without any header is an answer if it is one line long.

    Returns:
        The line, not empty; `None` if the reply states no answer.

    Examples:
        >>> answer_line("Let me see.\n**Answer:** \\boxed{42}")
        '42'
        >>> answer_line("First line.\nSecond line.") is None
        True
    """
    headers = list(_HEADER.finditer(text))
    stated = text[headers[-1].end() :] if headers else text
    lines = [line for line in map(_plain, stated.splitlines()) if line]
    if not lines or (not headers and len(lines) > 1):
        return None
    return lines[0]


def _plain(line: str) -> str:
    unwrapped = _WRAPPER.sub(r"\1", _WRAPPER.sub(r"\1", line))  # \boxed{\text{C}}
    return _MATH.sub(" ", _EMPHASIS.sub("", unwrapped)).strip(_MARKS)  # a blank, or 9$9 would become 99
