"""A local server of the OpenAI chat API that answers with a Python function and fails on request."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

import dspy

from sirius_dspy.testing.engine import Prompt

FaultKind = Literal["500", "429", "reset", "broken", "empty", "void", "cut", "hang", "401", "402", "404"]
"""What the server does instead of answering: an HTTP status; `reset` resets the connection; `broken` sends status 200
with
a body that is not JSON, `empty` without a body, `void` with a body without a reply; `cut` closes the connection in the
middle of the body; `hang` never answers."""

Faults = Callable[[Prompt, int], FaultKind | None]
"""Chooses the fault of a request, given the prompt and the number of earlier requests with the same prompt."""

_BODIES = {"broken": b"<html>Bad Gateway</html>", "empty": b"", "void": b'{"object": "chat.completion"}'}

_STATES = {"500": 500, "429": 429, "401": 401, "402": 402, "404": 404}


class FaultServer:
    """A server for LMs that can be made to fail. Inside `with`, it listens on a free port of the loopback interface.

    Args:
        answer: Returns the reply to a prompt.
        faults: Decides which requests fail, and how; by default, none does.
        retry_after: Seconds in the header `Retry-After` of a 429.

    Attributes:
        is_dead: While true, every connection is reset.

    Examples:
        >>> from sirius_dspy.testing import chat_reply
        >>> with FaultServer(lambda prompt: chat_reply(answer="4")) as server:
        ...     program = dspy.Predict("question -> answer")
        ...     program.set_lm(server.lm())
        ...     print(program(question="2+2?").answer, server.calls)
        4 1
    """

    def __init__(
        self, answer: Callable[[Prompt], str], faults: Faults | None = None, *, retry_after: float = 0.1
    ) -> None:
        self.answer = answer
        self.faults = faults
        self.retry_after = retry_after
        self.is_dead = False
        self.failed: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()  # protects both counters, since each request has its own thread
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._server = _Listener(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The `api_base` of this server."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def calls(self) -> int:
        """The number of requests so far, including failed ones."""
        with self._lock:
            return self._asked.total()

    def lm(self, model: str = "openai/served", **kwargs: Any) -> dspy.LM:
        """Create an LM that calls this server, by default without a cache and without retries."""
        return dspy.LM(model, **{"api_base": self.url, "api_key": "none", "num_retries": 0, "cache": False, **kwargs})

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request, or fail."""
        length = int(handler.headers.get("Content-Length", 0))
        prompt = _prompt(json.loads(handler.rfile.read(length)))
        with self._lock:
            before = self._asked[prompt.text]
            self._asked[prompt.text] += 1
        fault = "reset" if self.is_dead else self.faults and self.faults(prompt, before)
        if fault:
            with self._lock:
                self.failed[fault] += 1
            self._fail(handler, fault)
        else:
            _send(handler, 200, _completion(prompt, self.answer(prompt)))

    def _fail(self, handler: BaseHTTPRequestHandler, fault: str) -> None:
        if fault in _STATES:
            headers = {"Retry-After": str(self.retry_after)} if fault == "429" else {}
            _send(handler, _STATES[fault], json.dumps({"error": {"message": f"fault {fault}"}}).encode(), headers)
        elif fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
        elif fault == "cut":
            _send(handler, 200, b'{"id": "served", "choi', {}, missing=100)
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            self._closing.wait()
            handler.close_connection = True
        else:
            _send(handler, 200, _BODIES[fault])


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing, because broken connections are the purpose of this server."""


def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.respond(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler


def _send(
    handler: BaseHTTPRequestHandler, state: int, body: bytes, headers: dict[str, str] | None = None, missing: int = 0
) -> None:
    handler.send_response(state)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body) + missing))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()
    handler.close_connection |= bool(missing)


def _prompt(body: dict[str, Any]) -> Prompt:
    messages = [(message["role"], _text(message["content"])) for message in body["messages"]]
    system = "".join(text for role, text in messages if role in ("system", "developer"))
    others = tuple(message for message in messages if message[0] not in ("system", "developer"))
    return Prompt(body["model"], system, others, body.get("temperature"), body.get("seed"))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def _completion(prompt: Prompt, text: str) -> bytes:
    used = {"prompt_tokens": len(prompt.text.split()), "completion_tokens": len(text.split())}
    reply = {
        "id": "served",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": prompt.model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {**used, "total_tokens": sum(used.values())},
    }
    return json.dumps(reply).encode()
