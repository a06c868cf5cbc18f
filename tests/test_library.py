"""The experience library, on SQLite and on a real PostgreSQL server where its binaries are installed."""

import copy
import dataclasses
import getpass
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy.errors import LibraryDamagedError, LibraryError, LibraryVersionError, MissingDependencyError
from sirius_dspy.library.experience import PAGE, ExperienceLibrary
from sirius_dspy.library.migrations import METADATA, MIGRATIONS, SCHEMA_VERSION, create_runs, migrate
from sirius_dspy.optimizer.run_dir import RunDir, open_library
from sirius_dspy.testing.library import EXAMPLE, LibraryContract, make_repair, make_run, make_step
from sirius_dspy.trajectory import (
    Failure,
    Step,
    Trajectory,
    Usage,
    canonical,
    example_key,
)
from tests import ROOT


def survives_json(text):
    """JSON joins a surrogate pair in two halves, so no JSON store can give it back as it was."""
    return json.loads(json.dumps(text)) == text


TEXTS = st.text(st.characters(), max_size=20).filter(survives_json) | st.sampled_from(["\0", "\ud800", "a\\\"'\n", ""])
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(TEXTS, VALUES, max_size=3)
FAILURES = st.none() | st.builds(Failure, TEXTS, TEXTS, st.none() | TEXTS)
COUNTS = st.integers(0, 2**62)
STEPS = st.builds(
    Step,
    predictor=TEXTS,
    occurrence=COUNTS,
    inputs=FIELDS,
    outputs=st.none() | FIELDS,
    lm=TEXTS,
    failure=FAILURES,
    others=st.lists(FIELDS, max_size=2).map(tuple),
    source=st.sampled_from(["live", "recorded", "edited"]),
    usage=st.builds(Usage, *[st.integers(0, 2**40)] * 3),
    started=COUNTS,
    ended=COUNTS,
)
RUNS = st.builds(
    Trajectory,
    example_key=TEXTS,
    steps=st.lists(STEPS, max_size=3).map(tuple),
    prediction=VALUES,
    reward=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5) | st.booleans(),
    rewards=st.dictionaries(TEXTS, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    failure=FAILURES,
    program=TEXTS,
    run=TEXTS,
    iteration=COUNTS,
    sample=COUNTS,
    seed=st.integers(-(2**63), 2**63 - 1),
)


