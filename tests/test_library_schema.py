"""The schema of the library: today's tables, and libraries of earlier and later versions."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from sirius_dspy.errors import LibraryVersionError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.migrations import MIGRATIONS, SCHEMA_VERSION, create_runs, migrate
from sirius_dspy.library.prune import prune_library
from sirius_dspy.library.schema import METADATA
from sirius_dspy.testing.library import make_repair, make_run


def test_the_tables_are_those_of_the_migrations(url):
    with ExperienceLibrary(url) as library:
        assert library.count() == 0
    engine = sqlalchemy.create_engine(url)
    inspector = sqlalchemy.inspect(engine)
    assert set(inspector.get_table_names()) == set(METADATA.tables)
    for table in METADATA.sorted_tables:
        assert [column["name"] for column in inspector.get_columns(table.name)] == list(table.c.keys())
        found = {
            (key["constrained_columns"][0], key["referred_table"]) for key in inspector.get_foreign_keys(table.name)
        }
        assert found == {(key.parent.name, key.column.table.name) for key in table.foreign_keys}
    engine.dispose()


def test_a_library_of_version_5_loses_an_index_that_only_pruning_used(url):
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        migrate(connection, MIGRATIONS[:5])
    assert [index["name"] for index in sqlalchemy.inspect(engine).get_indexes("steps")] == ["steps_by_request"]
    with ExperienceLibrary(url) as library:
        library.add_all([make_run("4", run="old"), make_run("5", run="new")])
        assert prune_library(library, run="old").trajectories == 1
        assert library.verify() == []
    assert sqlalchemy.inspect(engine).get_indexes("steps") == []
    engine.dispose()


FILTERS = (
    {},
    {"run": "a"},
    {"run": "a", "iteration": 1},
    {"run": "a", "iteration": 1, "origin": "rollout"},
    {"run": "a", "iteration": 1, "origin": ("rollout", "repair"), "min_reward": 1.0},
    {"run": "a", "origin": ("rollout", "repair")},
    {"run": "a", "example_key": "e"},
    {"run": "a", "parent": "p"},
)


def test_a_library_of_version_6_reads_each_page_from_an_index_without_sorting(tmp_path):
    """Otherwise the time per run of a list grows with the number of runs in it."""
    url = f"sqlite:///{tmp_path / 'library.sqlite'}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        migrate(connection, MIGRATIONS[:6])
    engine.dispose()
    sent = []
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note := lambda *args: sent.append(args[2:4]))
    try:
        with ExperienceLibrary(url) as library:
            library.add(make_run("4", run="a"))
            sent.clear()
            for filters in FILTERS:
                list(library.entries(**filters))
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
    pages = [item for item in sent if "ORDER BY trajectories.number" in item[0]]
    assert len(pages) == len(FILTERS)
    with closing(sqlite3.connect(tmp_path / "library.sqlite")) as database:
        plans = [[row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", values)] for query, values in pages]
    assert all(len(plan) == 1 and re.search("(number|rowid)>[?] AND (number|rowid)<[?]", plan[0]) for plan in plans), (
        plans
    )
    assert "trajectories_by_example (example_key=? AND" in plans[-2][0]
    assert "trajectories_by_parent (parent=? AND" in plans[-1][0]


def write_version_1(url):
    """A library as version 1 left it, with one failed trajectory; returns the trajectory."""
    failed = make_run("5", 0.0, run="old")
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        migrate(connection, [create_runs])
        usage, document = failed.usage, json.dumps
        connection.exec_driver_sql(
            "INSERT INTO trajectories (id, run, iteration, sample, seed, origin, example_key, program, reward, "
            "reward_json, rewards, prediction, seconds, created_at, calls, prompt_tokens, completion_tokens) VALUES "
            f"('{failed.id}', 'old', 0, 0, 7, 'rollout', '{failed.example_key}', 'p1', 0.0, '0.0', '{{}}', "
            f"'{document(failed.prediction)}', 1.5, '2025-01-01T00:00:00+00:00', {usage.calls}, {usage.prompt_tokens}, "
            f"{usage.completion_tokens})"
        )
        for position, step in enumerate(failed.steps):
            connection.exec_driver_sql(
                f"INSERT INTO steps VALUES ('{failed.id}', {position}, '{step.predictor}', {step.occurrence}, "
                f"'{document(step.inputs)}', '{document(step.outputs)}', '[]', '{step.lm}', NULL, '{step.source}', "
                f"{step.usage.calls}, {step.usage.prompt_tokens}, {step.usage.completion_tokens}, {step.seconds}, "
                f"{step.started}, {step.ended}, {step.num_demos})"
            )
    engine.dispose()
    return failed


def stored_version(url):
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        query = sqlalchemy.text("SELECT value FROM meta WHERE key = 'schema_version'")
        version = connection.execute(query).scalar_one()
    engine.dispose()
    return version


def test_a_library_of_version_1_is_migrated_and_goes_on(url):
    failed = write_version_1(url)
    assert stored_version(url) == "1"
    with ExperienceLibrary(url) as library:
        assert library.get(failed.id) == failed
        _, repair, replayed = make_repair("old")
        assert repair.parent == failed.id
        library.add_repair(repair, replayed)
        assert list(library.repairs()) == [repair]
        assert library.verify() == []
    assert stored_version(url) == str(SCHEMA_VERSION)


def test_a_migration_that_fails_leaves_the_library_as_it_was(url):
    with ExperienceLibrary(url) as library:
        library.add(make_run())

        def broken(connection):
            connection.execute(sqlalchemy.text("CREATE TABLE half (done TEXT)"))
            raise RuntimeError("no power")

        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("DELETE FROM steps")  # opens the transaction, and has to be undone with it
            with pytest.raises(RuntimeError, match="no power"):
                migrate(connection, [*MIGRATIONS, broken])
            connection.rollback()
        assert "half" not in sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()
        assert library.verify() == []


def test_a_library_of_a_newer_version_is_refused_and_left_alone(url):
    with ExperienceLibrary(url) as library:
        library.add(make_run())
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE meta SET value = '99' WHERE key = 'schema_version'"))
    engine.dispose()
    with ExperienceLibrary(url) as library:
        for use in (library.count, library.verify, lambda: library.add(make_run("5"))):
            with pytest.raises(LibraryVersionError, match=r"version 99.*pip install --upgrade"):
                use()


def test_a_library_of_version_2_keeps_its_ids_and_goes_on(tmp_path):
    """The dump is of a compile that the last code with version 2 ran: six examples, three of them repaired."""
    path = tmp_path / "library.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((Path(__file__).parent / "data" / "library_v2.sql").read_text(encoding="utf-8"))
    assert stored_version(f"sqlite:///{path}") == "2"
    with ExperienceLibrary(path) as library:
        assert (library.count(), len(list(library.repairs()))) == (19, 3)
        assert library.verify() == []
        assert "ebb07e1c44e75bba16f2b0d1dfddfe51" in {run.id for run in library.trajectories()}
        assert all(step.prompt is None for run in library.trajectories() for step in run.steps)
        run = make_run("new")
        library.add(run)
        assert library.get(run.id) == run
    assert stored_version(f"sqlite:///{path}") == str(SCHEMA_VERSION)
