"""Prune a library, and save what is whole in a damaged one."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import dspy
import pytest
from typer.testing import CliRunner

from sirius_dspy import ExperienceLibrary
from sirius_dspy.cli import app
from sirius_dspy.errors import LibraryDamagedError, LibraryError
from sirius_dspy.library.prune import prune_library
from sirius_dspy.library.removing import Removed
from sirius_dspy.library.salvage import salvage_library
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.testing.library import make_run, make_step
from sirius_dspy.trajectory import Attempt, Repair, canonical, example_key
from tests import toy

SUCCESS = {"min_reward": 1.0}


def example(number: int) -> dspy.Example:
    return dspy.Example(question=f"{number}+1?", answer=str(number + 1)).with_inputs("question")


def fill(library: ExperienceLibrary, number: int = 12) -> None:
    """Store runs, of which every third failed; of these, every second is repaired at the second attempt."""
    for index in range(number):
        item = example(index)
        steps = (make_step("solver", prompt=canonical([{"role": "user", "content": f"{index}"}])),)
        common = {"steps": steps, "example_key": example_key(item), "run": f"run-{index % 2}", "iteration": 1}
        run = make_run(**common, reward=float(index % 3 > 0), sample=index)
        library.add(run, item)
        if index % 3 == 0:
            tries = [
                make_run(
                    **common,
                    reward=float(attempt and index % 6 == 0),
                    sample=100 + attempt,
                    origin="repair",
                    parent=run.id,
                )
                for attempt in range(2)
            ]
            attempts = tuple(
                Attempt(0, "solver", "repaired" if run.reward else "failed", reward=run.reward, trajectory=run.id)
                for run in tries
            )
            library.add_repair(Repair(run.id, attempts, f"run-{index % 2}", 1), tries)
        library.add(make_run(**common, reward=1.0, sample=index, origin="validation"), item)


@pytest.fixture(params=["sqlite", "postgres"])
def library(request, tmp_path):
    url = tmp_path / "library.sqlite" if request.param == "sqlite" else request.getfixturevalue("new_postgres_url")()
    with ExperienceLibrary(url) as opened:
        fill(opened)
        yield opened


def test_what_is_pruned_goes_and_the_rest_is_whole(library):
    kept = {run.id for run in library.trajectories()} - {run.id for run in library.trajectories(origin="validation")}
    removed = prune_library(library, origin="validation")
    assert removed == Removed(trajectories=12)
    assert {run.id for run in library.trajectories()} == kept
    assert library.verify() == []


def test_a_failed_run_stays_as_long_as_a_repair_of_it_does(library):
    successes = {run.id for run in library.trajectories(**SUCCESS)}
    parents = {run.parent for run in library.trajectories(**SUCCESS, origin="repair")}
    assert len(parents) == 2
    removed = prune_library(library, below=1.0)
    assert removed == Removed(trajectories=6, repairs=2)
    left = {run.id: run for run in library.trajectories()}
    assert successes | parents <= left.keys()
    assert library.count(below=1.0) == 4  # each with the attempt that failed before
    assert {repair.parent for repair in library.repairs()} == parents
    assert library.verify() == []


def test_all_of_a_compile_goes_with_texts_that_nothing_else_names(library):
    removed = prune_library(library, run="run-1")
    assert library.count(run="run-1") == 0
    assert (removed.examples, removed.requests, removed.repairs) == (6, 6, 2)
    assert len({run.example_key for run in library.trajectories()}) == 6
    assert all(library.example(run.example_key) for run in library.trajectories())
    assert library.verify() == []


def test_a_dry_run_deletes_nothing(library):
    before = [run.id for run in library.trajectories()]
    assert prune_library(library, run="run-1", dry_run=True).trajectories > 0
    assert [run.id for run in library.trajectories()] == before


def test_only_what_is_older_goes(library):
    now = datetime.now(UTC)
    assert prune_library(library, before=now - timedelta(days=1)) == Removed()
    assert prune_library(library, before=now + timedelta(days=1)).trajectories == library.count() + 32
    assert library.count() == 0


def test_a_moment_is_the_same_in_every_time_zone(library):
    at = max(run.created_at for run in library.trajectories()) + timedelta(minutes=1)
    for hours in (-11, 0, 12):
        moment = at.astimezone(timezone(timedelta(hours=hours)))
        assert prune_library(library, before=moment, dry_run=True).trajectories == 32
        assert prune_library(library, before=moment - timedelta(hours=2), dry_run=True) == Removed()


def test_a_file_that_cannot_shrink_says_that_the_runs_are_gone(whole, monkeypatch):
    path, ids, _ = whole

    def connect(*arguments, **options):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("sirius_dspy.library.prune.sqlite3", SimpleNamespace(connect=connect, Error=sqlite3.Error))
    with ExperienceLibrary(path) as library:
        with pytest.raises(LibraryError, match="The runs are deleted, but"):
            prune_library(library, run="run-1")
        size = library.num_bytes()
        monkeypatch.undo()
        assert prune_library(library, run="run-1") == Removed()
        assert library.num_bytes() < size
        assert 0 < library.count() < len(ids)


def test_a_compile_at_work_keeps_its_runs(tmp_path):
    toy.compiled_by(tmp_path)
    before = (tmp_path / "library.sqlite").read_bytes()
    with RunDir(tmp_path).locked():
        for where in (tmp_path, tmp_path / "library.sqlite"):
            assert cli("prune", where, "--failed", "--yes")[0] == 2
    assert (tmp_path / "library.sqlite").read_bytes() == before


@pytest.mark.parametrize("filters", [{}, {"run": None}, {"before": datetime(2026, 1, 1)}])
def test_what_would_prune_all_or_says_too_little_is_refused(filters, library):
    with pytest.raises(LibraryError):
        prune_library(library, **filters)
    assert library.count() == 32


def test_the_file_shrinks(tmp_path):
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        fill(library, 300)
        before = library.num_bytes()
        prune_library(library, run="run-1")
        assert library.num_bytes() < 0.7 * before


def test_a_compile_goes_on_after_its_runs_were_pruned(tmp_path):
    compiled = toy.compiled_by(tmp_path)
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        assert prune_library(library, origin="validation").trajectories > 0
    again = toy.compiled_by(tmp_path)
    assert toy.without_time(again.detailed_results) == toy.without_time(compiled.detailed_results)
    more = toy.compiled_by(tmp_path, iterations=3)
    assert len(more.detailed_results.iterations) == 4


# A damaged library


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "library.sqlite"
    with ExperienceLibrary(path) as library:
        fill(library, 120)
        ids = {run.id for run in library.trajectories()}
        repairs = len(list(library.repairs()))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path, ids, repairs


def test_a_whole_library_is_saved_whole(whole, tmp_path):
    path, ids, repairs = whole
    before = path.read_bytes()
    saved = salvage_library(path, tmp_path / "new.sqlite")
    assert (saved.trajectories, saved.repairs, saved.dropped) == (len(ids), repairs, 0)
    assert path.read_bytes() == before
    with ExperienceLibrary(path) as old, ExperienceLibrary(tmp_path / "new.sqlite") as new:
        assert new.library_id == old.library_id
        assert list(new.trajectories()) == list(old.trajectories())
        assert list(new.repairs()) == list(old.repairs())
        assert new.add(make_run()) == old.add(make_run())


def test_tables_of_sqlite_itself_do_no_harm(whole, tmp_path):
    path, ids, _ = whole
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ANALYZE")
    assert salvage_library(path, tmp_path / "new.sqlite").trajectories == len(ids)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_saved_of_a_library_with_broken_pages_is_whole(seed, whole, tmp_path):
    path, ids, _ = whole
    random_ = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        start = 4096 * random_.randrange(8, len(content) // 4096)  # not the schema
        content[start : start + 4096] = random_.randbytes(4096)
    path.write_bytes(content)
    saved = salvage_library(path, tmp_path / "new.sqlite")
    with ExperienceLibrary(tmp_path / "new.sqlite") as library:
        assert library.verify() == []
        found = {run.id for run in library.trajectories()}
    assert found <= ids
    assert len(found) == saved.trajectories
    assert len(found) > 0


def test_a_changed_row_costs_its_run_and_what_depends_on_it(whole, tmp_path):
    path, ids, _ = whole
    with closing(sqlite3.connect(path)) as connection:
        parent, number = connection.execute(
            "SELECT parent, count(*) FROM trajectories WHERE parent IS NOT NULL GROUP BY parent LIMIT 1"
        ).fetchone()
        connection.execute("UPDATE steps SET outputs = ? WHERE trajectory = ?", ('{"answer": "5"}', parent))
        connection.commit()
    saved = salvage_library(path, tmp_path / "new.sqlite")
    assert saved.dropped == 1 + number
    assert saved.trajectories == len(ids) - 1 - number


def test_the_end_of_a_file_that_was_cut_short_is_all_that_is_lost(whole, tmp_path):
    path, ids, _ = whole
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    saved = salvage_library(path, tmp_path / "new.sqlite")
    assert 0 < saved.trajectories < len(ids)


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0" + b"\xff" * 5000], ids=len)
def test_where_nothing_can_be_read_nothing_is_written(content, tmp_path):
    path = tmp_path / "library.sqlite"
    path.write_bytes(content)
    with pytest.raises(LibraryDamagedError):
        salvage_library(path, tmp_path / "new.sqlite")
    assert [item.name for item in tmp_path.iterdir()] == ["library.sqlite"]


def test_no_file_is_overwritten(whole, tmp_path):
    (tmp_path / "new.sqlite").write_text("mine", encoding="utf-8")
    with pytest.raises(LibraryError, match="exists"):
        salvage_library(whole[0], tmp_path / "new.sqlite")
    with pytest.raises(LibraryError, match="no file"):
        salvage_library(tmp_path / "nowhere", tmp_path / "other.sqlite")


# The commands


def cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["library", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_prune_says_what_would_go_and_deletes_when_told(whole):
    path, ids, _ = whole
    code, shown = cli("prune", path, "--origin", "validation", "--json")
    assert code == 0
    assert json.loads(shown).items() >= {"trajectories": 120, "deleted": False}.items()
    code, shown = cli("prune", path, "--origin", "validation", "--yes", "--json")
    assert json.loads(shown)["bytes"] > 0
    with ExperienceLibrary(path) as library:
        assert library.count() == len(ids) - 120
    assert cli("prune", path)[0] == 2


def test_repair_writes_a_new_file(whole, tmp_path):
    path, ids, _ = whole
    code, shown = cli("repair", path, "--out", tmp_path / "new.sqlite")
    assert (code, f"Saved {len(ids)} runs" in shown) == (0, True)
    assert cli("repair", tmp_path, "--out", tmp_path / "other.sqlite")[0] == 2