class DatabaseContract(LibraryContract):
    """What is expected of our own library besides: exports, pages, and the detection of damage."""

    def test_any_trajectory_reads_back_as_it_was_added(self, library):
        first_by_id = {}  # of equal ids, the library keeps the first

        @settings(max_examples=40, deadline=None)
        @given(run=RUNS)
        def check(run):
            library.add(run)
            assert library.get(run.id) == first_by_id.setdefault(run.id, run)
            assert library.get(run.id).id == run.id

        check()
        assert library.count() == len(first_by_id)
        assert library.verify() == []

    def test_a_reader_sees_what_was_there_when_it_began_while_others_write(self, library):
        runs = [make_run(sample=number) for number in range(2 * PAGE + 1)]
        library.add_all(runs)
        seen = []
        for run in library.trajectories():
            seen.append(run.sample)
            if run.sample % 50 == 0:
                library.add(make_run("while reading", sample=run.sample))
        assert seen == list(range(2 * PAGE + 1))
        assert library.count() == 2 * PAGE + 1 + 5

    def test_a_reader_left_half_way_holds_nothing_back(self, library):
        library.add_all(make_run(sample=number) for number in range(PAGE + 1))
        readers = [library.trajectories() for _ in range(40)]  # more than a pool has connections
        assert [next(reader).sample for reader in readers] == [0] * 40
        library.add(make_run("one more"))

    def test_pairs_beyond_one_page_share_parents(self, library):
        failed = make_run("5", 0.0)
        library.add(failed)
        repaired = [make_run(sample=n, origin="repair", parent=failed.id, edited=0) for n in range(PAGE + 20)]
        library.add_all(repaired)
        pairs = list(library.pairs(threshold=1.0))
        assert [good.sample for _, good in pairs] == list(range(PAGE + 20))
        assert all(bad == failed for bad, _ in pairs)

    def test_filters_by_reward_and_predictor(self, library):
        strange = "judge\ud800[0]"
        runs = [make_run(str(n), n / 4, sample=n) for n in range(5)] + [make_run(steps=(make_step(strange),), reward=2)]
        library.add_all(runs)

        def samples(**filters):
            return [run.reward for run in library.trajectories(**filters)]

        assert samples(max_reward=0.5) == [0, 0.25, 0.5]
        assert samples(below=0.5) == [0, 0.25]
        assert samples(min_reward=0.25, below=1.0) == [0.25, 0.5, 0.75]
        assert samples(predictor=strange) == [2]
        assert samples(predictor=["analyst", strange], min_reward=1.0) == [1, 2]
        assert samples(predictor=[]) == samples(predictor="nobody") == []
        assert library.count(below=0.5, predictor="solver") == 2

    def test_entries_are_the_trajectories_without_their_steps(self, library):
        failure = Failure("E", "m", "{half")
        failed, repair, replayed = make_repair()
        library.add_all([failed, make_run(reward=True, failure=failure, run="\ud800", prediction=None)])
        library.add_repair(repair, replayed)
        for entry, run in zip(library.entries(), library.trajectories(), strict=True):
            for field in dataclasses.fields(entry):
                assert getattr(entry, field.name) == getattr(run, field.name)

    @pytest.mark.parametrize(("limit", "offset"), [(3, 0), (3, 2), (None, PAGE - 1), (None, PAGE + 3), (5, 9 * PAGE)])
    def test_entries_can_be_read_in_parts(self, library, limit, offset):
        library.add_all(make_run(sample=number, reward=number % 2) for number in range(2 * (PAGE + 5)))
        everything = [entry.sample for entry in library.entries(min_reward=1)]
        found = [entry.sample for entry in library.entries(limit=limit, offset=offset, min_reward=1)]
        assert found == everything[offset:][:limit]

    def test_the_beginning_of_an_id_finds_its_trajectory(self, library):
        runs = [make_run(sample=number) for number in range(40)]
        library.add_all(runs)
        for run in runs[:3]:
            assert library.find(run.id) == library.find(run.id[:16]) == run
        with pytest.raises(LibraryError, match="'zz'"):
            library.find("zz")
        with pytest.raises(LibraryError, match="and others") as raised:
            library.find("")
        assert sorted(run.id for run in runs)[0] in str(raised.value)

    def test_repairs_are_selected_by_their_failed_run(self, library):
        repairs = {}
        for iteration in range(2):
            failed, repair, replayed = make_repair(iteration=iteration)
            library.add(failed)
            library.add_repair(repair, replayed)
            repairs[failed.id] = repair
        for parent, repair in repairs.items():
            assert list(library.repairs(parent=parent)) == [repair]

    def test_a_jsonl_file_holds_the_trajectories(self, library, tmp_path):
        strange = make_step(inputs={"q": "\0\ud800"}, outputs=None, failure=Failure("E", "m"), lm="lm\ud800")
        library.add_all([make_run(), make_run(steps=(strange,)), make_run(reward=0.0)])
        path = tmp_path / "deep" / "runs.jsonl"
        assert library.to_jsonl(path, min_reward=1.0) == 2
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [record.pop("id") for record in records] == [run.id for run in library.trajectories(min_reward=1.0)]
        assert [Trajectory.from_dict(record) for record in records] == list(library.trajectories(min_reward=1.0))
        assert [file.name for file in path.parent.iterdir()] == ["runs.jsonl"]

    def test_it_grows_on_disk(self, library):
        before = library.num_bytes()
        library.add_all(make_run("x" * 1000, sample=number) for number in range(100))
        assert library.num_bytes() > before + 100_000

    def test_a_dataset_has_one_row_per_step(self, library, tmp_path):
        failed, repair, replayed = make_repair()
        library.add(failed)
        library.add_repair(repair, replayed)
        rows = library.to_dataset(cache_dir=tmp_path / "cache", origin=["repair"])
        assert len(rows) == 4
        assert rows["trajectory"][:] == [replayed[0].id] * 2 + [replayed[1].id] * 2
        assert rows["predictor"][:] == ["analyst", "solver"] * 2
        assert rows["taught"][:] == [True, True, False, True]  # the second repair edited the solver
        assert json.loads(rows[3]["outputs"]) == {"answer": "4"}
        assert rows[0]["parent"] == failed.id
        # A cached dataset must not hide what was added since.
        library.add(make_run("7", origin="repair", parent=failed.id, edited=0))
        assert len(library.to_dataset(cache_dir=tmp_path / "cache", origin=["repair"])) == 6

    def test_a_parquet_file_holds_the_same_rows(self, library, tmp_path):
        strange = make_step(inputs={"q": "\0\ud800"}, outputs=None, failure=Failure("E", "m"), lm="lm\ud800")
        library.add_all([make_run(), make_run(steps=(strange,)), make_run(reward=0.0)])
        path = tmp_path / "deep" / "steps.parquet"
        assert library.to_parquet(path, min_reward=1.0) == 3
        rows = pyarrow.parquet.read_table(path).to_pylist()
        assert [row["predictor"] for row in rows] == ["analyst", "solver", "solver"]
        assert json.loads(rows[2]["inputs"]) == {"q": "\0\ud800"}
        assert (rows[2]["outputs"], json.loads(rows[2]["failure"])["kind"]) == (None, "E")
        assert [file.name for file in path.parent.iterdir()] == ["steps.parquet"]

    def test_an_empty_selection_exports_no_rows(self, library, tmp_path):
        assert library.to_parquet(tmp_path / "steps.parquet") == 0
        assert pyarrow.parquet.read_table(tmp_path / "steps.parquet").num_rows == 0
        assert len(library.to_dataset(cache_dir=tmp_path / "cache")) == 0

    def test_verify_names_what_was_changed(self, library):
        untouched, changed, shortened = (library.add(make_run(str(n)), EXAMPLE) for n in range(3))
        repaired, repair, replayed = make_repair()
        library.add(repaired)
        library.add_repair(repair, replayed)
        engine = sqlalchemy.create_engine(library.url)
        with engine.begin() as connection:
            for statement in [
                f"UPDATE trajectories SET prediction = '\"9\"' WHERE id = '{changed}'",
                f"DELETE FROM steps WHERE trajectory = '{shortened}' AND position = 1",
                "UPDATE examples SET labels = '{}'",
                "UPDATE attempts SET verdict = 'repaired'",
            ]:
                connection.execute(sqlalchemy.text(statement))
        engine.dispose()
        problems = library.verify()
        assert len(problems) == 4
        for wrong in (changed, shortened, example_key(EXAMPLE), "`repairs`"):
            assert any(wrong in problem for problem in problems)
        assert not any(untouched in problem for problem in problems)

    def test_verify_goes_on_after_an_unreadable_row(self, library):
        ids = [library.add(make_run(str(n))) for n in range(5)]
        engine = sqlalchemy.create_engine(library.url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"UPDATE trajectories SET rewards = '{{half' WHERE id = '{ids[1]}'"))
            connection.execute(sqlalchemy.text(f"UPDATE trajectories SET reward_json = '7' WHERE id = '{ids[3]}'"))
        engine.dispose()
        problems = library.verify()
        assert len(problems) == 2
        assert ids[3] in problems[1]
        with pytest.raises(LibraryDamagedError, match="verify"):
            list(library.trajectories())


