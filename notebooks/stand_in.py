"""A stand-in for a host of LMs that fine-tunes, so that notebook 03 needs no key: an HTTP server on this machine.

It speaks OpenAI's chat API, and has a training call of its own, as small hosts do:

    POST /v1/chat/completions   {"model", "messages", "temperature"}  ->  a completion
    POST /v1/train              {"model", "rows"}                     ->  {"model": id of the new weights}

What it was trained on it answers by heart; all else it leaves to a function that the notebook gives it.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sirius_dspy.testing import Prompt

Message = Mapping[str, str]


class StandIn(ThreadingHTTPServer):
    """The host; it answers from the moment it is made until the notebook's kernel ends.

    Args:
        skill: Answers what was not learnt. `Prompt.seed` is set where the temperature is above 0.
    """

    daemon_threads = True

    def __init__(self, skill: Callable[[Prompt], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Calls)
        self.skill = skill
        self.learnt: dict[str, dict[tuple[str, str], str]] = {}
        self.count = itertools.count(1)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What `dspy.LM` takes as `api_base`."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def complete(self, model: str, messages: Sequence[Message], temperature: float | None) -> str:
        """Answer a chat."""
        seed = next(self.count) if temperature else None
        prompt = _prompt(model, messages, seed)
        return self.learnt.get(model, {}).get((prompt.system, prompt.user)) or self.skill(prompt)

    def train(self, model: str, rows: Sequence[Mapping[str, Sequence[Message]]]) -> str:
        """Learn rows by heart, on top of what the model knows; gives the id of the new weights."""
        memory = dict(self.learnt.get(model, {}))
        for row in rows:
            *asked, answer = row["messages"]
            prompt = _prompt(model, asked)
            memory[prompt.system, prompt.user] = answer["content"]
        name = f"stand-in-v{len(self.learnt) + 1}"
        self.learnt[name] = memory
        return name


class _Calls(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/train":
            self._answer({"model": self.server.train(asked["model"], asked["rows"])})
            return
        text = self.server.complete(asked["model"], asked["messages"], asked.get("temperature"))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        words = [sum(len(message["content"].split()) for message in asked["messages"]), len(text.split())]
        usage = {"prompt_tokens": words[0], "completion_tokens": words[1], "total_tokens": sum(words)}
        head = {"id": "stand-in", "object": "chat.completion", "created": 0, "model": asked["model"]}
        self._answer({**head, "choices": [choice], "usage": usage})

    def _answer(self, reply: Mapping[str, Any]) -> None:
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """No line on stderr for each call."""


def _prompt(model: str, messages: Sequence[Message], seed: int | None = None) -> Prompt:
    system = "\n".join(message["content"] for message in messages if message["role"] == "system")
    chat = tuple((message["role"], message["content"]) for message in messages if message["role"] != "system")
    return Prompt(model, system, chat, seed=seed)
