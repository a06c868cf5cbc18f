"""Hosted fine-tuning with the real `openai` client against a server of our own: side by side, never paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dspy
import pytest

from sirius_dspy import HostedTrainer
from sirius_dspy.errors import TrainingError, UnpreparedProgramError
from sirius_dspy.testing import ToyLM, TrainerContract
from sirius_dspy.training import hosted
from sirius_dspy.training.trainers import TrainingRequest
from tests import ROOT
from tests.http_server import serving
from tests.openai_server import DROPPED, FakeOpenAI
from tests.snippets import HostedApi, blocks_of, files_of
from tests.wait import wait_until

KEY = "local-key-4f9d1c77"
ROWS = [
    {"messages": [{"role": "user", "content": f"Übung {number}"}, {"role": "assistant", "content": "„ja“"}]}
    for number in range(12)
]


class TestContract(TrainerContract):
    @pytest.fixture
    def trainer(self):
        return HostedTrainer()

    @pytest.fixture
    def lm(self):
        return ToyLM(skill=lambda prompt: "?")

    @pytest.fixture
    def refused(self):
        return "solver", dspy.LM("anthropic/claude", num_retries=0)


def lm_at(url: str, **settings) -> dspy.LM:
    return dspy.LM("openai/gpt-4o-mini", api_base=url, api_key=KEY, cache=False, num_retries=0, **settings)


def request(folder: Path, lm: dspy.LM, agent: str = "solver", rows=ROWS, reports=None) -> TrainingRequest:
    (folder / agent).mkdir(parents=True, exist_ok=True)
    report = (lambda *values: None) if reports is None else lambda *values: reports.append(values)
    return TrainingRequest(agent, lm, rows, folder / agent, 7, report)


@pytest.fixture
def quick(monkeypatch):
    """No pauses, neither between two looks at a job nor before the client's own retries."""
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    monkeypatch.setattr(hosted.time, "sleep", lambda seconds: None)


@contextmanager
def disturbed(fake: FakeOpenAI, faults):
    """Serve with faults: each entry (method and path, what is answered instead, whether the request still counts)."""
    honest = fake.answer

    def answer(method, path, body, content_type):
        for number, (where, given, counts) in enumerate(faults):
            if where in f"{method} {path}":
                del faults[number]
                if counts:
                    honest(method, path, body, content_type)
                return given
        return honest(method, path, body, content_type)

    fake.answer = answer
    with fake.serving() as url:
        yield url


BUSY = (500, {"error": {"message": "try later"}})
LIMITED = (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}})
NONSENSE = (200, "<html>a proxy</html>")
GONE = (DROPPED, None)


def test_all_jobs_run_before_the_first_is_waited_for(tmp_path, quick):
    fake = FakeOpenAI(["queued", "running", "succeeded"])
    with fake.serving() as url:
        trainer, lm = HostedTrainer({"n_epochs": 2}), lm_at(url)
        trainer.check("solver", lm)
        trained = trainer.train_all([request(tmp_path, lm, agent) for agent in ("analyst", "solver")])
        first = next(trained)
        assert len(fake.jobs) == 2
        assert [first.model, next(trained).model] == [
            f"openai/ft:gpt-4o-mini:org::ftjob-{number}" for number in range(2)
        ]
    assert fake.keys == {f"Bearer {KEY}"}
    for job, agent in zip(fake.jobs.values(), ("analyst", "solver"), strict=True):
        assert (job["model"], job["suffix"], job["seed"]) == ("gpt-4o-mini", agent, 7)
        assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
        assert [json.loads(line) for line in fake.files[job["training_file"]].splitlines()] == ROWS


def test_local_agents_are_trained_while_hosted_jobs_run(tmp_path, quick):
    fake = FakeOpenAI(["running", "succeeded"])
    with fake.serving() as url:
        requests = [request(tmp_path, ToyLM(), "local"), request(tmp_path, lm_at(url), "hosted")]
        trained = HostedTrainer().train_all(requests)
        local = next(trained)
        assert len(fake.jobs) == 1  # started before the local agent was trained
        assert isinstance(local, ToyLM)
        assert next(trained).model == "openai/ft:gpt-4o-mini:org::ftjob-0"


