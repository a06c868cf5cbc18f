"""Requests to a vLLM server besides those of chat, which DSPy makes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


class RefusedError(Exception):
    """The server answered with an error, or not at all.

    Attributes:
        status: The HTTP status; 0 without an answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def ask(url: str, key: str, body: Any = None, *, timeout_s: float = 60.0) -> Any:
    """Send a GET request, or a POST request with a JSON body.

    Returns:
        The answer from JSON; its text if it is not JSON, as vLLM's are after it has loaded an adapter.

    Raises:
        RefusedError: There was no answer, or an error.
    """
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout_s) as reply:
            text = reply.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            raise RefusedError(error.read().decode("utf-8", "replace")[:500], error.code) from None
    except OSError as error:
        raise RefusedError(str(error)) from error
    try:
        return json.loads(text)
    except ValueError:
        return text
