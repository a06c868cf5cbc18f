"""Checks training files line by line when they are uploaded, so that a job does not fail hours later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sirius_dspy.local.lora import has_tools
from sirius_dspy.server import tool_rows
from sirius_dspy.server.answers import ApiError

Row = dict[str, Any]
"""`messages` and, where tools were offered natively, `tools`."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SETTINGS = ("tools", "parallel_tool_calls")

_LONGEST_LINE = 4 << 20
"""Bytes of one row; a file without line breaks is not read as a whole."""


def read_rows(path: Path) -> list[Row]:
    """Read the chats of a training file in OpenAI's format.

    Raises:
        ApiError: A line is no such chat, or there is none; the message names the line.
    """
    rows = [_read_row(number, line) for number, line in _lines(path)]
    if not rows:
        raise _wrong("The file holds no rows.")
    return rows


def find_tools(path: Path) -> int | None:
    """Return the number of the first line of a training file with native tools or tool calls; `None` without one."""
    return next((number for number, line in _lines(path) if has_tools(_read_row(number, line))), None)


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


def _read_row(number: int, line: bytes) -> Row:
    place = f"Line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _wrong(f"{place} is not valid JSON in UTF-8.") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or set(row) - {"messages", *_SETTINGS}:
        names = " and ".join(map(repr, _SETTINGS))
        raise _wrong(f'{place} is not of the form {{"messages": [...]}}, with no other fields than {names}.')
    messages = [_read_message(f"{place}, message {number}", item) for number, item in enumerate(row["messages"], 1)]
    if row["messages"] and row["messages"][-1].get("weight") == 0:
        raise _wrong(f"{place}: the last reply has the weight 0, but it alone is trained on.")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise _wrong(f"{place} needs a prompt and, as its last message, the reply of the role 'assistant'.")
    if not _is_text(row.get("tools")):
        raise _wrong(f"{place}: 'tools' hold what is not a text.")
    if problem := tool_rows.find_problem(row):
        raise _wrong(f"{place}: {problem}")
    return {**{name: row[name] for name in _SETTINGS if name in row}, "messages": messages}


def _read_message(place: str, message: Any) -> dict[str, Any]:
    if isinstance(message, dict) and "tool_calls" in message:
        message = {"content": None, **message}  # OpenAI's own examples leave it out
    fields = tool_rows.fields_of(message) if isinstance(message, dict) else frozenset()
    if not fields or not fields - tool_rows.OPTIONAL <= set(message) <= fields | {"weight"}:
        raise _wrong(
            f"{place}: expected the fields 'role' and 'content', with calls of tools and their results those of "
            "OpenAI's format, and no others. Images and audio are not trained on."
        )
    role, content = message["role"], message["content"]
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        raise _wrong(f"{place}: only a message of the role 'assistant' may have a 'weight', 0 or 1.")
    if role not in _ROLES:
        raise _wrong(f"{place}: the role is none of {', '.join(_ROLES)}.")
    is_left_out = content is None and "tool_calls" in message
    if not (isinstance(content, str) or is_left_out) or not _is_text(message):
        raise _wrong(f"{place}: the content is not a text.")
    if problem := tool_rows.find_call_problem(message):
        raise _wrong(f"{place}: {problem}")
    of_tools = {name: value for name, value in message.items() if name not in ("role", "content", "weight")}
    return {"role": "system" if role == "developer" else role, "content": content, **of_tools}


def _is_text(value: Any) -> bool:
    """Return whether all texts of a value can be written: JSON may hold half of a pair of surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_training_file", param="file")