class TestSQLite(DatabaseContract):
    @pytest.fixture
    def library(self, tmp_path):
        with ExperienceLibrary(tmp_path / "library.db") as library:
            yield library


@pytest.mark.server
class TestPostgres(DatabaseContract):
    @pytest.fixture
    def library(self, new_postgres_url):
        with ExperienceLibrary(new_postgres_url()) as library:
            yield library


@dataclasses.dataclass(frozen=True)
class PostgresServer:
    folder: Path
    user: str

    def url(self, schema="public"):
        return f"postgresql+psycopg://{self.user}@/postgres?host={self.folder}&options=-csearch_path={schema}"


@pytest.fixture(scope="session")
def postgres_server():
    """A server of its own on a Unix socket, with the binaries of the distribution."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Not pytest's folder: root owns that one, and PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="sirius-pg-"))
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    if os.geteuid() == 0:
        shutil.chown(folder, user)

    def start(program, *arguments):
        return subprocess.Popen(
            [programs / program, *arguments],
            user=user if os.geteuid() == 0 else None,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    cluster = folder / "cluster"
    assert start("initdb", "-D", cluster, "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync").wait() == 0
    # No TCP port, so that two runs of the tests never meet.
    server = start("postgres", "-D", cluster, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off")
    try:
        wait_for_postgres(PostgresServer(folder, user), server)
        yield PostgresServer(folder, user)
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.wait(30)
        shutil.rmtree(folder)


def find_postgres():
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wanted = ("initdb", "postgres")
    return next((path for path in candidates if all((path / name).exists() for name in wanted)), None)


def wait_for_postgres(server, process):
    engine = sqlalchemy.create_engine(server.url())
    waiting = threading.Event()
    for _ in range(300):
        assert process.poll() is None, "the PostgreSQL server ended"
        try:
            engine.connect().close()
            break
        except sqlalchemy.exc.OperationalError:
            waiting.wait(0.1)
    engine.dispose()


@pytest.fixture(scope="session")
def new_postgres_url(postgres_server):
    """Makes an empty schema each time, and returns the URL of a library in it; a database each would take seconds."""
    engine = sqlalchemy.create_engine(postgres_server.url())

    def create():
        name = f"library_{uuid.uuid4().hex}"
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"CREATE SCHEMA {name}"))
        return postgres_server.url(name)

    yield create
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def url(request, tmp_path):
    """The URL of an empty library, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'library.db'}"
    return request.getfixturevalue("new_postgres_url")()


