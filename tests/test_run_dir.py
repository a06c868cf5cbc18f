"""Run directories whose files or folders are broken: typed errors before anything is paid for, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import dspy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sirius_dspy import ExperienceLibrary
from sirius_dspy.cli import app
from sirius_dspy.errors import LibraryDamagedError, LibraryError, RunDamagedError, RunDirError, SiriuSError
from sirius_dspy.files import file_name
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.optimizer.results import HeldOutScores, ProgramScore
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.report import write_run_report
from sirius_dspy.testing import ScriptedTrainer, ToyLM
from sirius_dspy.tracking.events import Tracker
from tests.toy import ADAPTER, compiled_by, student

pytestmark = pytest.mark.usefixtures("chat_adapter")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with dspy.context(adapter=ADAPTER):
        compiled_by(folder)
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# Files

STAGES = (
    "run.json",
    "library.json",
    "stages/iteration-1.json",
    "stages/train-1-writer.predict.json",
    "stages/spending.json",
)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def changed(path: Path) -> None:
    """Valid JSON, every value of another type."""
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({name: [[1.5]] for name in record}), encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("5"),
    "null": lambda path: path.write_text("null"),
    "an empty object": lambda path: path.write_text("{}"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "deep": lambda path: path.write_text('{"a":' * 50_000 + "1" + "}" * 50_000),
    "a huge number": lambda path: path.write_text('{"iteration": ' + "9" * 5000 + "}"),
    "other types": changed,
    "a folder": as_folder,
    "a dangling link": as_dangling_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", STAGES)
def test_a_damaged_file_is_a_typed_error_and_nothing_is_paid_twice(run_dir, name, damage):
    path = run_dir / name
    if "train" in name:  # jobs are looked at while their iteration has not finished
        for number in range(int(path.name.split("-")[1]), 3):
            (run_dir / "stages" / f"iteration-{number}.json").unlink()
    kept = path.read_bytes()
    DAMAGES[damage](path)
    program = student()
    with pytest.raises(SiriuSError) as caught:
        compiled_by(run_dir, program)
    assert path.name in str(caught.value) or name == "run.json"  # that of another compile is a mismatch
    assert program.doubler.lm.calls == 0
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(kept)  # from the backup
    assert compiled_by(run_dir, program).detailed_results["best_score"] == 1.0
    assert program.doubler.lm.calls == 0


@pytest.mark.parametrize("name", ["iteration-1", "iteration-2", "results", "train-1-doubler", "spending"])
def test_a_stage_file_that_is_deleted_is_made_again(run_dir, name):
    (run_dir / "stages" / f"{name}.json").unlink()
    program = student()
    done = compiled_by(run_dir, program).detailed_results
    assert [entry["score"] for entry in done["iterations"]] == [0.5, 1.0, 1.0]
    assert program.doubler.lm.calls == 0


def test_damaged_results_do_not_stop_the_compile_but_the_report(run_dir):
    path = run_dir / "stages" / "results.json"
    path.write_text('{"iterations": [')
    with pytest.raises(RunDamagedError, match=r"results\.json.*Delete it") as caught:
        write_run_report(run_dir)
    assert caught.value.path == path
    program = student()
    compiled_by(run_dir, program)
    assert program.doubler.lm.calls == 0
    write_run_report(run_dir)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "stages/iteration-1.json", "stages/results.json", "stages/test.json"])
def test_reports_of_damaged_folders_are_typed_errors(run_dir, name, damage):
    RunDir(run_dir).finish("test", {"programs": [{"program": "p", "score": 0.5, "num_examples": 2}]})
    if "iteration" in name:
        (run_dir / "stages" / "results.json").unlink()
    if (damage, name) == ("an empty object", "stages/test.json"):
        return  # nobody measured anything
    DAMAGES[damage](run_dir / name)
    with pytest.raises(RunDamagedError):
        write_run_report(run_dir)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("report {}", "stages/results.json"),
        ("library ls {}", "run.json"),
        ("library export {} --format openai --agent doubler --out {}/rows.jsonl", "training/iteration-2/doubler.jsonl"),
    ],
)
def test_commands_say_what_is_damaged(run_dir, command, name):
    (run_dir / name).write_bytes(b'{"\xff')
    ended = CliRunner().invoke(app, command.replace("{}", str(run_dir)).split())
    assert ended.exit_code in (1, 2)
    assert isinstance(ended.exception, SystemExit)
    assert "is damaged" in ended.stderr
    assert not (run_dir / "rows.jsonl").exists()


def test_stages_without_a_record_of_their_compile_are_refused(run_dir):
    (run_dir / "run.json").unlink()
    with pytest.raises(RunDamagedError, match=r"run\.json' is missing"):
        compiled_by(run_dir, seed=5)  # it would go on with another compile's iterations


def test_training_files_are_checked_when_they_are_read(run_dir):
    rows = RunDir(run_dir).training_rows(1, "doubler")
    assert rows
    assert RunDir(run_dir).training_rows(7, "doubler") is None
    path = RunDir(run_dir).training_file(1, "doubler")
    whole = path.read_bytes()
    for content in (whole[:-5], whole + b"\n", b'{"messages": 5}\n', b"\xff\n", b"[]\n"):
        path.write_bytes(content)
        with pytest.raises(RunDamagedError, match="doubler"):
            RunDir(run_dir).training_rows(1, "doubler")


# Folders


def long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "run"


def dangling_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link"


def circle_of_links(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a" / "run"


def with_nul(folder: Path) -> Path:
    return folder / "a\0b"


def half_a_pair(folder: Path) -> Path:
    return folder / "\ud83d"


def lock_is_a_folder(folder: Path) -> Path:
    (folder / "run" / ".lock").mkdir(parents=True)
    return folder / "run"


def stages_is_a_file(folder: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "stages").write_text("mine")
    return folder / "run"


def without_permission(folder: Path) -> Path:
    return Path("/proc/1/run")  # not even root may make folders there


@pytest.mark.parametrize(
    "place",
    [
        long_name,
        a_file,
        below_a_file,
        dangling_link,
        circle_of_links,
        with_nul,
        half_a_pair,
        lock_is_a_folder,
        stages_is_a_file,
        pytest.param(
            without_permission, marks=pytest.mark.skipif(not os.path.isdir("/proc/1"), reason="no /proc here")
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_an_error_before_the_first_call(tmp_path, place):
    program = student()
    where = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunDirError, match="cannot be used") as caught:
        compiled_by(where, program)
    assert program.doubler.lm.calls == 0
    assert isinstance(caught.value, OSError)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock" or place is lock_is_a_folder] == before
    if place is stages_is_a_file:
        (where / "stages").unlink()
        compiled_by(where)  # the lock was given back


def test_a_full_disk_is_noticed_before_the_first_call_and_before_each_job(tmp_path, monkeypatch):
    fsync = os.fsync

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Fills(Tracker):
        def on_curated(self, event):
            monkeypatch.setattr(os, "fsync", full)

    program = student()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirError, match="Free some space"):
        compiled_by(tmp_path / "run", program)
    assert program.doubler.lm.calls == 0
    monkeypatch.setattr(os, "fsync", fsync)
    trainer = ScriptedTrainer({"doubler": ToyLM("toy/one"), "writer.predict": ToyLM("toy/two")})
    with pytest.raises(RunDirError, match="Free some space"):
        compiled_by(tmp_path / "run", program, trainer=trainer, tracker=Fills())
    assert trainer.requests == []
    assert not list(tmp_path.rglob(".probe*"))


def test_a_training_folder_that_breaks_later_is_an_error_and_keeps_what_was_paid_for(tmp_path):
    class Breaks(Tracker):
        def on_repaired(self, event):
            (tmp_path / "training").write_text("mine")

    program = student()
    with pytest.raises(RunDirError, match="training"):
        compiled_by(tmp_path, program, tracker=Breaks())
    paid = program.doubler.lm.calls
    (tmp_path / "training").unlink()
    whole = student()
    compiled_by(tmp_path / "whole", whole)
    compiled_by(tmp_path, program)
    assert program.doubler.lm.calls == whole.doubler.lm.calls
    assert paid > 0


# The library


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(path: Path) -> None:
    path.unlink()
    with ExperienceLibrary(path) as other:
        other.count()


def gone(path: Path) -> None:
    path.unlink()


def flipped(path: Path) -> None:
    """One bit in the text of a reply; SQLite itself does not notice."""
    content = bytearray(path.read_bytes())
    place = content.rindex(b"ans:")
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """As a kill in the second iteration leaves it, all in the library's one file."""
    left = Path(shutil.copytree(finished, tmp_path / "left"))
    for name in ("results", "iteration-2"):
        (left / "stages" / f"{name}.json").unlink()
    return left


