"""Whatever ends a save, and whenever: the path holds a whole checkpoint, the old one or the new one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dspy
import pytest

import sirius_dspy
from sirius_dspy.checkpoint import save_agent, verify
from sirius_dspy.errors import CheckpointError
from sirius_dspy.testing import ScriptedLM
from tests.toy import ADAPTER, Doubling, examples, optimizer, student

CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile")
_armed: tuple[str, int] | None = None
"""In a child process: the folder, and the number of its change before which the process is killed."""
_changes = 0


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    global _changes
    if _armed is None or _armed[0] not in str(arguments):
        return
    if event in CHANGES or (event == "open" and any(mode in str(arguments[1]) for mode in "wax")):
        _changes += 1
        if _changes == _armed[1]:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_audit)  # a hook stays for ever; it does nothing in this process


def in_a_child(work: Callable[[], object], folder: Path, kill_at: int = 0) -> int:
    """Run in a process of its own, which is killed right before a change of the folder.

    Returns:
        -9 if it was killed, else the number of changes.
    """
    global _armed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads; the child starts none
        pid = os.fork()
    if pid == 0:
        code = 255
        with suppress(BaseException):
            _armed = (str(folder), kill_at)
            work()
            code = _changes
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    with dspy.context(adapter=ADAPTER):
        compiled = optimizer(folder / "run", iterations=1).compile(
            student(), trainset=examples(), valset=examples(range(2))
        )
        return sirius_dspy.save(compiled, folder / "checkpoint")


def untrained(target: Path) -> Path:
    """An older checkpoint, with other parts."""
    program = Doubling()
    program.set_lm(ScriptedLM({"a": "b"}))
    with dspy.context(adapter=ADAPTER):
        return sirius_dspy.save(program, target)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


@pytest.fixture
def trained(source) -> dspy.Module:
    dspy.configure(adapter=ADAPTER)
    return sirius_dspy.load(source, program=Doubling)


@pytest.mark.parametrize("what", ["program", "agent"])
def test_a_save_killed_anywhere_leaves_the_old_or_the_new(source, trained, tmp_path, what):
    """Right before each change of a file, one process after the other, as far as there are changes."""
    target = tmp_path / "checkpoint"

    def work() -> None:
        if what == "program":
            sirius_dspy.save(trained, target)
        else:
            save_agent(source, "doubler", target)

    untrained(target)
    steps = in_a_child(work, target)
    assert 8 < steps < 200
    seen = set()
    for number in range(1, steps + 1):
        shutil.rmtree(target)
        before = files(untrained(target))
        assert in_a_child(work, target, number) == -9
        manifest = verify(target)
        is_new = manifest.agents["doubler"].weights is not None
        seen.add(is_new)
        assert is_new or before <= files(target)
        if manifest.state is not None:
            sirius_dspy.load(target, program=Doubling)
            sirius_dspy.load(source, program=Doubling)  # equal weights were read last from here
        untrained(target)  # the next save finds and removes what was left
        assert files(target) == before == {"manifest.json", *verify(target).files}
    assert seen == {False, True}


def test_a_first_save_that_was_killed_is_no_checkpoint_and_in_nobody_s_way(trained, tmp_path):
    target = tmp_path / "checkpoint"
    for number in (2, 5, 9):
        assert in_a_child(lambda: sirius_dspy.save(trained, target), target, number) == -9
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            sirius_dspy.load(target, program=Doubling)
        untrained(target)
        assert files(target) == {"manifest.json", *verify(target).files}
        shutil.rmtree(target)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: longer files cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_typed_error_and_the_old_checkpoint_stays(tmp_path):
    target = untrained(tmp_path / "checkpoint")
    before = {name: (target / name).read_bytes() for name in files(target)}
    program = Doubling()
    program.set_lm(ScriptedLM({"a": "b" * 5000}))
    with files_of_at_most(500), pytest.raises(CheckpointError, match="cannot be written"):
        sirius_dspy.save(program, target)
    with files_of_at_most(500), pytest.raises(CheckpointError, match="cannot be written"):
        sirius_dspy.save(program, tmp_path / "fresh")
    assert {name: (target / name).read_bytes() for name in files(target)} == before
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("place", ["file", "below a file", "NUL", "too long"])
def test_a_place_that_cannot_hold_a_folder_is_a_typed_error(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    name = {"file": "file", "below a file": "file/checkpoint", "NUL": "a\0b", "too long": "x" * 5000}[place]
    with pytest.raises(CheckpointError):
        untrained(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "stranger", ["notes.txt", "agents/notes.txt", "program.json", ".env", "manifest.json", "agents-of-mine/x"]
)
def test_folders_of_others_are_not_touched(tmp_path, stranger):
    mine = tmp_path / "mine" / stranger
    mine.parent.mkdir(parents=True)
    mine.write_text(json.dumps({"name": "my web page"}))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        untrained(tmp_path / "mine")
    assert files(tmp_path / "mine") == {stranger}


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    target = untrained(tmp_path / "checkpoint")
    (tmp_path / "precious").write_text("mine")
    (target / ".lock").unlink(missing_ok=True)
    (target / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError):
        untrained(target)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_damaged_checkpoint_is_mended_by_saving_again(source, tmp_path):
    target = untrained(tmp_path / "checkpoint")
    whole = files(target)
    for victim in sorted(whole):
        (target / victim).write_text("{")
        untrained(target)
        assert verify(target)
        assert files(target) == whole


def test_weights_stay_where_they_are_when_they_do_not_change(source, tmp_path):
    """An LM that was loaded from the folder goes on finding its weights there."""
    dspy.configure(adapter=ADAPTER)
    target = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    before = {name: (target / name).stat().st_ino for name in files(target) if name.startswith("agents/")}
    program = sirius_dspy.load(target, program=Doubling)
    program.doubler.demos = [dspy.Example(number=1, doubled="2")]
    sirius_dspy.save(program, target)
    assert {name: (target / name).stat().st_ino for name in files(target) if name.startswith("agents/")} == before
    assert sirius_dspy.load(target, program=Doubling).doubler.demos[0].doubled == "2"


def test_saves_into_one_folder_wait_for_each_other(trained, tmp_path):
    target = tmp_path / "checkpoint"
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(sirius_dspy.save, trained, target) for _ in range(12)]:
            assert done.result() == target
    assert files(target) == {"manifest.json", *verify(target).files}


def test_a_reader_sees_one_or_the_other_while_it_is_replaced(trained, tmp_path):
    target = untrained(tmp_path / "checkpoint")
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            with dspy.context(adapter=ADAPTER):
                sirius_dspy.save(trained, target)
            untrained(target)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace)
        try:
            for _ in range(20):
                verify(target)
        finally:
            stop.set()
        writer.result()