def test_an_existing_library_is_found_and_none_is_made(tmp_path, url):
    with ExperienceLibrary(url) as library:
        id = library.add(make_run())
    with open_library(url) as found:
        assert found.get(id).id == id
    with pytest.raises(LibraryError, match="There is no library"):
        open_library(tmp_path / "nowhere.db")
    assert not (tmp_path / "nowhere.db").exists()


def test_the_folder_of_a_compile_leads_to_its_library(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    with pytest.raises(LibraryError, match="There is no library"):
        open_library(run_dir.path)
    run_dir.path.mkdir()
    with pytest.raises(LibraryError, match="no record"):
        open_library(run_dir.path)
    with ExperienceLibrary(tmp_path / "shared.db") as shared:
        shared.count()
    run_dir.note_library("0f3a", shared.url)
    assert open_library(run_dir.path).url == shared.url
    run_dir.note_library("0f3a", "postgresql+psycopg://me:***@host/db")
    with pytest.raises(LibraryError, match="without its password"):
        open_library(run_dir.path)
    with ExperienceLibrary(run_dir.library) as own:
        own.count()
    assert open_library(str(run_dir.path)).url == own.url


@settings(max_examples=40, deadline=None)
@given(run=RUNS)
def test_a_trajectory_survives_its_own_json(run):
    again = Trajectory.from_dict(json.loads(json.dumps(run.to_dict())))
    assert (again, again.id) == (run, run.id)


# Several processes. Children are new interpreters: what they share with the parent is the database alone.

WRITE_UNTIL_KILLED = """
import itertools, sys
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Step, Trajectory

library = ExperienceLibrary(sys.argv[1])
for number in itertools.count():
    steps = tuple(Step("solver", n, {"q": "x" * 2000}, {"a": "y" * 2000}, "lm") for n in range(5))
    trajectory = Trajectory(example_key="e", steps=steps, prediction=None, reward=0.0, sample=number)
    print(library.add(trajectory), flush=True)
"""

WRITE_THE_SAME = """
import sys
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Step, Trajectory

order = range(450) if sys.argv[2] == "up" else range(449, -1, -1)
steps = (Step("solver", 0, {"q": "x"}, {"a": "y"}, "lm"),)
runs = [Trajectory(example_key="e", steps=steps, prediction=None, reward=0.0, sample=n) for n in order]
print("ready", flush=True)
sys.stdin.readline()
with ExperienceLibrary(sys.argv[1]) as library:
    added = library.add_all(runs[:400])  # one transaction
    for run in runs[400:]:
        library.add(run)
print(added, flush=True)
"""


def child(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_nothing_that_was_added(url):
    with child(WRITE_UNTIL_KILLED, url) as writer:
        reported = [next(writer.stdout).strip() for _ in range(60)]
        writer.kill()
        # Lines that were on their way; the last may be cut short.
        rest = writer.stdout.read().split("\n")
        reported += [line for line in rest if len(line) == 32]
    with ExperienceLibrary(url) as library:
        stored = [run.id for run in library.trajectories()]
        assert set(reported) <= set(stored)
        assert len(stored) <= len(reported) + 1  # at most the one whose report was cut off
        assert all(len(run.steps) == 5 for run in library.trajectories())
        assert library.verify() == []


def test_two_processes_write_the_same_rows_in_opposite_order(url):
    # Rows that lock each other out unless writers take turns; both also race to create the tables.
    with child(WRITE_THE_SAME, url, "up") as up, child(WRITE_THE_SAME, url, "down") as down:
        for writer in (up, down):
            assert writer.stdout.readline() == "ready\n"
        for writer in (up, down):
            writer.stdin.write("\n")
            writer.stdin.flush()
        for writer in (up, down):
            assert writer.stdout.readline().strip().isdecimal()
    assert (up.returncode, down.returncode) == (0, 0)
    with ExperienceLibrary(url) as library:
        assert library.count() == 450
        assert library.verify() == []


def open_and_add(url, number):
    with ExperienceLibrary(url) as library:
        library.add(make_run(sample=number))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # fork is what is tested
def test_a_handle_survives_fork(url):
    with ExperienceLibrary(url) as library:
        library.add(make_run())

        def add_in_child(number):
            library.add(make_run(sample=number))

        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=add_in_child, args=(number,)) for number in range(1, 5)]
        for process in children:
            process.start()
        library.add(make_run(sample=5))
        for process in children:
            process.join()
        assert [process.exitcode for process in children] == [0] * 4
        assert sorted(run.sample for run in library.trajectories()) == list(range(6))
        assert library.verify() == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_many_processes_create_one_library_at_once(url):
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=open_and_add, args=(url, number)) for number in range(8)]
    for process in children:
        process.start()
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0] * 8
    with ExperienceLibrary(url) as library:
        assert library.count() == 8


