"""A whole compile on the stand-in for vLLM: every agent gets its own adapter, and a dead server loses nothing."""

from __future__ import annotations

import json

import dspy
import pytest

from sirius_dspy.errors import AdapterError, TrainingError, UnpreparedProgramError
from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.testing import ScriptedLM, TrainerContract
from sirius_dspy.testing.server import _prompt
from sirius_dspy.training.trainers import TrainingRequest
from sirius_dspy.vllm import VLLMLM, VLLMServer, VLLMTrainer
from tests import toy
from tests.fake_vllm import FakeVLLM
from tests.test_vllm import write_adapter

pytestmark = pytest.mark.usefixtures("chat_adapter")


def reply(body):
    return toy.skill(_prompt(body))


def learn(base, rows, folder, seed, on_progress):
    """Learn the rows by heart."""
    replies = {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in rows}
    write_adapter(folder, -1.0 / (1 + len(replies)), replies)
    on_progress(1, 1, 0.5)


@pytest.fixture
def fake():
    return FakeVLLM(reply=reply)


@pytest.fixture
def server(fake):
    with fake.serving() as url:
        yield VLLMServer("base", api_base=url)


def program_on(server):
    program = toy.Doubling()
    program.set_lm(VLLMLM(server, num_retries=0))
    return program


def compiled_by(run_dir, server, training=learn):
    return toy.compiled_by(run_dir, program_on(server), trainer=VLLMTrainer(training=training))


class TestContract(TrainerContract):
    @pytest.fixture
    def trainer(self):
        return VLLMTrainer(training=learn)

    @pytest.fixture
    def lm(self, server, fake):
        fake.reply = lambda body: "green"
        return VLLMLM(server)

    @pytest.fixture
    def refused(self):
        return "solver", ScriptedLM()


def test_a_compile_gives_every_agent_its_own_adapter_and_leaves_only_those(fake, server, tmp_path):
    compiled = compiled_by(tmp_path / "run", server)
    lms = {name: predictor.lm for name, predictor in compiled.named_predictors()}
    assert compiled(number=3).answer == "ans:6"
    assert {lm.served_name for lm in lms.values() if lm.adapter} == set(fake.adapters)
    assert fake.adapters
    assert len(set(fake.loads)) == len(fake.loads)
    assert set(fake.unloads) == set(fake.loads) - set(fake.adapters)
    assert fake.changed_in_flight == []
    assert all(name.startswith(("doubler-", "writer-")) for name in fake.loads)


def test_a_finished_compile_is_found_again_by_a_server_that_lost_its_adapters(fake, server, tmp_path):
    first = compiled_by(tmp_path / "run", server)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("adapter_config.json")}
    again = FakeVLLM(reply=reply)
    with again.serving() as url:
        second = compiled_by(tmp_path / "run", VLLMServer("base", api_base=url))
        assert second(number=3).answer == first(number=3).answer
    assert set(again.loads) == set(fake.adapters)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("adapter_config.json")}


def test_an_ignored_adapter_stops_the_compile_and_it_resumes(fake, server, tmp_path):
    fake.ignores = True
    with pytest.raises((AdapterError, TrainingError), match="answers with the base weights"):
        compiled_by(tmp_path / "run", server)
    fake.ignores = False
    assert compiled_by(tmp_path / "run", server)(number=3).answer == "ans:6"


def test_a_changed_adapter_is_not_restored(server, tmp_path):
    trainer, lm = VLLMTrainer(training=learn), VLLMLM(server)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    trained = trainer.train(TrainingRequest("solver", lm, [row], tmp_path, 0, lambda *_: None))
    assert trainer.restore(lm, trained.model, tmp_path).served_name == trained.served_name
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(json.dumps({"nats": -7}), encoding="utf-8")
    with pytest.raises(TrainingError, match="is not the one that was trained"):
        trainer.restore(lm, trained.model, tmp_path)


def test_training_that_writes_no_adapter_is_an_error(server, tmp_path):
    with pytest.raises(TrainingError, match=r"did not write adapter_config\.json"):
        compiled_by(tmp_path / "run", server, training=lambda *arguments: None)


def test_a_rank_above_the_servers_is_refused_before_it_starts():
    trainer = VLLMTrainer(LoraOptions(rank=64))
    with pytest.raises(UnpreparedProgramError, match="rank 64, but the server accepts 16"):
        trainer.check("solver", VLLMLM(VLLMServer("hub/base", executable="none")))


def test_another_lm_is_refused(server):
    with pytest.raises(UnpreparedProgramError, match="VLLMLM"):
        VLLMTrainer().check("solver", dspy.LM("openai/gpt"))
