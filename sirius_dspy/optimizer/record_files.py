"""Reads the JSON files of a run directory, and checks them: what is cut short, empty, or something else is an error."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, TypeVar

from sirius_dspy.errors import ResultError, RunDamagedError, RunDirError
from sirius_dspy.optimizer import records
from sirius_dspy.optimizer.result_base import Result

RESTORE = "Restore it from a backup, or choose another `run_dir`."
"""Advice for files that cannot be made again."""


def read_record_file(
    path: Path, advice: str, shape: type[records.Record] = records.Record, **expected: Any
) -> dict[str, Any] | None:
    """The one way in which our JSON files are read.

    Args:
        path: The file.
        advice: What can be done if it is damaged, as a sentence.
        shape: What it has to hold.
        **expected: Fields that must have exactly these values.

    Returns:
        The object; `None` if there is no file.

    Raises:
        RunDamagedError: It is cut short, empty, or not what was written.
        RunDirError: It cannot be read.
    """
    text = read_text(path, advice)
    if text is None:
        return None
    try:
        return records.read_record(text, shape, **expected)
    except ValueError as error:
        raise damaged(path, str(error), advice) from error


ResultKind = TypeVar("ResultKind", bound=Result)


def read_result_file(path: Path, advice: str, kind: type[ResultKind], **expected: Any) -> ResultKind | None:
    """Like `read_record_file`, for files with a `Result`."""
    record = read_record_file(path, advice, **expected)
    if record is None:
        return None
    try:
        return kind.from_dict(record)
    except ResultError as error:
        raise damaged(path, str(error).rstrip("."), advice) from error


def read_text(path: Path, advice: str) -> str | None:
    """The text of a file; `None` if there is none.

    Raises:
        RunDamagedError: It is cut short, or no text.
        RunDirError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="surrogatepass")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise damaged(path, "it is a link to a file that is gone", advice) from error
        return None
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not UTF-8 text", advice) from error
    except IsADirectoryError as error:
        raise damaged(path, "it is a folder", advice) from error
    except (OSError, ValueError) as error:
        raise RunDirError(f"The file {str(path)!r} cannot be read: {advice_on(error)}") from error


def damaged(path: Path, what: str, advice: str) -> RunDamagedError:
    """The error for a file that is not what was written."""
    return RunDamagedError(f"The file {str(path)!r} is damaged: {what}. {advice}", path=path)


def advice_on(error: OSError | ValueError) -> str:
    """What the system said, and what can be done about it."""
    if not isinstance(error, OSError):
        return f"{error}. Choose another path."
    said = error.strerror or str(error)
    where = f" ({error.filename!r})" if error.filename else ""
    return f"{said}{where}. {_ADVICE.get(error.errno or 0, _CHOOSE)}"


_CHOOSE = "Choose another `run_dir`, which is a folder where you may write, or a new path."
_ADVICE = {
    errno.ENOSPC: "All that was finished is kept. Free some space, and call again.",
    errno.EDQUOT: "All that was finished is kept. Free some space, and call again.",
    errno.EACCES: "Give yourself the permission to read and write there, or choose another `run_dir`.",
    errno.EPERM: "Give yourself the permission to read and write there, or choose another `run_dir`.",
    errno.EROFS: "The file system is read-only. Choose a `run_dir` on another one.",
    errno.ENOTDIR: "A file lies where a folder is needed. Move it away, or choose another `run_dir`.",
    errno.EEXIST: "Something that is no folder lies there. Move it away, or choose another `run_dir`.",
    errno.EISDIR: "A folder lies where a file is needed. Move it away, or choose another `run_dir`.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
}
"""What the system reports -> what can be done."""