# The schema.


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


# What can be wrong with a database.


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


@pytest.mark.server
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
        pytest.param(
            "postgresql",
            "%20-clock_timeout=50",
            "LOCK TABLE trajectories IN EXCLUSIVE MODE",
            marks=pytest.mark.server,
        ),
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


# URLs and paths.


def test_the_constructor_touches_nothing_and_the_first_use_creates_folders(tmp_path):
    path = tmp_path / "a" / "b" / "library.db"
    library = ExperienceLibrary(str(path))
    assert not path.parent.exists()
    library.add(make_run())
    library.close()
    assert [file.name for file in path.parent.iterdir()] == ["library.db"]


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExperienceLibrary("library.db") as library, ExperienceLibrary("sqlite:///library.db") as same:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        library.add(make_run())
        assert same.count() == 1
    assert (tmp_path / "library.db").exists()


@pytest.mark.parametrize("name", ["space and ü.db", "what?.db", "100%.db", "a#b.db"])
def test_any_file_name_will_do(tmp_path, name):
    with ExperienceLibrary(tmp_path / name) as library:
        library.add(make_run())
    with copy.deepcopy(library) as again:
        assert again.count() == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ada:tops3cret@db.example/library",
        "postgres://ada:tops3cret@db.example/library",
        "postgresql://ada@db.example/library?password=tops3cret&sslpassword=tops3cret",
    ],
)
def test_a_password_is_never_shown(url):
    library = ExperienceLibrary(url)
    assert library.url.startswith("postgresql+psycopg://ada")
    for shown in (library.url, repr(library), str(library)):
        assert "tops3cret" not in shown
        assert "db.example/library" in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:tops3cret@host:port/library",
        "mysql://ada:tops3cret@host/library",
        "://tops3cret",
        "x://tops3cret",
    ],
)
def test_a_bad_url_is_refused_without_showing_its_password(url):
    with pytest.raises(LibraryError, match="Expected a path") as caught:
        ExperienceLibrary(url)
    assert "tops3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url", [":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_library_in_memory_is_refused(url):
    with pytest.raises(LibraryError, match="outlast the process"):
        ExperienceLibrary(url)


# Size.


@pytest.mark.slow
def test_memory_does_not_grow_with_the_library(tmp_path):
    def peak(number):
        with ExperienceLibrary(tmp_path / f"{number}.db") as library:
            library.add_all(make_run(sample=sample) for sample in range(number))
            assert next(library.trajectories()).sample == 0  # what the first use keeps is not counted
            tracemalloc.start()
            found = sum(1 for _ in library.trajectories())
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert found == number
        return memory

    assert peak(10_000) < 1.5 * peak(3 * PAGE)  # 20,000 steps


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


def test_what_was_sent_is_stored_once_and_read_back(tmp_path):
    library_path = tmp_path / "library.sqlite"
    prompt = canonical([{"role": "user", "content": "2+2?"}])
    runs = [
        replace(run, steps=tuple(replace(step, prompt=prompt, signature="s", finish="stop") for step in run.steps))
        for run in (make_run("4"), make_run("5"))
    ]
    with ExperienceLibrary(library_path) as library:
        library.add_all(runs)
        assert [run.steps[0].prompt for run in library.trajectories()] == [prompt, prompt]
        assert list(library.trajectories()) == runs
        assert library.verify() == []
    with closing(sqlite3.connect(library_path)) as database:
        assert database.execute("SELECT count(*) FROM requests").fetchone() == (1,)
        database.execute("UPDATE requests SET prompt = replace(prompt, '2+2', '3+3')")
        database.commit()
    with ExperienceLibrary(library_path) as library:
        assert len(library.verify()) == 2


def test_a_run_that_broke_counts_in_a_mean_as_the_lowest_reward_of_its_group(tmp_path):
    def run(sample, reward, failure=None):
        return Trajectory(example_key="e", steps=(), prediction=None, reward=reward, failure=failure, sample=sample)

    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        library.add_all([run(0, -1.0), run(1, -3.0), run(2, -11.0, Failure("ValueError", "x"))])
        (group,) = library.stats(threshold=-10.0)
    assert (group.num_trajectories, group.num_successes) == (3, 2)
    assert group.mean_reward == pytest.approx(-7 / 3)