def test_the_next_call_takes_up_a_job(tmp_path, quick):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        trainer = HostedTrainer(patience_s=0)
        trainer._start(request(tmp_path, lm_at(url)))  # as far as a compile came that was killed then
        fake.jobs["ftjob-0"]["left"] = ["succeeded"]
        assert trainer.train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
        assert (len(fake.jobs), len(fake.files)) == (1, 1)
        fake.statuses = ["succeeded"]
        other = [*ROWS, ROWS[0]]
        assert trainer.train(request(tmp_path, lm_at(url), rows=other)).model.endswith("ftjob-1")


def test_a_job_whose_answer_was_never_read_is_found(tmp_path, quick):
    fake = FakeOpenAI(["succeeded"])
    with fake.serving() as url:
        trainer, asked = HostedTrainer(), request(tmp_path, lm_at(url))
        job = trainer._start(asked)
        record = json.loads(job.path.read_text())
        job.path.write_text(json.dumps({**record, "job": ""}))  # killed between the server's answer and the disk
        assert trainer.train(asked).model.endswith("ftjob-0")
    assert (len(fake.jobs), len(fake.files)) == (1, 1)


@pytest.mark.parametrize("fault", [BUSY, LIMITED, NONSENSE, GONE], ids=["500", "429", "no JSON", "dropped"])
@pytest.mark.parametrize("counts", [True, False], ids=["counted", "lost"])
def test_a_creation_with_a_lost_answer_makes_one_job(tmp_path, quick, fault, counts):
    fake = FakeOpenAI(["running", "succeeded"])
    with disturbed(fake, [("POST /v1/fine_tuning/jobs", fault, counts)]) as url:
        trained = HostedTrainer().train(request(tmp_path, lm_at(url)))
    assert len(fake.jobs) == 1
    assert trained.model == "openai/ft:gpt-4o-mini:org::ftjob-0"


@pytest.mark.parametrize("fault", [BUSY, LIMITED, NONSENSE, GONE], ids=["500", "429", "no JSON", "dropped"])
def test_a_server_that_stumbles_while_a_job_runs_is_waited_for(tmp_path, quick, fault):
    fake = FakeOpenAI(["running", "running", "succeeded"])
    faults = [("GET /v1/fine_tuning/jobs/ftjob-0", fault, False) for _ in range(12)]
    with disturbed(fake, faults) as url:
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert (faults, len(fake.jobs)) == ([], 1)


def test_a_server_that_stays_away_ends_the_wait_and_not_the_job(tmp_path, quick):
    fake = FakeOpenAI(["running"])
    away = [("GET /v1/fine_tuning/jobs/", BUSY, False)] * 1000
    with disturbed(fake, away) as url:
        with pytest.raises(TrainingError, match=r"'ftjob-0' of agent 'solver'.*has not answered for 0 seconds"):
            HostedTrainer(patience_s=0).train(request(tmp_path, lm_at(url)))
        away.clear()
        fake.jobs["ftjob-0"]["left"] = ["succeeded"]
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-0")
    assert (len(fake.jobs), fake.cancelled) == (1, [])


def test_a_failed_job_says_why_and_the_next_call_starts_another(tmp_path, quick):
    fake = FakeOpenAI(["failed"], {"code": "invalid_training_file", "message": "Line 3 is flagged", "param": None})
    with fake.serving() as url:
        with pytest.raises(TrainingError, match=r"'failed'. Line 3 is flagged \(invalid_training_file\)") as caught:
            HostedTrainer().train(request(tmp_path, lm_at(url)))
        assert caught.value.agent == "solver"
        fake.statuses = ["succeeded"]
        assert HostedTrainer().train(request(tmp_path, lm_at(url))).model.endswith("ftjob-1")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "no credit left"),
        (403, {"message": "Missing scopes", "code": "missing_scope"}, "may not fine-tune"),
        (401, {"message": f"Incorrect key {KEY}", "code": "invalid_api_key"}, "key is not valid"),
        (400, {"message": "not available", "code": "model_not_found"}, "cannot be fine-tuned"),
        (400, {"message": "flagged by moderation", "code": "moderation"}, "did not pass the server's moderation"),
        (400, {"message": "file has 9 examples", "code": "invalid_n_examples"}, "too few rows"),
        (400, {"message": "Fine-tuning is not available for new users"}, "fine-tuning is closed for this account"),
        (429, {"message": "too many jobs", "code": "exceeded_quota"}, "may not run more jobs now"),
    ],
)
def test_refusals_are_told_in_plain_words_and_without_the_key(tmp_path, quick, status, body, told):
    fake = FakeOpenAI()
    with (
        disturbed(fake, [("POST /v1/fine_tuning/jobs", (status, {"error": body}), False)] * 9) as url,
        pytest.raises(TrainingError, match=told) as caught,
    ):
        HostedTrainer().train(request(tmp_path, lm_at(url)))
    assert KEY not in str(caught.value)
    assert fake.jobs == {}


