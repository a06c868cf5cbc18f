"""A server with OpenAI's chat API that answers every request after the same time, run as a process of its own.

    python -m benchmarks.latency_server [--latency 0.2]

It prints its port. The reply fills the output fields that the prompt of a DSPy adapter asks for, and is as long as that
of a small agent. One event loop serves all connections, which stay open, so that what a client needs is what is
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_FIELD = re.compile(rb"starting with the field `\[\[ ## (\w+) ## \]\]`")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

WORDS = "The crown went from hand to hand until somebody kept it for good. " * 4
"""What every agent answers, about 60 words."""


@contextmanager
def serve(latency_s: float) -> Iterator[str]:
    """Run the server in a child process, and yield the URL of its API.

    Args:
        latency_s: Seconds from a request to its reply.
    """
    command = [sys.executable, "-m", "benchmarks.latency_server", "--latency", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline() if server.stdout else ""
            yield f"http://127.0.0.1:{int(port)}/v1"
        finally:
            server.terminate()


def reply_to(body: bytes) -> bytes:
    """Return the HTTP reply to the body of a chat request."""
    found = _FIELD.findall(body)
    name = found[-1].decode() if found else "answer"
    text = f"[[ ## {name} ## ]]\n{WORDS}\n\n[[ ## completed ## ]]"
    payload = {
        "id": "chat",
        "object": "chat.completion",
        "created": 1,
        "model": "agent",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 80, "total_tokens": 280},
    }
    content = json.dumps(payload).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency_s: float) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            await asyncio.sleep(latency_s)
            writer.write(reply_to(body))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _run(latency_s: float) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: _answer(reader, writer, latency_s), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description="Answer OpenAI chat requests after a fixed time.")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds from a request to its reply")
    asyncio.run(_run(parser.parse_args().latency))


if __name__ == "__main__":
    main()
