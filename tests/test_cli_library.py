"""`sirius-dspy library`: what it shows of a library, what it exports, and how it ends."""

import json
import sqlite3
import warnings

import dspy
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from sirius_dspy.cli import app
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.queries import PAGE
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.testing.library import EXAMPLE, make_repair, make_run, make_step
from sirius_dspy.trajectory import Failure, Trajectory
from tests import toy


def cli(*arguments):
    with warnings.catch_warnings():  # the command silences some for its process
        return CliRunner().invoke(app, ["library", *map(str, arguments)])


def read(*arguments):
    done = cli(*arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(folder).compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12)))
    return folder


@pytest.fixture
def path(tmp_path):
    """A small library: a failed run, its repair of three attempts with two replayed runs, and two runs more."""
    failed, repair, replayed = make_repair()
    with ExperienceLibrary(tmp_path / "library.db") as library:
        library.add(failed, EXAMPLE)
        library.add_repair(repair, replayed)
        library.add(make_run("[bold]x[/bold] \x1b[31m \u202e", 0.5, run="other", iteration=3, sample=1))
        failure = Failure("AdapterParseError", "no field")
        library.add(make_run(run="other", steps=(make_step("judge"),), prediction=None, reward=0.0, failure=failure))
    return tmp_path / "library.db"


def ids(found):
    return [entry["id"] for entry in found["trajectories"]]


# ls


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ([], lambda run: True),
        (["--run", "other"], lambda run: run.run == "other"),
        (["--iteration", 3], lambda run: run.iteration == 3),
        (["--origin", "repair"], lambda run: run.origin == "repair"),
        (["--origin", "repair", "--origin", "rollout"], lambda run: run.origin in ("repair", "rollout")),
        (["--agent", "judge"], lambda run: "judge" in run.lms),
        (["--min-reward", 0.5], lambda run: run.reward >= 0.5),
        (["--max-reward", 0.5], lambda run: run.reward <= 0.5),
        (["--failed"], lambda run: run.reward < 1.0),
        (["--failed", "--threshold", 0.5], lambda run: run.reward < 0.5),
        (["--failed", "--run", "other"], lambda run: run.reward < 1.0 and run.run == "other"),
    ],
)
def test_ls_lists_what_matches_in_order(path, options, keep):
    with ExperienceLibrary(path) as library:
        wanted = [run.id for run in library.trajectories() if keep(run)]
    found = read("ls", path, *options)
    assert ids(found) == wanted
    assert found["total"] == len(wanted) > 0


def test_ls_shows_a_part_and_says_how_to_see_the_next(path):
    everything = ids(read("ls", path))
    assert ids(read("ls", path, "--limit", 2, "--offset", 1)) == everything[1:3]
    assert "2 to 3 of 5. Pass `--offset 3` for the next." in cli("ls", path, "--limit", 2, "--offset", 1).stdout
    assert "4 to 5 of 5.\n" in cli("ls", path, "--offset", 3).stdout
    assert ids(read("ls", path, "--offset", 9)) == []
    assert "No trajectory matches." in cli("ls", path, "--run", "nobody").stdout


def test_ls_reads_no_more_than_it_shows(tmp_path):
    """Far rows that cannot be read hurt only who asks for them: they were not loaded before."""
    with ExperienceLibrary(tmp_path / "many.db") as library:
        library.add_all(make_run(sample=number) for number in range(4 * PAGE))
    with sqlite3.connect(tmp_path / "many.db") as connection:
        connection.execute("UPDATE trajectories SET prediction = '{' WHERE number = ?", [2 * PAGE])
    connection.close()
    assert len(ids(read("ls", tmp_path / "many.db", "--limit", 10))) == 10
    assert len(ids(read("ls", tmp_path / "many.db", "--limit", 10, "--offset", 3 * PAGE))) == 10
    assert cli("ls", tmp_path / "many.db", "--limit", 1, "--offset", 2 * PAGE - 1).exit_code == 2


