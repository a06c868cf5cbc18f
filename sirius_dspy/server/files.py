"""`/v1/files`: training files, kept in the data folder under names of the server's own."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import BinaryIO

from sirius_dspy.server.answers import ApiError
from sirius_dspy.server.rows import Row, find_tools, read_rows
from sirius_dspy.server.store import Records, new_id
from sirius_dspy.server.wire import FileObject

_LONGEST_NAME = 255


class Files:
    """The uploaded files.

    Args:
        data: The server's data folder.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / "files"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records = Records(self.folder, FileObject, "file")

    def add(self, content: BinaryIO, name: str) -> FileObject:
        """Keep an upload if every line of it can be trained on.

        Args:
            content: What was uploaded.
            name: What the client calls it; shown to clients and used for nothing else.

        Raises:
            ApiError: It cannot be trained on; the message names the line.
        """
        file_id = new_id("file")
        draft = self.folder / f".{file_id}"
        try:
            with draft.open("wb") as file:
                shutil.copyfileobj(content, file)
            read_rows(draft)
            size = draft.stat().st_size
            draft.replace(self.path(file_id))
        finally:
            draft.unlink(missing_ok=True)
        record = FileObject(id=file_id, bytes=size, created_at=int(time.time()), filename=_shown(name))
        return self.records.put(file_id, record)

    def rows(self, file_id: str) -> list[Row]:
        """Read the chats of a file.

        Raises:
            ApiError: There is no such file.
        """
        return read_rows(self.path(self.records.get(file_id).id))

    def find_tools(self, file_id: str) -> int | None:
        """Return the number of a file's first line with native tools; `None` without one.

        Raises:
            ApiError: There is no such file.
        """
        return find_tools(self.path(self.records.get(file_id).id))

    def remove(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            ApiError: There is no such file.
        """
        self.records.get(file_id)
        self.records.remove(file_id)
        self.path(file_id).unlink(missing_ok=True)

    def path(self, file_id: str) -> Path:
        """Return where the content of a known file is."""
        return self.folder / f"{file_id}.jsonl"


def _shown(name: str) -> str:
    """Return a client's name of a file without folders and without characters that terminals and logs obey."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(character for character in last if character.isprintable())
    return kept[:_LONGEST_NAME] or "upload.jsonl"


def check_purpose(purpose: object) -> None:
    """Refuse files that are for something else than fine-tuning.

    Raises:
        ApiError: They are.
    """
    if purpose != "fine-tune":
        raise ApiError(400, "The purpose must be 'fine-tune'; this server has no other use for files.", param="purpose")