@pytest.mark.parametrize(
    ("answer", "told"),
    [((404, {"error": {"message": "no such route"}}), "does not know fine-tuning"), (BUSY, "try later")],
)
def test_a_server_that_does_not_fine_tune_is_refused_before_the_first_call(quick, answer, told):
    fake = FakeOpenAI()
    with (
        disturbed(fake, [("GET /v1/fine_tuning/jobs", answer, False)] * 9) as url,
        pytest.raises(UnpreparedProgramError, match=f"'solver' cannot be trained.*{told}"),
    ):
        HostedTrainer().check("solver", lm_at(url))
    assert fake.chats == []


def test_without_a_key_the_compile_does_not_begin(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UnpreparedProgramError, match="OPENAI_API_KEY"):
        HostedTrainer().check("solver", dspy.LM("openai/gpt-4o-mini"))
    with pytest.raises(UnpreparedProgramError, match="does not fine-tune"):
        HostedTrainer().check("solver", dspy.LM("anthropic/claude", num_retries=0))


def test_openai_itself_needs_ten_rows(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TrainingError, match="requires at least 10"):
        HostedTrainer().train(request(tmp_path, dspy.LM("openai/gpt-4o-mini", api_key="sk-test"), rows=ROWS[:9]))
    with pytest.raises(TrainingError, match="requires at least 1"):
        HostedTrainer().train(request(tmp_path, lm_at("http://127.0.0.1:9/v1"), rows=[]))


def test_losses_of_the_server_reach_the_progress_once(tmp_path, quick):
    class Reporting(FakeOpenAI):
        def events(self, body, name):
            fixed = {"object": "fine_tuning.job.event", "created_at": 1, "level": "info", "message": "Step"}
            steps = [{"step": step, "train_loss": 3.0 - step, "total_steps": 2} for step in (2, 1)]
            events = [{"id": f"e{data['step']}", "type": "metrics", "data": data, **fixed} for data in steps]
            return {"object": "list", "data": events, "has_more": False}

    fake, reports = Reporting(["running", "running", "succeeded"]), []
    with fake.serving() as url:
        HostedTrainer().train(request(tmp_path, lm_at(url), reports=reports))
    assert reports == [(1, 2, 2.0), (2, 2, 1.0)]


CHILD = """
import sys, dspy
from reviews import Reviews, examples, metric
from sirius_dspy import Collect, HostedTrainer, SiriuS
program = Reviews()
program.set_lm(dspy.LM("openai/base", api_base=sys.argv[1], api_key="sk-test", max_tokens=200, num_retries=0))
optimizer = SiriuS(
    metric, iterations=1, collect=Collect(samples=2), augmenter=None, gate=None,
    trainer=HostedTrainer(poll_s=0.05), run_dir="run",
)
trained = optimizer.compile(program, trainset=list(examples(24, seed=1)), valset=list(examples(6, seed=2)))
print(sorted(predictor.lm.model for _, predictor in trained.named_predictors()))
"""


class SlowApi(HostedApi):
    """Jobs run until the server says that they may end."""

    def job(self, name):
        job = super().job(name)
        return job if self.server.may_end else job | {"status": "running", "fine_tuned_model": None}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_compile_that_is_killed_while_two_jobs_run_takes_both_up(tmp_path):
    for name, block in files_of(blocks_of(ROOT / "README.md")).items():
        (tmp_path / name).write_text(block.code, encoding="utf-8")
    with serving(SlowApi, jobs={}, asked=set(), adapters=[], may_end=False) as server:
        command = [sys.executable, "-c", CHILD, f"{server.uri}/v1"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))),
            "DSPY_CACHEDIR": str(tmp_path / "cache"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        settings = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE}
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, **settings)
        wait_until(lambda: len(server.jobs) == 2 or child.poll() is not None, timeout_s=120)
        records = list((tmp_path / "run").rglob("job.json"))
        wait_until(lambda: all(json.loads(path.read_text())["job"] for path in records))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        server.may_end = True
        again = subprocess.run(command, stderr=subprocess.PIPE, timeout=120, check=False, **settings)
        assert again.returncode == 0, again.stderr
        assert again.stdout.strip() == "['openai/ft:job-1', 'openai/ft:job-2']"
        assert len(server.jobs) == 2
