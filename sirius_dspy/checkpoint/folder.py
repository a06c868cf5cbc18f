"""Reads the files of a checkpoint without following links, and replaces them atomically.

A part is the program's state or one agent's folder. Its name contains a hash of its content, so a new part never
overwrites an old one. A save writes the new parts, then replaces the manifest atomically, then removes the old parts. A
part that the manifest does not list is a leftover of an interrupted save.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from sirius_dspy.checkpoint.files import read_json, sha256
from sirius_dspy.checkpoint.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, read_manifest
from sirius_dspy.errors import CheckpointError, SiriuSError

AGENTS = "agents"
_LOCK = ".lock"
_DRAFT = re.compile(r"\.draft-[0-9a-f]{8}")
_STATE = re.compile(r"program-[0-9a-f]{12}\.json")
_AGENT = re.compile(r"[\w.-]{1,80}-[0-9a-f]{12}", re.ASCII)
_BESIDE = frozenset({_LOCK, ".git", ".gitattributes", ".gitignore", ".cache", ".DS_Store", "LICENSE", "README.md"})
"""Files that file systems, git and model hubs put into the folder. They are never read."""
_PATIENCE_S = 60.0
"""Seconds that a save waits for another save into the same folder."""


# Names of parts


def state_name(text: str) -> str:
    """Return the file name of a program's state."""
    return f"program-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}.json"


def agent_name(agent: str, folder: Path) -> str:
    """Return the folder name of an agent's files, which depends on the agent and on their content."""
    content = hashlib.sha256(agent.encode("utf-8", "surrogatepass"))
    for name, digest in digests(folder).items():
        content.update(f"\0{name}\0{digest}".encode("utf-8", "surrogatepass"))
    readable = re.sub(r"[^\w.-]", "_", agent, flags=re.ASCII).strip("._")[:60] or "agent"
    return f"{AGENTS}/{readable}-{content.hexdigest()[:12]}"


# Reading


def check_files(path: Path, manifest: Manifest) -> None:
    """Check that a folder holds exactly the files of its manifest.

    Raises:
        CheckpointError: A file is missing, changed, a link, or not part of the checkpoint.
    """
    try:
        _check_files(path, manifest)
    except (OSError, RecursionError) as error:
        raise CheckpointError(
            f"The files of the checkpoint {str(path)!r} cannot be read: {error}. Copy the whole folder again."
        ) from error


def _check_files(path: Path, manifest: Manifest) -> None:
    present = set(_list_files(path, manifest))
    if missing := sorted(set(manifest.files) - present):
        raise CheckpointError(
            f"The checkpoint {str(path)!r} lacks the file {missing[0]!r}. Copy the whole folder again."
        )
    if strangers := sorted(present - set(manifest.files)):
        raise CheckpointError(
            f"The checkpoint {str(path)!r} holds {strangers[0]!r}, which its manifest does not list. Move it out of "
            "the folder."
        )
    for name, expected in manifest.files.items():
        if sha256(path / name) != expected:
            raise CheckpointError(
                f"The file {name!r} of the checkpoint {str(path)!r} has changed since it was saved. Copy it again."
            )