def test_what_lms_wrote_is_no_markup_and_does_not_reach_the_terminal(path):
    for command in (["ls", path], ["show", path, read("ls", path, "--iteration", 3)["trajectories"][0]["id"]]):
        shown = cli(*command).stdout
        assert "[bold]x[/bold]" in shown
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "[31m" in shown  # as an escape, which shows what is there


# show


def test_show_takes_the_beginning_of_an_id(path):
    with ExperienceLibrary(path) as library:
        run = next(library.trajectories())
    assert read("show", path, run.id[:8])["id"] == run.id
    assert read("show", path, run.id)["id"] == run.id


def test_show_tells_steps_lineage_and_repairs(path):
    failed, repair, (wrong, right) = make_repair()
    shown = read("show", path, failed.id)
    record = {name: shown[name] for name in failed.to_dict()}
    assert Trajectory.from_dict(record) == failed
    assert shown["repairs"] == [json.loads(json.dumps(repair.to_dict()))]
    assert shown["children"] == [wrong.id, right.id]
    assert shown["made_by"] is None
    text = cli("show", path, failed.id).stdout
    for part in ("Step 1: analyst", "Step 2: solver", "-> answer: 5", "reward: 0", "feedback: Add", "leaked"):
        assert part in text
    assert wrong.id[:12] in text


def test_show_tells_which_repair_a_run_came_out_of(path):
    failed, repair, (_, right) = make_repair()
    shown = read("show", path, right.id)
    assert shown["made_by"] == json.loads(json.dumps(repair.to_dict()))
    text = cli("show", path, right.id).stdout
    assert f"repairs: {failed.id}, by editing step 2" in text
    assert "The repair it came out of" in text


# stats


def test_stats_count_by_group_and_agent(path):
    found = read("stats", path, "--threshold", 0.5)
    groups = {
        (group["run"], group["iteration"], group["origin"]): (group["num_trajectories"], group["num_successes"])
        for group in found["groups"]
    }
    assert groups == {
        ("r", 0, "rollout"): (1, 0),
        ("r", 0, "repair"): (2, 1),
        ("other", 3, "rollout"): (1, 1),
        ("other", 0, "rollout"): (1, 0),
    }
    assert found["steps_by_agent"]["judge"] == {"rollout": 1}
    assert found["num_trajectories"] == 5
    assert found["num_bytes"] == path.stat().st_size
    assert (found["repairs"]["num_tried"], found["repairs"]["num_repaired"]) == (1, 1)
    text = cli("stats", path).stdout
    assert "5 trajectories, 1 of 1 failed runs repaired" in text
    assert "judge" in text


# export


def test_export_writes_what_matches(path, tmp_path):
    with ExperienceLibrary(path) as library:
        failed = list(library.trajectories(below=1.0))
    lines = tmp_path / "new" / "failed.jsonl"
    assert read("export", path, "--format", "jsonl", "--failed", "--out", lines) == {"path": str(lines), "rows": 4}
    records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [record.pop("id") for record in records] == [run.id for run in failed]
    assert [Trajectory.from_dict(record) for record in records] == failed
    table = tmp_path / "failed.parquet"
    assert read("export", path, "--failed", "--out", table)["rows"] == sum(len(run.steps) for run in failed)
    assert pyarrow.parquet.read_table(table)["trajectory"].unique().to_pylist() == [run.id for run in failed]


