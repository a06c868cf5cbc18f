"""Messages between two processes over a pipe: a length, and as many bytes."""

from __future__ import annotations

import pickle
import struct
import threading
from typing import Any, BinaryIO

_LENGTH = struct.Struct("!Q")


class Sender:
    """The writing end of a pipe. Thread-safe.

    Args:
        file: Unbuffered, so that nothing is left to write when the other side has ended.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()  # messages must not mix

    def send(self, *message: Any) -> None:
        """Send plain values.

        Raises:
            OSError: Nobody reads any more.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            left = memoryview(_LENGTH.pack(len(data)) + data)
            while left:
                left = left[self._file.write(left) :]


def receive(file: BinaryIO) -> tuple[Any, ...] | None:
    """Wait for the next message; `None` when the other side has ended."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    if len(data) < length:
        return None
    message: tuple[Any, ...] = pickle.loads(data)
    return message
