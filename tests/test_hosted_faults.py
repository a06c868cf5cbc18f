"""Servers that answer about fine-tuning jobs in odd ways: no job is forgotten, paid for twice or waited for in vain."""

from __future__ import annotations

import json
import logging
import time

import pytest
from typer.testing import CliRunner

from sirius_dspy import HostedTrainer
from sirius_dspy.cli import app
from sirius_dspy.errors import TrainingError
from sirius_dspy.testing import ToyLM
from tests.openai_server import FakeOpenAI
from tests.test_hosted import KEY, ROWS, disturbed, lm_at, quick, request

__all__ = ["quick"]

LOOK = "GET /v1/fine_tuning/jobs/ftjob-0"
DENIED = (404, {"error": {"message": "No such fine-tuning job", "type": "invalid_request_error", "code": None}})
PAGES = {
    "page of a proxy": (404, "<html>no such site</html>"),
    "gateway": (404, {"message": "no route matched with those values", "type": "gateway"}),
    "framework": (404, {"detail": "Not Found"}),
    "no object": (404, ["not found"]),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_404_that_is_not_of_the_server_is_waited_out(tmp_path, quick, page):
    fake = FakeOpenAI(["running", "succeeded"])
    faults = [(LOOK, page, False)] * 5
    with disturbed(fake, faults) as url:
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert (faults, len(fake.jobs)) == ([], 1)


def test_a_server_that_denies_a_job_twice_is_not_believed(tmp_path, quick):
    fake = FakeOpenAI(["running", "succeeded"])
    faults = [(LOOK, DENIED, False)] * 2
    with disturbed(fake, faults) as url:
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert (faults, len(fake.jobs)) == ([], 1)


def test_a_job_that_was_denied_is_found_before_another_one_is_made(tmp_path, quick):
    fake = FakeOpenAI(["running"])
    faults = [(LOOK, DENIED, False)] * 3  # such as with a key of another project
    with disturbed(fake, faults) as url:
        with pytest.raises(TrainingError, match=r"'ftjob-0'.*No such fine-tuning job.*key is one of another project"):
            HostedTrainer().train(request(tmp_path, lm_at(url)))
        assert json.loads((tmp_path / "solver" / "job.json").read_text())["job"] == "ftjob-0"
        fake.jobs["ftjob-0"]["left"] = ["succeeded"]
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert (len(fake.jobs), len(fake.files)) == (1, 1)


def test_a_job_that_the_server_has_lost_is_made_again(tmp_path, quick):
    fake = FakeOpenAI(["running"])
    with disturbed(fake, [(LOOK, DENIED, False)] * 3) as url:
        trainer = HostedTrainer(validation=0.2)
        with pytest.raises(TrainingError, match="It said so 3 times"):
            trainer.train(request(tmp_path, lm_at(url)))
        fake.list = lambda body: {"object": "list", "data": [], "has_more": False}
        fake.routes[4] = ("GET", r"/v1/fine_tuning/jobs", fake.list)
        fake.statuses = ["succeeded"]
        assert trainer.train(request(tmp_path, lm_at(url))).model.endswith("ftjob-1")
    first, second = fake.jobs.values()
    assert not {first["training_file"], first["validation_file"]} & {second["training_file"], second["validation_file"]}


# Events


def event(number, data=None, message="Step"):
    fixed = {"object": "fine_tuning.job.event", "created_at": number, "level": "info", "type": "metrics"}
    return {"id": f"e{number}", "message": message, "data": data, **fixed}


STEP = {"step": 1, "train_loss": 0.5, "total_steps": 4}


@pytest.mark.parametrize(
    "answer",
    [
        (404, "<html>no such site</html>"),
        (405, {"detail": "Method Not Allowed"}),
        (501, {"error": {"message": "not implemented", "type": "server_error"}}),
        (200, None),
        (200, "a page"),
        (200, {"object": "list", "data": None}),
        (200, {"object": "list", "data": [None, "text", {"message": "no id"}], "has_more": True}),
    ],
    ids=["404", "405", "501", "null", "no JSON", "no list", "no events"],
)
def test_events_that_cannot_be_read_cost_no_job(tmp_path, quick, caplog, answer):
    fake = FakeOpenAI(["running", "running", "succeeded"])
    with disturbed(fake, [("/events", answer, False)] * 99) as url, caplog.at_level(logging.WARNING):
        assert HostedTrainer(patience_s=0).train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert caplog.text.count("its losses cannot be shown") <= 1


@pytest.mark.parametrize(
    "data",
    [
        {"step": 2, "train_loss": None},
        {"step": "1/10", "train_loss": 0.4},
        {"step": None, "train_loss": 0.4},
        {"step": 2, "train_loss": {}},
        {"step": 2, "train_loss": float("nan")},
        {"step": 10**400, "train_loss": 0.4, "valid_loss": "low"},
        ["no mapping"],
    ],
)
def test_a_report_that_cannot_be_read_is_left_out(tmp_path, quick, data):
    fake, reports = FakeOpenAI(["running", "succeeded"]), []
    page = {"object": "list", "data": [event(3, STEP | {"step": "3"}), event(2, data), event(1, STEP)]}
    with disturbed(fake, [("/events", (200, page | {"has_more": False}), False)] * 9) as url:
        HostedTrainer(patience_s=0).train(request(tmp_path, lm_at(url), reports=reports))
    assert reports == [(1, 4, 0.5), (3, 4, 0.5)]


def always_the_same(entries, asked):
    """A list of a server that knows no pages; only after many requests does it say that it has no more."""

    def answer(body):
        asked.append(1)
        return {"object": "list", "data": entries(), **({"has_more": False} if len(asked) > 20 else {})}

    return answer


def test_events_without_pages_are_read_once(tmp_path, quick):
    fake, asked, reports = FakeOpenAI(["queued", "running", "succeeded"]), [], []
    page = always_the_same(lambda: [event(1, STEP)], asked)
    fake.routes[6] = ("GET", r"/v1/fine_tuning/jobs/(.+)/events", lambda body, name: page(body))
    with fake.serving() as url:
        HostedTrainer().train(request(tmp_path, lm_at(url), reports=reports))
    assert (len(asked), reports) == (3, [(1, 4, 0.5)])  # twice at the first look, and once at the second


def test_jobs_without_pages_are_searched_once(tmp_path, quick):
    fake, asked = FakeOpenAI(["succeeded"]), []
    page = always_the_same(lambda: [fake.job(name) for name in fake.jobs], asked)
    fake.routes[4] = ("GET", r"/v1/fine_tuning/jobs", page)
    with fake.serving() as url:
        HostedTrainer()._start(request(tmp_path, lm_at(url), "other"))  # a job on another file
        with disturbed(fake, [("POST /v1/fine_tuning/jobs", (500, {}), False)]) as disturbed_url:
            assert HostedTrainer().train(request(tmp_path, lm_at(disturbed_url))).model.endswith("ftjob-1")
    assert len(asked) == 2


def test_a_job_is_found_on_a_later_page(tmp_path, quick):
    fake = FakeOpenAI(["succeeded"])

    pages = iter([(1, True), (0, False)])

    def listed(body):
        number, has_more = next(pages)
        return {"object": "list", "data": [fake.job(f"ftjob-{number}")], "has_more": has_more}

    fake.routes[4] = ("GET", r"/v1/fine_tuning/jobs", listed)
    with fake.serving() as url:
        job = HostedTrainer()._start(request(tmp_path, lm_at(url)))
        HostedTrainer()._start(request(tmp_path, lm_at(url), "other"))
        job.path.write_text(json.dumps({**json.loads(job.path.read_text()), "job": ""}))
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert len(fake.jobs) == 2


# The listing


def test_jobs_at_an_address_with_credentials_are_asked_for(tmp_path, quick, monkeypatch):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        address = url.replace("://", "://reader:correct-horse-7@")
        HostedTrainer()._start(request(tmp_path / "weights" / "iteration-1", lm_at(address)))
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        fake.jobs["ftjob-0"]["left"] = ["queued"]
        done = CliRunner().invoke(app, ["jobs", str(tmp_path), "--json"])
        cancelled = CliRunner().invoke(app, ["jobs", str(tmp_path), "--cancel", "ftjob-0"])
    assert json.loads(done.stdout)["jobs"][0]["state"] == "queued", done.stderr
    assert "'cancelled'" in cancelled.stderr
    assert (
        "correct-horse-7"
        not in done.output + cancelled.output + (tmp_path / "weights/iteration-1/solver/job.json").read_text()
    )


# The longest wait


@pytest.fixture
def pauses(monkeypatch):
    """Pauses only move the clock."""
    made, honest = [], time.time

    def sleep(seconds):
        assert len(made) < 100, "this waits for ever"
        made.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "time", lambda: honest() + sum(made))
    return made


