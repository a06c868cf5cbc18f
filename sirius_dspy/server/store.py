"""The data folder: one JSON file per record, so that a server that was killed finds all of them again."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from sirius_dspy.errors import ServerError
from sirius_dspy.files import file_name, write_text
from sirius_dspy.server.answers import ApiError, not_found

Record = TypeVar("Record", bound=BaseModel)
Item = TypeVar("Item")


def new_id(kind: str) -> str:
    """Return a new id; ids of one kind sort by the time at which they were made."""
    return f"{kind}-{time.time_ns():016x}{secrets.token_hex(4)}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second server out of a data folder; the lock goes with the process, however it ends.

    Raises:
        ServerError: Another server uses the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ServerError(f"Another server uses {str(folder)!r}. End it, or give this one its own `--data`.") from error
    except (OSError, ValueError) as error:
        raise ServerError(f"The data folder {str(folder)!r} cannot be used: {error}. Pass another `--data`.") from error
    try:
        yield
    finally:
        lock.release()


class Records(Generic[Record]):
    """Records of one kind, by id, in memory and on disk. Thread-safe.

    Clients name records by id. An id that none of the records has is refused and never becomes part of a path.

    Args:
        folder: Where their files are.
        kind: The class of the records.
        name: What errors call them.

    Raises:
        ServerError: A file does not hold what was written.
    """

    def __init__(self, folder: Path, kind: type[Record], name: str) -> None:
        self.folder = folder
        self.name = name
        self._lock = threading.RLock()
        self._records = dict(_read(path, kind) for path in sorted(folder.glob("[!.]*.json")))

    def __iter__(self) -> Iterator[Record]:
        """Iterate over a copy, oldest first."""
        with self._lock:
            return iter([self._records[name] for name in sorted(self._records)])

    def get(self, name: str) -> Record:
        """Return a record.

        Raises:
            ApiError: There is none with this id.
        """
        with self._lock:
            if name not in self._records:
                raise not_found(self.name, name)
            return self._records[name]

    def put(self, name: str, record: Record) -> Record:
        """Add or replace a record, on disk first."""
        with self._lock:
            write_text(self._path(name), record.model_dump_json(indent=1))
            self._records[name] = record
        return record

    def remove(self, name: str) -> None:
        """Remove a record."""
        with self._lock:
            self._path(name).unlink(missing_ok=True)
            del self._records[name]

    def _path(self, name: str) -> Path:
        return self.folder / f"{file_name(name)}.json"


def _read(path: Path, kind: type[Record]) -> tuple[str, Record]:
    try:
        record = kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ServerError(
            f"The file {str(path)!r} is damaged. Restore it or move it away; then start again."
        ) from error
    return str(vars(record)["id"]), record


def page(items: list[Item], ids: list[str], after: str | None, limit: int) -> tuple[list[Item], bool]:
    """Return the items behind one id, and whether there are more of them.

    Raises:
        ApiError: No item has the id.
    """
    if after is not None and after not in ids:
        raise ApiError(404, f"No such object: {after[:200]!r}", param="after")
    start = 0 if after is None else ids.index(after) + 1
    return items[start : start + limit], len(items) > start + limit
