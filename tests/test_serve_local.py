"""`sirius-dspy serve` with the embedded model: OpenAI's client uploads rows, trains, and asks the new model."""

from __future__ import annotations

import json

import pytest

from sirius_dspy.server.local import LocalBackend, load_models
from tests.serve_help import serving
from tests.wait import wait_until

pytestmark = pytest.mark.local

QUESTIONS = ("What is it?", "Who is there?", "Where is it?", "When does it start?")
CHATS = [[{"role": "user", "content": question}, {"role": "assistant", "content": "Zebra."}] for question in QUESTIONS]


def ask(client, model, **settings):
    messages = [{"role": "user", "content": "Why is it so?"}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=6, **settings)


def test_the_embedded_model_is_trained_over_http(tmp_path):
    base = "smollm2-135m-instruct"
    with serving(tmp_path, LocalBackend(load_models([base], None))) as client:
        before = ask(client, base)
        assert before.choices[0].message.content != "Zebra."
        assert (before.choices[0].finish_reason, before.usage.completion_tokens) == ("length", 6)
        lines = "\n".join(json.dumps({"messages": chat}) for chat in CHATS * 3)
        file = client.files.create(file=("rows.jsonl", lines.encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=base,
            training_file=file.id,
            validation_file=file.id,
            suffix="zebra",
            hyperparameters={"n_epochs": 2, "batch_size": 4},
        )
        retrieve = client.fine_tuning.jobs.retrieve
        wait_until(lambda: retrieve(job.id).status in ("succeeded", "failed"), timeout_s=240)
        done = retrieve(job.id)
        assert done.error is None
        answer = ask(client, done.fine_tuned_model)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Zebra.", "stop")
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
        assert 0 < checkpoint.metrics.full_valid_loss < 1
        assert 0 < checkpoint.step_number <= 6
        assert ask(client, base).choices[0].message.content == before.choices[0].message.content
    with serving(tmp_path, LocalBackend(load_models([base], None))) as client:
        chunks = ask(client, done.fine_tuned_model, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Zebra."