def test_the_longest_wait_counts_from_the_creation_of_each_job(tmp_path, pauses):
    class Slow(FakeOpenAI):
        def job(self, name):
            has_ended = name == "ftjob-0" and sum(pauses) >= 5000
            return super().job(name) | ({"status": "succeeded", "fine_tuned_model": "ft:m"} if has_ended else {})

    with Slow(["running"]).serving() as url:
        asked = [request(tmp_path, lm_at(url), agent) for agent in ("analyst", "solver")]
        trained = HostedTrainer(poll_s=1000, longest_s=5500).train_all(asked)
        assert next(trained).model == "openai/ft:m"
        with pytest.raises(TrainingError, match=r"'solver'.*has not ended after 5500 seconds"):
            next(trained)
    assert pauses[:2] == [0.5, 1]
    assert max(pauses) == 1000
    assert sum(pauses) == pytest.approx(5500, abs=60)


def test_the_longest_wait_goes_on_counting_after_a_restart(tmp_path, pauses):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        HostedTrainer()._start(request(tmp_path, lm_at(url)))
        time.sleep(5000)
        with pytest.raises(TrainingError, match="has not ended after 4000 seconds"):
            HostedTrainer(longest_s=4000).train(request(tmp_path, lm_at(url)))
        assert pauses == [5000]  # it looked once, and did not wait
        fake.jobs["ftjob-0"]["left"] = ["succeeded"]
        assert HostedTrainer(longest_s=4000).train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")


