"""Answers that are sent while they are generated, as server-sent events."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sirius_dspy.local.engine import Generation, OnText
from sirius_dspy.redact import redact_error
from sirius_dspy.server.answers import ApiError, describe, explain
from sirius_dspy.server.completions import Chunks, event

logger = logging.getLogger(__name__)

Draw = Callable[[int, OnText | None], Awaitable[Generation]]
"""Draws the answer with this number."""


class _GoneError(Exception):
    """The client no longer listens, so the generation ends."""


class _News(NamedTuple):
    """What happened in an answer: a piece of its text, its end, or an error."""

    number: int
    what: str | Generation | BaseException


class AnswerStream:
    """Draws some answers side by side, for one client.

    Args:
        draw: Draws one of them.
        size: The number of answers.
    """

    def __init__(self, draw: Draw, size: int) -> None:
        self.size = size
        self._draw = draw
        self._gone = threading.Event()
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(size)]

    async def next(self) -> _News:
        """Return what happens next."""
        return await self._news.get()

    def close(self) -> None:
        """End the answers that are still being generated, each before its next token."""
        self._gone.set()

    async def _run(self, number: int) -> None:
        def on_text(text: str) -> None:
            if self._gone.is_set():
                raise _GoneError
            self._loop.call_soon_threadsafe(self._news.put_nowait, _News(number, text))

        try:
            news: _News = _News(number, await self._draw(number, on_text))
        except _GoneError:
            return
        except Exception as error:  # it is told to the client
            news = _News(number, error)
        self._news.put_nowait(news)


async def respond(draw: Draw, size: int, chunks: Chunks) -> StreamingResponse:
    """Answer with a stream, which begins with the first token: before it, an error is an error of the request.

    Raises:
        ApiError: No answer can be given.
    """
    stream = AnswerStream(draw, size)
    try:
        first = await stream.next()
    except BaseException:
        stream.close()
        raise
    if isinstance(first.what, BaseException):
        stream.close()
        raise explain(first.what) from first.what
    return _Response(stream, _events(stream, first, chunks))


class _Response(StreamingResponse):
    """A response that ends the generation when the client goes away."""

    def __init__(self, stream: AnswerStream, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.close()


async def _events(stream: AnswerStream, news: _News, chunks: Chunks) -> AsyncIterator[str]:
    for number in range(stream.size):
        yield chunks.begin(number)
    answers: dict[int, Generation] = {}
    while True:
        number, what = news
        if isinstance(what, BaseException):
            yield event(_tell(what))
            return
        if isinstance(what, Generation):
            answers[number] = what
            yield chunks.end(number, what)
        elif what:
            yield chunks.text(number, what)
        if len(answers) == stream.size:
            break
        news = await stream.next()
    yield chunks.close([answers[number] for number in range(stream.size)])


def _tell(error: BaseException) -> dict[str, Any]:
    """Return the event of an error; what nobody foresaw is only logged."""
    told = explain(error)
    if not isinstance(told, ApiError):
        logger.error("An answer failed.", exc_info=redact_error(error))
    return describe(told)