def _list_files(path: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the files of the checkpoint and any unexpected files, relative to the folder."""
    parts = {"/".join(name.split("/")[:2]) for name in manifest.files}
    for entry in sorted(path.iterdir()):
        if entry.name == AGENTS and stat.S_ISDIR(entry.lstat().st_mode):
            for agent in sorted(entry.iterdir()):
                if f"{AGENTS}/{agent.name}" in parts or not _AGENT.fullmatch(agent.name):
                    yield from _walk(path, f"{AGENTS}/{agent.name}")
        elif entry.name in parts or not _is_ours(entry.name):
            yield from _walk(path, entry.name)


def _walk(path: Path, name: str) -> Iterator[str]:
    """Yield the regular files at or below a name; anything else is an error."""
    mode = (path / name).lstat().st_mode
    if stat.S_ISDIR(mode):
        for entry in sorted((path / name).iterdir()):
            yield from _walk(path, f"{name}/{entry.name}")
    elif stat.S_ISREG(mode):
        yield name
    else:
        raise CheckpointError(
            f"{name!r} in the checkpoint {str(path)!r} is a link or a device. A checkpoint holds plain files only."
        )


def _is_ours(entry: str) -> bool:
    """Return whether an entry may be in the folder although the manifest does not list it."""
    return entry in (MANIFEST, *_BESIDE) or bool(_DRAFT.fullmatch(entry) or _STATE.fullmatch(entry))


# Writing


@contextmanager
def replace_checkpoint(target: Path) -> Iterator[Path]:
    """Yield an empty folder; its parts and manifest replace the checkpoint in `target` when the block ends.

    Raises:
        CheckpointError: `target` holds something else or cannot be written. An old checkpoint in it is unchanged.
    """
    try:
        is_new = not target.exists()
        _refuse_foreign(target)
        target.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(target / _LOCK, timeout=_PATIENCE_S):
                yield from _replace(target)
        finally:
            if is_new and not (target / MANIFEST).exists():
                shutil.rmtree(target, ignore_errors=True)
    except SiriuSError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # a path with a NUL; a file system without locks
        raise CheckpointError(
            f"The checkpoint cannot be written to {str(target)!r}: {error}. An old checkpoint is unchanged. Free "
            "space on the disk, or choose another folder."
        ) from error


def _replace(target: Path) -> Iterator[Path]:
    _clean(target)
    draft = target / f".draft-{uuid4().hex[:8]}"
    try:
        draft.mkdir()
        yield draft
        _sync_tree(draft)
        for part in _parts(draft):
            _place(draft / part, target / part)
        _sync(target)
        (draft / MANIFEST).replace(target / MANIFEST)
        _sync(target)
    finally:
        _clean(target)


def _place(part: Path, final: Path) -> None:
    """Move a part to its place, unless the same part is already there."""
    if os.path.lexists(final):
        if not final.is_symlink() and digests(final) == digests(part):
            return
        _remove(final)  # it was damaged, and with it the checkpoint that it belongs to
    final.parent.mkdir(exist_ok=True)
    part.rename(final)
    _sync(final.parent)


def _parts(folder: Path) -> list[str]:
    parts = [entry.name for entry in folder.iterdir() if _STATE.fullmatch(entry.name)]
    agents = folder / AGENTS
    if agents.is_dir() and not agents.is_symlink():
        parts += [f"{AGENTS}/{entry.name}" for entry in agents.iterdir() if _AGENT.fullmatch(entry.name)]
    return parts


def _clean(target: Path) -> None:
    """Remove the leftovers of interrupted saves. Those that cannot be removed do no harm."""
    with suppress(OSError):
        for entry in target.iterdir():
            if _DRAFT.fullmatch(entry.name):
                _remove(entry)
        try:
            files = read_manifest(target).files if (target / MANIFEST).exists() else {}
        except CheckpointError:
            return  # a damaged manifest does not tell which parts it needs
        named = {"/".join(name.split("/")[:2]) for name in files}
        for part in _parts(target):
            if part not in named:
                _remove(target / part)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_foreign(target: Path) -> None:
    if not os.path.lexists(target):
        return
    stranger = next(_strangers(target), None) if target.is_dir() else target.name
    if stranger is not None:
        raise CheckpointError(
            f"{str(target)!r} holds something that is not a checkpoint of this version: {stranger!r}. Choose another "
            "folder."
        )


def _strangers(target: Path) -> Iterator[str]:
    for entry in sorted(target.iterdir()):
        if entry.is_symlink():
            yield entry.name
        elif entry.name == AGENTS and entry.is_dir():
            yield from (f"{AGENTS}/{agent.name}" for agent in entry.iterdir() if not _AGENT.fullmatch(agent.name))
        elif not _is_ours(entry.name) or (entry.name == MANIFEST and _is_foreign(entry)):
            yield entry.name


def _is_foreign(manifest: Path) -> bool:
    """Return whether a manifest is not ours. A damaged one counts as ours, because saving again repairs it."""
    try:
        plain = read_json(manifest, MAX_MANIFEST_BYTES)
    except CheckpointError:
        return False
    return not (isinstance(plain, dict) and {"format", "agents"} <= plain.keys())


def digests(path: Path) -> dict[str, str]:
    """Map the files at or below a path to their SHA-256."""
    if not path.is_dir():
        return {"": sha256(path)}
    files = sorted(item.relative_to(path).as_posix() for item in path.rglob("*") if not item.is_dir())
    return {name: sha256(path / name) for name in files}


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that it survives a power cut."""
    if os.name == "nt":
        return  # Windows cannot open folders, and flushes files only if they are open for writing
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
