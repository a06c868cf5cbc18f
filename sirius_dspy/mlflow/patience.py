"""Short waits for a remote server: by default MLflow retries for minutes, which would hold up everything.

MLflow reads these settings from the environment only, so they are put there for a while. What the user has set is left
alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 10
"""Seconds that MLflow may take to answer; nobody waits for it but the thread that writes. Servers load parts of
themselves with the first request for them, which takes seconds."""
LAST_WAIT_S = 4
"""The same for a server that was down before, where somebody waits."""

UPLOAD_BYTES_PER_S = 4_000_000
"""What an upload is expected to reach at least; a large file gets that much more time to be stored."""

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_WANTED = {
    _TIMEOUT: str(WAIT_S),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox tries again itself, when it costs nobody time
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the program
}


class _Users:
    """Who waits shortly at the moment; one environment serves all threads."""

    lock = threading.Lock()  # protects both fields
    count = 0
    ours: tuple[str, ...] = ()


def shorten() -> None:
    """Begin to wait shortly; every call needs its `restore`."""
    with _Users.lock:
        if _Users.count == 0:
            _Users.ours = tuple(name for name in _WANTED if name not in os.environ)
            os.environ.update({name: _WANTED[name] for name in _Users.ours})
        _Users.count += 1


def restore() -> None:
    """Take back what `shorten` set, with its last user."""
    with _Users.lock:
        _Users.count -= 1
        if _Users.count == 0:
            for name in _Users.ours:
                os.environ.pop(name, None)
            _Users.ours = ()


def hurry() -> None:
    """Wait even less from now on."""
    _set_timeout(LAST_WAIT_S)


@contextmanager
def for_upload(num_bytes: int) -> Iterator[None]:
    """Wait longer while a file of this size is sent: the server answers when all of it is stored."""
    _set_timeout(WAIT_S + num_bytes // UPLOAD_BYTES_PER_S)
    try:
        yield
    finally:
        _set_timeout(WAIT_S)


def _set_timeout(seconds: int) -> None:
    with _Users.lock:
        if _TIMEOUT in _Users.ours:
            os.environ[_TIMEOUT] = str(seconds)
