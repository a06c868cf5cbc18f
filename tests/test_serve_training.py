"""SiriuS and DSPy's own optimizer, unchanged, fine-tune at `sirius-dspy serve`."""

from __future__ import annotations

import gc
import json

import dspy
import openai
import pytest

from sirius_dspy import HostedTrainer
from sirius_dspy.testing import Prompt
from tests.serve_help import FakeBackend, serving
from tests.toy import ADAPTER, Doubling, compiled_by, exact, examples, skill


class MemoryBackend(FakeBackend):
    """Answers like the toy LM: trained weights know the replies of their rows."""

    def complete(self, weights, messages, options, on_text=None):
        memory = json.loads((weights.folder / "rows.json").read_text()) if weights.folder else []
        learnt = {json.dumps(row[:-1]): row[-1]["content"] for row in memory}
        self.reply = lambda *_: learnt.get(json.dumps(messages)) or skill(_prompt(messages, options))
        return super().complete(weights.__class__(weights.model), messages, options)

    def train(self, training):
        loss = super().train(training)
        (training.folder / "rows.json").write_text(json.dumps([row["messages"] for row in training.rows]))
        return loss


def _prompt(messages, options):
    system = "".join(message["content"] for message in messages if message["role"] == "system")
    others = tuple((message["role"], message["content"]) for message in messages if message["role"] != "system")
    return Prompt("served", system, others, options.temperature, options.seed)


def program_at(client):
    program = Doubling()
    program.set_lm(dspy.LM("openai/tiny", api_base=str(client.base_url), api_key="none", cache=False, num_retries=0))
    return program


def right(program):
    return [number for number in range(0, 8, 2) if program(number=number).answer == f"ans:{2 * number}"]


@pytest.fixture
def adapter(chat_adapter):
    dspy.configure(adapter=ADAPTER)


def test_a_compile_trains_each_agent_at_the_server(tmp_path, adapter):
    backend = MemoryBackend()
    with serving(tmp_path / "data", backend) as client:
        compiled = compiled_by(
            tmp_path / "run", program_at(client), iterations=1, trainer=HostedTrainer({"n_epochs": 1}, poll_s=0.02)
        )
        assert compiled.doubler.lm.model.startswith("openai/ft:tiny:doubler:")
        assert compiled.detailed_results.best_score == 1.0
        assert compiled(number=7).answer == "ans:14"  # a repaired run taught it
    assert {training.hyperparameters.n_epochs for training in backend.trained} == {1}


@pytest.fixture
def openai_module():
    """The module keeps the client that it made at its first use."""
    openai._reset_client()
    yield
    openai._reset_client()
    gc.collect()  # DSPy leaves the file that it uploads open; here its warning is expected


@pytest.mark.filterwarnings("ignore:unclosed file .*rows:ResourceWarning")
def test_dspy_s_bootstrap_finetune_trains_at_the_server(tmp_path, adapter, monkeypatch, openai_module):
    monkeypatch.setattr("dspy.clients.openai.OpenAIProvider.wait_for_job.__defaults__", (0.02,))
    monkeypatch.setenv("DSPY_FINETUNEDIR", str(tmp_path / "rows"))
    backend = MemoryBackend()
    with serving(tmp_path / "data", backend) as client:
        monkeypatch.setattr(openai, "base_url", str(client.base_url))
        monkeypatch.setattr(openai, "api_key", "none")
        trainset = examples((0, 2, 4, 6))
        tuned = dspy.BootstrapFinetune(metric=exact, num_threads=1).compile(program_at(client), trainset=trainset)
        assert tuned.doubler.lm.model.startswith("openai/ft:tiny::")
        assert right(tuned) == [0, 2, 4, 6]
        again = dspy.BootstrapFinetune(metric=exact, num_threads=1).compile(tuned, trainset=trainset)
        assert right(again) == [0, 2, 4, 6]
    first, second = backend.trained  # one LM, one job each
    assert len(first.rows) == 8
    assert second.start.folder == first.folder
