"""`sirius-dspy serve` with the embedded model: OpenAI's client uploads rows, trains, and asks the new model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import openai
import pytest

from sirius_dspy import LocalLM, save
from sirius_dspy.demo import needle_haystack
from sirius_dspy.errors import ServerError
from sirius_dspy.server.local import LocalBackend, load_models
from sirius_dspy.testing import ScriptedLM
from tests import ROOT
from tests.serve_help import serving
from tests.wait import wait_until

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

TOKEN = "correct-horse-battery-9f2c"
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
        rows, other = (
            client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune").id
            for text in (lines, lines.splitlines()[0])
        )
        job = client.fine_tuning.jobs.create(
            model=base,
            training_file=rows,
            validation_file=other,
            suffix="zebra",
            hyperparameters={"n_epochs": 1, "batch_size": 3},
        )
        retrieve = client.fine_tuning.jobs.retrieve
        wait_until(lambda: retrieve(job.id).status in ("succeeded", "failed"), timeout_s=600)
        done = retrieve(job.id)
        assert done.error is None
        answer = ask(client, done.fine_tuned_model)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Zebra.", "stop")
        streamed = ask(client, done.fine_tuned_model, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Zebra."
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
        assert 0 < checkpoint.metrics.full_valid_loss < 1
        assert 0 < checkpoint.step_number <= 4
        assert ask(client, base).choices[0].message.content == before.choices[0].message.content


def test_an_agent_of_a_checkpoint_is_served_by_its_name(tmp_path):
    program = needle_haystack.build()
    program.set_lm(LocalLM("smollm2-135m-instruct"))
    save(program, tmp_path / "checkpoint")
    backend = LocalBackend(load_models([], tmp_path / "checkpoint"))
    assert backend.models == ("analyst", "solver")
    with serving(tmp_path / "data", backend) as client:
        assert ask(client, "solver").usage.completion_tokens > 0


def test_an_agent_without_local_weights_is_refused(tmp_path):
    program = needle_haystack.build()
    program.set_lm(ScriptedLM({}))
    save(program, tmp_path / "checkpoint")
    with pytest.raises(ServerError, match="'analyst' runs on 'scripted/lm'"):
        load_models([], tmp_path / "checkpoint")


def test_the_command_serves_until_an_interrupt(tmp_path):
    command = [sys.executable, "-m", "sirius_dspy.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SIRIUS_SERVER_TOKEN": TOKEN}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().strip()
        with openai.OpenAI(base_url=url, api_key=TOKEN) as client:
            assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Serving smollm2-135m-instruct" in errors
    assert TOKEN not in output + errors
    assert (tmp_path / "runs" / "serve" / "files").is_dir()
