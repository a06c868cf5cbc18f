"""Rows that are held out, stuck and failed jobs, and `sirius-dspy jobs`, with the real `openai` client."""

from __future__ import annotations

import json
import logging
import threading

import pytest
from typer.testing import CliRunner

from sirius_dspy import HostedTrainer
from sirius_dspy.cli import app
from sirius_dspy.errors import SettingsError, TrainingError
from sirius_dspy.training import hosted_job
from tests.openai_server import FakeOpenAI
from tests.test_hosted import KEY, ROWS, disturbed, lm_at, quick, request

__all__ = ["quick"]


def texts(fake, name):
    return [json.loads(line) for line in fake.files[name].splitlines()]


def test_some_rows_are_held_out_and_never_trained_on(tmp_path, quick):
    fake = FakeOpenAI(["succeeded"])
    with fake.serving() as url:
        trainer = HostedTrainer(validation=0.25)
        for _ in range(2):  # the second call finds the files and the job
            trainer.train(request(tmp_path, lm_at(url)))
    (job,) = fake.jobs.values()
    trained, held_out = texts(fake, job["training_file"]), texts(fake, job["validation_file"])
    assert (len(trained), len(held_out), len(fake.files)) == (9, 3, 2)
    assert all(row in trained or row in held_out for row in ROWS)


def test_no_row_is_held_out_by_default_and_never_the_last_one(tmp_path, quick):
    fake = FakeOpenAI(["succeeded"])
    with fake.serving() as url:
        HostedTrainer().train(request(tmp_path, lm_at(url)))
        assert "validation_file" not in fake.jobs["ftjob-0"]
        HostedTrainer(validation=0.9).train(request(tmp_path, lm_at(url), "one", rows=ROWS[:1]))
    assert texts(fake, fake.jobs["ftjob-1"]["training_file"]) == ROWS[:1]


def test_rows_that_are_held_out_do_not_count_for_openai(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    lm = lm_at("https://api.openai.com/v1")
    HostedTrainer().check_rows("solver", lm, 12)
    with pytest.raises(TrainingError, match=r"9 training rows, .* at least 10"):
        HostedTrainer(validation=0.25).check_rows("solver", lm, 12)


@pytest.mark.parametrize("settings", [{"validation": 1}, {"validation": -0.1}, {"longest_s": 0}])
def test_wrong_settings_are_refused_before_the_first_call(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        HostedTrainer(**settings).check("solver", lm_at("http://127.0.0.1:9/v1"))


def test_a_stuck_job_is_an_error_and_taken_up_later(tmp_path):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        with pytest.raises(TrainingError, match=r"'ftjob-0'.*has not ended after 0.05 seconds.*--cancel ID"):
            HostedTrainer(poll_s=0.02, longest_s=0.05).train(request(tmp_path, lm_at(url)))
        fake.jobs["ftjob-0"]["left"] = ["succeeded"]
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert (len(fake.jobs), fake.cancelled) == (1, [])


def test_a_body_that_does_not_come_is_asked_for_again(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(hosted_job, "TIMEOUT_S", 0.3)
    fake, may_go = FakeOpenAI(["running", "succeeded"]), threading.Event()
    honest = fake.poll

    def slow(body, name):
        if not may_go.is_set():
            may_go.wait(1)
            may_go.set()
        return honest(body, name)

    fake.routes = [(method, path, slow if handler == fake.poll else handler) for method, path, handler in fake.routes]
    with fake.serving() as url:
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert len(fake.jobs) == 1


def test_a_server_without_events_trains_too(tmp_path, quick):
    fake = FakeOpenAI(["running", "succeeded"])
    missing = [("/events", (404, {"error": {"message": "no such route"}}), False)] * 9
    with disturbed(fake, missing) as url:
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")


def test_the_loss_on_rows_that_are_held_out_is_logged(tmp_path, quick, caplog):
    class Reporting(FakeOpenAI):
        def events(self, body, name):
            data = {"step": 1, "train_loss": 2.0, "full_valid_loss": 0.75}
            event = {"id": "e1", "object": "fine_tuning.job.event", "created_at": 1, "level": "info", "message": "m"}
            return {"object": "list", "data": [event | {"data": data, "type": "metrics"}], "has_more": False}

    with Reporting(["succeeded"]).serving() as url, caplog.at_level(logging.INFO):
        HostedTrainer(validation=0.1).train(request(tmp_path, lm_at(url)))
    assert "the loss on the rows that are held out is 0.7500" in caplog.text
    assert "900 tokens" in caplog.text


# The command


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def start(run_dir, url, *agents, epochs=2):
    trainer = HostedTrainer({"n_epochs": epochs})
    return [trainer._start(request(run_dir / "weights" / "iteration-1", lm_at(url), agent)) for agent in agents]


def listed(*arguments):
    done = CliRunner().invoke(app, ["jobs", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


def test_jobs_are_listed_with_state_and_cost(run_dir, quick, monkeypatch):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        start(run_dir, url, "analyst", "solver")
        fake.jobs["ftjob-1"]["left"] = ["succeeded"]
        first, second = json.loads(listed(run_dir, "--price", 10, "--json").stdout)["jobs"]
        table = listed(run_dir).stdout
    assert (first["agent"], first["state"], first["rows"], first["is_final"]) == ("analyst", "running", 12, False)
    estimate = 2 * (sum(len(message["content"]) for row in ROWS for message in row["messages"]) // 4)
    assert (first["tokens"], first["usd"]) == (estimate, estimate / 1e5)
    assert (second["state"], second["tokens"], second["usd"], second["is_final"]) == ("succeeded", 900, 0.009, True)
    assert "ftjob-0" in table
    assert f"about {estimate}" in table
    assert KEY not in table + "".join(path.read_text() for path in run_dir.rglob("job.json"))


def test_finished_jobs_are_listed_without_a_server(run_dir, quick, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fake = FakeOpenAI(["succeeded"])
    with fake.serving() as url:
        HostedTrainer().train(request(run_dir / "weights" / "iteration-2", lm_at(url)))
    (job,) = json.loads(listed(run_dir, "--json").stdout)["jobs"]
    assert (job["iteration"], job["state"], job["tokens"], job["usd"]) == (2, "succeeded", 900, None)


def test_the_key_goes_to_no_server_that_only_a_folder_names(run_dir, quick, monkeypatch):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        start(run_dir, url, "solver", epochs="auto")
        fake.keys.clear()
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
        done = listed(run_dir, "--json")
        assert fake.keys == set()
    (job,) = json.loads(done.stdout)["jobs"]
    assert (job["state"], job["tokens"]) == ("unknown", None)
    assert "set OPENAI_BASE_URL" in done.stderr


def test_a_job_is_cancelled_by_its_id(run_dir, quick, monkeypatch):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        start(run_dir, url, "analyst", "solver")
        assert "'cancelled'" in listed(run_dir, "--cancel", "ftjob-1").stderr
        assert fake.cancelled == ["ftjob-1"]
        done = CliRunner().invoke(app, ["jobs", str(run_dir), "--cancel", "ftjob-9"])
    assert done.exit_code == 1
    assert "has no job 'ftjob-9'" in done.stderr.replace("\n", " ")
    assert fake.cancelled == ["ftjob-1"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    done = CliRunner().invoke(app, ["jobs", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "There is no folder" in done.stderr
