"""A stand-in for `vllm serve`, of the standard library alone: as a command, or in a thread of the tests.

Like vLLM, it keeps what it read under a name: an adapter that is loaded again under the same name has its old weights.
The weights of an adapter are JSON: the log-probability of every token, and replies by the last message of the prompt.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

BASE_NATS = -2.0


class FakeVLLM:
    """The state of a server.

    Args:
        base: Name of the base weights.
        reply: The answer of the base, and of an adapter that has not learned a prompt.
        ignores: Whether adapters are loaded, but not used.
    """

    def __init__(self, base="base", reply=lambda body: "?", *, ignores=False):
        self.base, self.reply, self.ignores = base, reply, ignores
        self.adapters: dict[str, str] = {}
        self.seen: dict[str, dict] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.changed_in_flight: list[str] = []
        self.asked: Counter[str] = Counter()
        self.in_flight = 0
        self.lock = threading.Lock()
        self.hold = threading.Event()
        self.hold.set()

    def weights(self, name):
        return {} if self.ignores else self.seen.get(name, {})

    def post(self, path, body):
        """The status and the payload of an answer."""
        if path.endswith("/load_lora_adapter"):
            return self.load(body["lora_name"], body["lora_path"])
        if path.endswith("/unload_lora_adapter"):
            return self.unload(body["lora_name"])
        if body["model"] not in (self.base, *self.adapters):
            return 404, {"error": {"message": f"The model {body['model']!r} does not exist."}}
        if path.endswith("/chat/completions"):
            return 200, self.chat(body)
        nats = self.weights(body["model"]).get("nats", BASE_NATS)
        table = [None, *({str(token): {"logprob": nats}} for token in body["prompt"][1:])]
        return 200, {"choices": [{"text": "", "prompt_logprobs": table}]}

    def chat(self, body):
        with self.lock:
            self.in_flight += 1
            self.asked[body["model"]] += 1
        self.hold.wait(20)
        text = self.weights(body["model"]).get("replies", {}).get(body["messages"][-1]["content"])
        with self.lock:
            self.in_flight -= 1
        choice = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": self.reply(body) if text is None else text}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return about | {"choices": [choice], "usage": usage}

    def load(self, name, path):
        with self.lock:
            self.changed_in_flight += [name] * bool(self.in_flight)
        if not (Path(path) / "adapter_config.json").is_file():
            return 400, {"error": {"message": f"no adapter in {path}"}}
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter {name!r} has already been loaded."}}
        self.loads.append(name)
        self.adapters[name] = path
        self.seen.setdefault(name, json.loads((Path(path) / "adapter_model.safetensors").read_text()))
        return 200, f"Success: LoRA adapter {name!r} added successfully."

    def unload(self, name):
        with self.lock:
            self.changed_in_flight += [name] * bool(self.in_flight)
        self.unloads.append(name)
        del self.adapters[name]
        return 200, f"Success: LoRA adapter {name!r} removed successfully."

    @contextmanager
    def serving(self, port=0):
        """Serve in a thread, and give the `api_base`."""
        with ThreadingHTTPServer(("127.0.0.1", port), handler(self)) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/v1"
            finally:
                server.shutdown()
                thread.join()


def handler(fake):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            names = [{"id": name} for name in (fake.base, *fake.adapters)]
            self.answer(200, {"data": names} if self.path.endswith("/models") else "")

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*fake.post(self.path, body))

        def answer(self, status, payload):
            data = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            """Log nothing."""

    return Handler


def main(arguments):
    """`serve BASE --host H --port P --served-model-name N --enable-lora ...`; options of its own make it fail."""
    assert arguments[0] == "serve"
    assert "--enable-lora" in arguments
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    if "--fail" in arguments:
        sys.exit("ValueError: no memory for the KV cache")
    value = dict(pairwise(arguments))
    if "--hang" in arguments:
        threading.Event().wait(120)
    if os.fork() == 0:  # as vLLM's engine runs in a process of its own
        threading.Event().wait(120)
        os._exit(0)
    sys.stdout.write(f"pid {os.getpid()}\n")
    sys.stdout.flush()
    fake = FakeVLLM(value["--served-model-name"])
    with fake.serving(int(value["--port"])):
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
