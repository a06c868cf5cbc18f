"""Training of an adapter with TRL, on tiny random weights."""

from __future__ import annotations

import json

import pytest

from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.training.trainers import TrainingRequest
from sirius_dspy.vllm import VLLMLM, Canary, VLLMServer, VLLMTrainer
from tests.fake_vllm import FakeVLLM
from tests.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.slow


def test_an_adapter_learns_its_rows_and_its_canary_says_so(tmp_path):
    base = write_tiny_llama(tmp_path / "tiny")
    rows = [{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "yes"}]}] * 2
    reports: list[tuple[int, int, float]] = []
    options = LoraOptions(rank=8, learning_rate=2e-2, epochs=30, batch_size=2)
    with FakeVLLM(str(base)).serving() as url:
        lm = VLLMLM(VLLMServer(base, api_base=url))
        request = TrainingRequest("solver", lm, rows, tmp_path, 0, lambda *report: reports.append(report))
        trained = VLLMTrainer(options).train(request)
    canary = Canary.read(trained.adapter)
    assert min(canary.trained) > -0.5 > -3 > max(canary.base)
    assert [step for step, _, _ in reports] == list(range(1, 31))
    assert reports[-1][2] < 0.5 < reports[0][2]
    assert json.loads((trained.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 8
