"""Short waits for a remote server: by default MLflow retries for minutes, which would hold up everything.

MLflow reads these settings from the environment only, so they are put there for a while. What the user has set is left
alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, MutableMapping
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


class ShortWaits:
    """Sets the environment for the first user of short waits, and takes that back after the last one.

    Args:
        environ: The environment that is changed, by default that of the process.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._lock = threading.Lock()  # protects the number of users and the names that were set for them
        self._users = 0
        self._names: tuple[str, ...] = ()

    def shorten(self) -> None:
        """Begin to wait shortly; every call needs its `restore`."""
        with self._lock:
            if self._users == 0:
                self._names = tuple(name for name in _WANTED if name not in self._environ)
                self._environ.update({name: _WANTED[name] for name in self._names})
            self._users += 1

    def restore(self) -> None:
        """Take back what `shorten` set, with its last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for name in self._names:
                    self._environ.pop(name, None)
                self._names = ()

    def hurry(self) -> None:
        """Wait even less from now on."""
        self._set_timeout(LAST_WAIT_S)

    @contextmanager
    def for_upload(self, num_bytes: int) -> Iterator[None]:
        """Wait longer while a file of this size is sent: the server answers when all of it is stored."""
        self._set_timeout(WAIT_S + num_bytes // UPLOAD_BYTES_PER_S)
        try:
            yield
        finally:
            self._set_timeout(WAIT_S)

    def _set_timeout(self, seconds: int) -> None:
        with self._lock:
            if _TIMEOUT in self._names:
                self._environ[_TIMEOUT] = str(seconds)


SHORT_WAITS = ShortWaits()
"""The one of this process: all trackers share its environment."""
