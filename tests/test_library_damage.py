"""What can be wrong with the database of a library, and what the error says."""

import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy

from sirius_dspy.errors import LibraryDamagedError, LibraryError, MissingDependencyError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.testing.library import make_run


def refused_untouched(path, error=LibraryDamagedError):
    """Use the library at `path`, expect the error, and that the file has not changed by a byte."""
    before = path.read_bytes()
    with ExperienceLibrary(path) as library:
        with pytest.raises(error) as caught:
            library.add(make_run())
        with pytest.raises(error):
            list(library.trajectories())
        if error is LibraryDamagedError:
            assert len(library.verify()) == 1
    assert path.read_bytes() == before
    return str(caught.value)


@pytest.mark.parametrize("content", [b"hello", b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 5000], ids=len)
def test_a_file_that_is_no_database_is_refused_untouched(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    message = refused_untouched(path)
    assert "move it away" in message
    assert str(path) in message


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_library_cut_short_is_refused_untouched(tmp_path, share):
    path = tmp_path / "library.db"
    with ExperienceLibrary(path) as library:
        library.add_all(make_run(sample=number) for number in range(50))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "backup" in refused_untouched(path)


@pytest.mark.parametrize("table", ["contacts (name TEXT)", "meta (key TEXT, value TEXT)", "meta (version TEXT)"])
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_the_database_of_another_application_is_refused_untouched(tmp_path, table, journal):
    path = tmp_path / "contacts.db"
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA journal_mode = {journal}")
    other.execute(f"CREATE TABLE {table}")
    other.commit()
    other.close()
    assert "another application" in refused_untouched(path)


def test_the_log_of_another_application_that_was_killed_is_left_to_it(tmp_path):
    running, path = tmp_path / "running.db", tmp_path / "contacts.db"
    other = sqlite3.connect(running)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("CREATE TABLE contacts (name TEXT)")
    other.commit()
    for end in ("", "-wal"):  # what a kill leaves: the table is in the log only
        shutil.copy(f"{running}{end}", f"{path}{end}")
    other.close()
    assert "another application" in refused_untouched(path)
    assert Path(f"{path}-wal").stat().st_size > 0


def test_a_postgres_database_may_hold_tables_of_others_but_not_ours(new_postgres_url):
    url = new_postgres_url()
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE contacts (name TEXT)"))
    with ExperienceLibrary(url) as library:
        library.add(make_run())
    other = new_postgres_url()
    engine.dispose()
    engine = sqlalchemy.create_engine(other)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE steps (foot TEXT)"))
    engine.dispose()
    with ExperienceLibrary(other) as library, pytest.raises(LibraryDamagedError, match=r"\['steps'\]"):
        library.count()


def test_damage_in_the_middle_is_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "library.db"
    with ExperienceLibrary(path) as library:
        library.add_all(make_run(sample=number) for number in range(200))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with ExperienceLibrary(path) as library:
        assert library.verify()
        assert library.get(make_run(sample=0).id).sample == 0


def test_a_full_disk_keeps_what_was_added(tmp_path):
    path = tmp_path / "library.db"

    def limit(connection, _):
        connection.execute("PRAGMA max_page_count = 60")

    with ExperienceLibrary(path) as library:
        library.add(make_run())
        library.close()
        # SQLite's own limit gives its own "database or disk is full".
        sqlalchemy.event.listen(sqlalchemy.pool.Pool, "connect", limit)
        try:
            with pytest.raises(LibraryError, match=r"added before is safe.*disk is full"):
                library.add_all(make_run(sample=number) for number in range(1, 2000))
        finally:
            sqlalchemy.event.remove(sqlalchemy.pool.Pool, "connect", limit)
        library.close()
        assert library.count() == 1
        assert library.verify() == []
        library.add(make_run("and on"))


@pytest.mark.parametrize(
    ("url", "patience", "lock"),
    [
        ("sqlite", "?timeout=0.05", "BEGIN IMMEDIATE"),
        ("postgresql", "%20-clock_timeout=50", "LOCK TABLE trajectories IN EXCLUSIVE MODE"),
    ],
    indirect=["url"],
)
def test_a_locked_library_says_so_and_goes_on_later(url, patience, lock):
    with ExperienceLibrary(url + patience) as library:
        library.add(make_run())
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as other:
            for statement in (["BEGIN"] if lock.startswith("LOCK") else []) + [lock]:
                other.exec_driver_sql(statement)
            with pytest.raises(LibraryError, match="another process"):
                library.add(make_run("5"))
            assert library.count() == 1  # reading goes on meanwhile
            other.exec_driver_sql("ROLLBACK")
        engine.dispose()
        library.add(make_run("5"))
        assert library.count() == 2


@pytest.mark.parametrize("place", ["file/library.db", "folder"])
def test_a_path_that_cannot_be_a_file_is_a_library_error(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with ExperienceLibrary(tmp_path / place) as library, pytest.raises(LibraryError, match=place):
        library.count()


def test_a_postgres_server_that_is_gone_is_a_library_error(tmp_path):
    url = f"postgresql+psycopg://ada:tops3cret@/library?host={tmp_path}"
    with ExperienceLibrary(url) as library, pytest.raises(LibraryError, match="added before is safe") as caught:
        library.add(make_run())
    assert "tops3cret" not in str(caught.value)


def test_a_postgres_library_without_psycopg_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # how Python says that a module is absent
    with pytest.raises(MissingDependencyError, match=r"pip install 'sirius-dspy\[postgres\]'"):
        ExperienceLibrary("postgresql://localhost/library").count()
