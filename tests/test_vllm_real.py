"""A real vLLM with tiny random weights: `make test-vllm`, or VLLM_ENV with an environment that has vLLM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sirius_dspy.errors import AdapterError
from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.training.trainers import TrainingRequest
from sirius_dspy.vllm import VLLMLM, Canary, VLLMServer, VLLMTrainer
from tests.tiny_llama import write_tiny_llama

ENVIRONMENT = os.environ.get("VLLM_ENV", "")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ENVIRONMENT, reason="VLLM_ENV names no environment with vLLM"),
]

OPTIONS = LoraOptions(rank=8, learning_rate=2e-2, epochs=60, batch_size=2)


def rows(reply: str) -> list[dict]:
    return [{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": reply}]}] * 2


def test_two_agents_on_one_server(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"))
    base = write_tiny_llama(tmp_path / "tiny")
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
    server = VLLMServer(
        base, max_loras=2, options=options, executable=Path(ENVIRONMENT, "bin", "vllm"), log=tmp_path / "vllm.log"
    )
    trainer = VLLMTrainer(OPTIONS)
    with server:
        lm = VLLMLM(server, temperature=0.0, max_tokens=8, num_retries=0)

        def request(agent: str, reply: str, iteration: int = 0) -> TrainingRequest:
            workdir = tmp_path / f"{agent}{iteration}"
            workdir.mkdir()
            return TrainingRequest(agent, lm, rows(reply), workdir, iteration, lambda *_: None)

        solver, judge = trainer.train_all([request("solver", "yes"), request("judge", "no!")])
        for trained in (solver, judge):
            trained.launch()  # with its canary
        assert solver("say")[0].startswith("yes")
        assert judge("say")[0].startswith("no!")
        assert not lm("say")[0].startswith(("yes", "no!"))

        canary = Canary.read(judge.adapter)
        with pytest.raises(AdapterError, match="base weights"):
            canary.prove(server, server.name)
        with pytest.raises(AdapterError, match="other weights"):
            canary.prove(server, solver.served_name)

        judge.kill()
        assert server.names() == [server.name, solver.served_name]

        # The next iteration's weights of the same agent: served under another name, beside the old ones, with nothing
        # left of these in a cache. Where the old ones answer in their place, the canary tells.
        (later,) = trainer.train_all([request("solver", "so?", iteration=1)])
        with pytest.raises(AdapterError, match="other weights"):
            Canary.read(later.adapter).prove(server, solver.served_name)
        later.launch()
        assert later.served_name != solver.served_name
        assert later("say")[0].startswith("so?")
        assert solver("say")[0].startswith("yes")