@pytest.mark.parametrize("harm", [emptied, cut, replaced, gone, flipped])
def test_a_library_that_lost_its_runs_is_not_taken_for_new(interrupted, harm):
    path = RunDir(interrupted).library
    for log in interrupted.glob("library.sqlite-*"):
        log.unlink()
    kept = path.read_bytes()
    harm(path)
    left = path.read_bytes() if path.exists() else None
    program = student()
    with pytest.raises(LibraryError, match=r"Restore it|restore|Restore"):
        compiled_by(interrupted, program)
    assert program.doubler.lm.calls == 0
    assert (path.read_bytes() if path.exists() else None) == left or harm is replaced
    for log in interrupted.glob("library.sqlite-*"):
        log.unlink()
    path.write_bytes(kept)
    compiled_by(interrupted, program)
    assert program.doubler.lm.calls == 0


def test_an_empty_file_is_no_library_that_exists(tmp_path):
    (tmp_path / "library.sqlite").touch()
    with pytest.raises(LibraryDamagedError, match="empty"):
        open_library(tmp_path)
    assert (tmp_path / "library.sqlite").stat().st_size == 0


def test_a_copy_of_a_folder_without_its_library_does_not_open_the_originals(tmp_path):
    compiled_by(tmp_path / "run", iterations=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with open_library(tmp_path / "copy") as library:
        assert library.url.endswith("copy/library.sqlite")
    (tmp_path / "copy" / "library.sqlite").unlink()
    with pytest.raises(LibraryError, match=r"copy' is a copy of '.*run' without its library"):
        open_library(tmp_path / "copy")


def test_rows_of_other_compiles_are_not_this_one_s_business(tmp_path):
    with ExperienceLibrary(tmp_path / "shared.db") as shared:
        compiled_by(tmp_path / "run", library=shared, iterations=1)
        compiled_by(tmp_path / "other", library=shared, iterations=1, seed=1)
        runs = {entry.run for entry in shared.entries()}
        assert len(runs) == 2
        assert [shared.verify(run=run) for run in runs] == [[], []]
        mine = RunDir(tmp_path / "run").results()["run"]
        with closing(sqlite3.connect(tmp_path / "shared.db")) as database:
            database.execute("UPDATE trajectories SET prediction = '7' WHERE run != ?", [mine])
            database.commit()
        compiled_by(tmp_path / "run", library=shared, iterations=1)
        with pytest.raises(LibraryDamagedError, match="more problems"):
            compiled_by(tmp_path / "other", library=shared, iterations=1, seed=1)


def test_a_library_may_move(tmp_path):
    with ExperienceLibrary(tmp_path / "here.db") as library:
        compiled_by(tmp_path / "run", library=library, iterations=1)
    shutil.move(tmp_path / "here.db", tmp_path / "there.db")
    with ExperienceLibrary(tmp_path / "there.db") as library:
        compiled_by(tmp_path / "run", library=library, iterations=1)
    assert open_library(tmp_path / "run").url.endswith("there.db")


# Results


def test_a_prolonged_compile_that_was_killed_does_not_show_the_old_results(tmp_path):
    class Killed(Tracker):
        def on_rolled_out(self, event):
            if event.iteration == 2:
                raise KeyboardInterrupt

    compiled_by(tmp_path, iterations=1)
    folder = RunDir(tmp_path)
    folder.finish_test(HeldOutScores((ProgramScore("p", 0.5, 2),)))
    assert read_results(tmp_path).ended == "finished"
    compiled_by(tmp_path, iterations=1)
    assert folder.test() is not None  # nothing changed
    with pytest.raises(KeyboardInterrupt):
        compiled_by(tmp_path, iterations=2, tracker=Killed())
    assert folder.results() is None
    shown = read_results(tmp_path)
    assert shown.ended == "unfinished"
    assert folder.test() is None
    assert [entry.iteration for entry in shown.iterations] == [0, 1]
    assert shown.unfinished.iteration == 2
    assert "- State: not finished" in write_run_report(tmp_path)[1].read_text(encoding="utf-8")
    compiled_by(tmp_path, iterations=2)
    assert len(read_results(tmp_path).iterations) == 3


# Names

NAMES = st.text(st.sampled_from("abAB01._-/\\:*?'\"<>| \0\n\ud800é\u0301Éß"), max_size=12) | st.text(max_size=300)


@given(first=NAMES, second=NAMES)
@example(first="a/b", second="a_b")
@example(first="Solver", second="solver")
@example(first="é", second="e\u0301")
@example(first="a.sources", second="a")
@example(first="x" * 299, second="x" * 300)
def test_no_two_names_are_one_file(first, second):
    def on_any_file_system(name: str) -> str:
        return unicodedata.normalize("NFC", file_name(name)).casefold().rstrip(". ")

    assert (on_any_file_system(first) == on_any_file_system(second)) is (first == second)
    assert (
        on_any_file_system(file_name(first)) != on_any_file_system(second)
        or second == file_name(first)
        or first == second
    )


@given(name=NAMES)
@example(name="")
@example(name=".")
@example(name="..")
@example(name="con")
@example(name="nul.predict")
@example(name=" ")
def test_every_name_is_a_proper_file_name(name):
    made = file_name(name)
    assert made == Path(made).name
    assert made.isascii()
    assert len(made) <= 120
    assert made[0] not in ".- "
    assert made[-1] not in ". "
    assert not set(made) & set('/\\:*?"<>|\0\n ')
    assert made.partition(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


@pytest.mark.parametrize("name", ["solver.predict", "doubler", "train-1-writer.predict", "_x", "a_b2"])
def test_a_simple_name_stays_as_it_is(name):
    assert file_name(name) == name


@pytest.mark.parametrize("name", ["..", ".", "a/b", "x" * 300, "<b>", "Solver", "nul"])
def test_agents_of_any_name_are_trained(tmp_path, name):
    other = name.swapcase() if name.swapcase() != name else "rest"
    agents = {name: ["doubler"], other: ["writer.predict"]}
    done = compiled_by(tmp_path / "run", iterations=1, agents=agents)
    assert done.doubler.lm.model != done.writer.predict.lm.model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    rows = [path for path in (tmp_path / "run" / "training" / "iteration-1").iterdir() if "sources" not in path.name]
    assert len(rows) == 2
    again = student()
    compiled_by(tmp_path / "run", again, iterations=1, agents=agents)
    assert again.doubler.lm.calls == 0
    write_run_report(tmp_path / "run")
