"""A fine-tuning server in a thread, with a backend that answers at once and trains when it is told."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager

import openai

from sirius_dspy.errors import PromptTooLongError, TrainingError
from sirius_dspy.local.engine import Generation
from sirius_dspy.server.run import Server
from sirius_dspy.server.settings import ServerSettings

ROWS = [
    [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Answer {number}."}]
    for number in range(12)
]


class FakeBackend:
    """Answers with what it was asked; trained weights add the number of their rows.

    Attributes:
        may_finish: While it is cleared, training waits.
        asked: The weights, messages and options of all answers.
        trained: All jobs that were begun.
        failure: What training raises.
        scale: The loss of the first step.
    """

    models = ("tiny", "owner/small")

    def __init__(self, reply=None):
        self.reply = reply or (lambda weights, messages: f"You said: {messages[-1]['content']}")
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.asked, self.trained, self.failure, self.scale = [], [], None, 1.0

    def complete(self, weights, messages, options, on_text=None):
        self.asked.append((weights, messages, options))
        if len(messages[-1]["content"]) > 10_000:
            raise PromptTooLongError("The prompt is too long for this model.")
        text = self.reply(weights, messages)
        if weights.folder is not None:
            text += f" I learned from {(weights.folder / 'rows').read_text()} rows."
        for word in re.findall(r"\s*\S+|\s+\Z", text) if on_text else ():
            on_text(word)
        return Generation(text, len(messages), len(text.split()), "stop")

    def trains_on_tools(self, weights):
        return weights.model == "owner/small"

    def train(self, training):
        self.trained.append(training)
        while not self.may_finish.wait(0.01):
            if training.stop.is_set():
                raise TrainingError("The training was stopped.")
        if self.failure:
            raise self.failure
        for step in (1, 2):
            training.on_progress(step, 2, self.scale / step)
        training.folder.mkdir(parents=True, exist_ok=True)
        (training.folder / "rows").write_text(str(len(training.rows)))
        return 0.25 if training.validation else None


@contextmanager
def serving(folder, backend=None, **settings):
    """Run a real server; yields a client of it, without retries."""
    server = Server(ServerSettings(data=folder, port=0, **settings), backend or FakeBackend())
    ready, urls, errors = threading.Event(), [], []

    def on_ready(url):
        urls.append(url)
        ready.set()

    def run():
        try:
            server.run(on_ready)
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        if errors:
            raise errors[0]
        with openai.OpenAI(base_url=urls[0], api_key=settings.get("token") or "none", max_retries=0) as client:
            yield client
    finally:
        server.stop()
        thread.join()