def test_export_gives_the_rows_an_agent_was_trained_on(run_dir, tmp_path):
    out = tmp_path / "rows.jsonl"
    for options, iteration in (([], 2), (["--iteration", 1], 1)):
        done = cli("export", run_dir, "--format", "openai", "--agent", "doubler", "--out", out, *options)
        assert done.exit_code == 0
        assert out.read_bytes() == RunDir(run_dir).training_file(iteration, "doubler").read_bytes()
        assert "messages" in json.loads(out.read_text(encoding="utf-8").splitlines()[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--agent", "nobody"], "'nobody'"),
        ([], "`--agent`"),
        (["--agent", "doubler", "--iteration", "9"], "iteration 9"),
        (["--agent", "doubler", "--failed"], "below"),
    ],
)
def test_rows_that_are_not_there_are_an_error(run_dir, tmp_path, options, words):
    done = cli("export", run_dir, "--format", "openai", "--out", tmp_path / "rows.jsonl", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_rows_need_the_folder_of_a_compile(path, tmp_path):
    done = cli("export", path, "--format", "openai", "--agent", "solver", "--out", tmp_path / "rows.jsonl")
    assert done.exit_code == 2
    assert "Pass the `run_dir`" in done.stderr


# verify


def test_verify_says_that_all_is_well(path):
    assert read("verify", path) == {"trajectories": 5, "problems": []}
    assert cli("verify", path).stdout == "All is well: 5 trajectories.\n"


def test_verify_lists_what_is_wrong(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE steps SET outputs = '{\"answer\": \"7\"}' WHERE predictor = 'judge'")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("UPDATE repairs SET parent = 'nobody'")
    connection.close()
    done = cli("verify", path, "--json")
    problems = json.loads(done.stdout)["problems"]
    assert done.exit_code == 1
    assert any("'nobody'" in problem or "parent" in problem for problem in problems)
    assert any("hash" in problem and "trajectories" in problem for problem in problems)
    plain = cli("verify", path)
    assert (plain.exit_code, len(plain.stdout.splitlines())) == (1, len(problems))


# Where the library is


def test_a_compile_s_folder_names_its_library_agents_and_threshold(run_dir):
    found = read("ls", run_dir, "--failed", "--agent", "writer.predict", "--limit", 500)
    with ExperienceLibrary(RunDir(run_dir).library) as library:
        assert found["total"] == library.count(below=1.0, predictor="writer.predict")
    assert read("stats", run_dir)["threshold"] == 1.0
    assert read("verify", run_dir)["problems"] == []


def test_a_database_url_is_a_library(path):
    assert read("ls", f"sqlite:///{path}")["total"] == 5


@pytest.mark.parametrize("command", [["ls"], ["show", "ab"], ["stats"], ["export", "--out", "x.jsonl"], ["verify"]])
def test_a_library_that_is_not_there_is_one_message_and_no_file(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in ("nowhere.db", "."):
        done = cli(command[0], where, *command[1:])
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("sirius-dspy: The")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("Dear diary, " * 99, encoding="utf-8")
    done = cli("ls", tmp_path / "notes.txt")
    assert done.exit_code == 2
    assert "not a SQLite database" in done.stderr


def test_a_library_of_a_newer_version_is_refused(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    connection.close()
    done = cli("stats", path)
    assert done.exit_code == 2
    assert "999" in done.stderr


def test_an_ambiguous_or_unknown_id_is_an_error(path):
    done = cli("show", path, "")
    assert done.exit_code == 2
    assert "More than one trajectory begins with ''" in done.stderr
    assert cli("show", path, "zz").exit_code == 2
    assert "'zz'" in cli("show", path, "zz").stderr


# export --to


@pytest.mark.parametrize("to", ["sft", "dpo", "kto", "sdpo"])
def test_export_writes_data_sets_for_trl(run_dir, tmp_path, to):
    out = tmp_path / f"{to}.jsonl"
    done = read("export", run_dir, "--to", to, "--out", out, "--agent", "doubler")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert done["rows"] == done["agents"]["doubler"] == len(rows) > 0
    assert {row["agent"] for row in rows} == {"doubler"}
    shown = cli("export", run_dir, "--to", to, "--out", out).stdout
    assert f"doubler: {len(rows)} rows" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--agent", "nobody"], "trained no agent 'nobody'"),
        (["--failed"], "takes no `--failed`"),
        (["--format", "jsonl"], "takes no `--format`"),
        (["--min-reward", "0"], "takes no `--min-reward`"),
    ],
)
def test_export_to_trl_refuses_what_it_cannot_do(run_dir, tmp_path, options, message):
    done = cli("export", run_dir, "--to", "dpo", "--out", tmp_path / "x.jsonl", *options)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []
