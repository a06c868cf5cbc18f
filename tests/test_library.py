"""The experience library, on SQLite and on a real PostgreSQL server where its binaries are installed."""

import dataclasses
import json
import sqlite3
import tracemalloc
from contextlib import closing
from dataclasses import replace

import dspy
import pyarrow.parquet
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy.errors import LibraryDamagedError, LibraryError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.queries import PAGE
from sirius_dspy.library.writing import BATCH
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.redact import remember_secrets
from sirius_dspy.testing.library import EXAMPLE, LibraryContract, make_repair, make_run, make_step
from sirius_dspy.trajectory import (
    Failure,
    Step,
    Trajectory,
    Usage,
    canonical,
    example_key,
)


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

    def test_runs_that_are_given_twice_are_stored_once(self, library):
        runs = [make_run(sample=sample) for sample in range(BATCH + 1)]
        assert library.add_all([runs[0], *runs, *runs[:3]]) == len(runs)
        assert library.add_all([*runs, make_run(sample=-1)]) == 1
        assert list(library.trajectories()) == [*runs, make_run(sample=-1)]
        assert library.verify() == []

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


@pytest.mark.parametrize("key", ["k3y-äöü-9Zx81Qw", 'k3y-"\\\n-9Zx81Qw', "k3y-\U0001f600-9Zx81Qw", "k3y-\x7f-9Zx81Qw"])
@pytest.mark.parametrize("before", ["it is ", "\ud800"])
def test_a_key_of_any_characters_is_hidden(tmp_path, key, before):
    remember_secrets(dspy.LM("openai/x", api_key=key))
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        library.add(make_run(prediction={"answer": f"{before}{key}!"}))
        (run,) = library.trajectories()
    assert run.prediction == {"answer": f"{before}[redacted]!"}


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


@pytest.mark.parametrize("text", ["2+2?", "2\u00f72?", "\ud800"])
@pytest.mark.parametrize("number", [2**64, -(2**70), 0.1, float("inf")])
def test_numbers_in_what_was_sent_read_back(tmp_path, text, number):
    prompt = canonical([{"role": "user", "content": [{"type": "text", "text": text}, {"type": "seek", "at": number}]}])
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        library.add(run := make_run(steps=(make_step(prompt=prompt),)))
        assert list(library.trajectories()) == [run]
        assert library.verify() == []


def test_a_run_that_broke_counts_in_a_mean_as_the_lowest_reward_of_its_group(tmp_path):
    def run(sample, reward, failure=None):
        return Trajectory(example_key="e", steps=(), prediction=None, reward=reward, failure=failure, sample=sample)

    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        library.add_all([run(0, -1.0), run(1, -3.0), run(2, -11.0, Failure("ValueError", "x"))])
        (group,) = library.stats(threshold=-10.0)
    assert (group.num_trajectories, group.num_successes) == (3, 2)
    assert group.mean_reward == pytest.approx(-7 / 3)
