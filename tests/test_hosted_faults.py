"""Servers that answer about fine-tuning jobs in odd ways: no job is forgotten, paid for twice or waited for in vain."""

from __future__ import annotations

import json

import pytest

from sirius_dspy import HostedTrainer
from sirius_dspy.errors import TrainingError
from tests.openai_server import FakeOpenAI
from tests.test_hosted import disturbed, lm_at, quick, request

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