def test_a_job_that_could_not_be_created_has_not_begun(tmp_path, pauses):
    fake = FakeOpenAI(["running", "running", "succeeded"])
    refusal = (429, {"error": {"message": "too many jobs", "code": "exceeded_quota"}})
    with disturbed(fake, [("POST /v1/fine_tuning/jobs", refusal, False)]) as url:
        with pytest.raises(TrainingError, match="may not run more jobs now"):
            HostedTrainer().train(request(tmp_path, lm_at(url)))
        time.sleep(50_000)
        assert HostedTrainer(longest_s=4000).train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")


# Agents that are trained on this machine


def test_local_agents_behind_hosted_ones_are_trained_while_those_run(tmp_path, pauses):
    of_last, of_local = [], []

    class Patient(FakeOpenAI):
        def job(self, name):
            is_over = of_last and of_local and len(self.jobs) == 2
            return super().job(name) | ({"status": "succeeded", "fine_tuned_model": f"ft:{name}"} if is_over else {})

    with Patient(["running"]).serving() as url:
        local = request(tmp_path, ToyLM(), "local", reports=of_local)
        last = request(tmp_path, ToyLM(), "last", ROWS[:4], reports=of_last)
        hosted = [request(tmp_path, lm_at(url), agent) for agent in ("first", "second")]
        trained = [lm.model for lm in HostedTrainer().train_all([hosted[0], local, hosted[1], last])]
    alone = [HostedTrainer().train(each).model for each in (local, last)]
    assert trained == ["openai/ft:ftjob-0", alone[0], "openai/ft:ftjob-1", alone[1]]
    assert alone[0] != alone[1]
    assert pauses == []  # no job had to be waited for any more


def test_a_local_failure_leaves_the_hosted_jobs_running(tmp_path, quick):
    fake = FakeOpenAI(["running", "succeeded"])
    with fake.serving() as url:
        hosted, local = request(tmp_path, lm_at(url), "hosted"), request(tmp_path, ToyLM(fail_training=True), "local")
        with pytest.raises(TrainingError, match="'local'"):
            next(HostedTrainer().train_all([hosted, local]))
        assert HostedTrainer().train(hosted).model.endswith("ftjob-0")
    assert (len(fake.jobs), fake.cancelled) == (1, [])


def test_an_agent_of_another_service_waits_for_its_turn(tmp_path, quick):
    elsewhere = request(tmp_path, ToyLM(writes_weights=False, fail_training=True), "elsewhere")
    with FakeOpenAI(["succeeded"]).serving() as url:
        trained = HostedTrainer().train_all([request(tmp_path, lm_at(url), "hosted"), elsewhere])
        assert next(trained).model.endswith("ftjob-0")  # kept before the other service is paid
        with pytest.raises(TrainingError, match="'elsewhere'"):
            next(trained)
