"""Checks training files line by line when they are uploaded, so that a job does not fail hours later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sirius_dspy.server.answers import ApiError

_ROLES = ("system", "developer", "user", "assistant")

_LONGEST_LINE = 4 << 20
"""Bytes of one row; a file without line breaks is not read as a whole."""


def read_rows(path: Path) -> list[list[dict[str, str]]]:
    """Read the chats of a training file in OpenAI's format.

    Raises:
        ApiError: A line is no such chat, or there is none; the message names the line.
    """
    rows = [_read_row(number, line) for number, line in _lines(path)]
    if not rows:
        raise _wrong("The file holds no rows.")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers from 1."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise _wrong(f"Line {number} is longer than {_LONGEST_LINE} bytes.")
            if line.strip():
                yield number, line


def _read_row(number: int, line: bytes) -> list[dict[str, str]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _wrong(f"Line {number} is not valid JSON in UTF-8.") from None
    if not isinstance(row, dict) or set(row) != {"messages"} or not isinstance(row["messages"], list):
        raise _wrong(f'Line {number} is not of the form {{"messages": [...]}}, without other fields.')
    messages = [_read_message(f"Line {number}, message {place}", item) for place, item in enumerate(row["messages"], 1)]
    if row["messages"] and row["messages"][-1].get("weight") == 0:
        raise _wrong(f"Line {number}: the last reply has the weight 0, but it alone is trained on.")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise _wrong(f"Line {number} needs a prompt and, as its last message, the reply of the role 'assistant'.")
    return messages


def _read_message(place: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or set(message) - {"weight"} != {"role", "content"}:
        raise _wrong(f"{place}: expected the fields 'role' and 'content' and no others. Only texts are trained on.")
    role, content = message["role"], message["content"]
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        raise _wrong(f"{place}: only a message of the role 'assistant' may have a 'weight', 0 or 1.")
    if role not in _ROLES:
        raise _wrong(f"{place}: the role is none of {', '.join(_ROLES)}.")
    if not isinstance(content, str) or not _is_text(content):
        raise _wrong(f"{place}: the content is not a text.")
    return {"role": "system" if role == "developer" else role, "content": content}


def _is_text(content: str) -> bool:
    """Return whether a text can be written: JSON may hold half of a pair of surrogates."""
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_training_file", param="file")
