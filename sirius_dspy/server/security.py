"""Looks at each request before any of it is parsed: who asks, from where, and how much it sends."""

from __future__ import annotations

import asyncio
import hmac
import time

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sirius_dspy.server.answers import ApiError, error_body
from sirius_dspy.server.settings import ServerSettings, is_loopback

_UPLOADS = "/v1/files"


class Guard:
    """Refuses requests without the token, of web pages, compressed ones, and bodies that are too large or too slow.

    Args:
        app: What answers the others.
        settings: The token and the limits.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.settings.max_upload_bytes if scope["path"] == _UPLOADS else self.settings.max_body_bytes
        refusal = self._refuse_caller(headers) or _refuse_body(headers, limit)
        if refusal is not None:
            body = error_body(refusal.status_code, refusal.detail, refusal.code)
            await JSONResponse(body, refusal.status_code, {"Connection": "close"})(scope, receive, send)
            return
        await self.app(scope, _Body(receive, limit, self.settings.body_timeout_s).receive, send)

    def _refuse_caller(self, headers: Headers) -> ApiError | None:
        if self.settings.token is not None:
            given = headers.get("authorization", "").encode("latin-1")
            expected = f"Bearer {self.settings.token}".encode()
            if not hmac.compare_digest(given, expected):
                message = "The API key is missing or wrong. It must be the server's token."
                return ApiError(401, message, code="invalid_api_key")
        elif not is_loopback(_host_of(headers.get("host", ""))):
            return ApiError(403, "This server answers only to its own machine, at 127.0.0.1 or localhost.")
        if "origin" in headers:
            return ApiError(403, "This server does not answer web pages.")
        return None


def _refuse_body(headers: Headers, limit: int) -> ApiError | None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        return ApiError(415, "A compressed body is not accepted. Send it as it is.")
    length = headers.get("content-length", "0")
    return _too_large(limit) if not length.isdecimal() or int(length) > limit else None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes. Send less at a time.", code="request_too_large")


def _host_of(header: str) -> str:
    """Return the host without its port."""
    return header.partition("]")[0] if header.startswith("[") else header.partition(":")[0]


class _Body:
    """A body that ends with an error when it is too large or takes too long."""

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._left = limit
        self._ends = time.monotonic() + timeout_s
        self._is_complete = False

    async def receive(self) -> Message:
        """Return the next part of the body, or what comes after it."""
        if self._is_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._ends - time.monotonic()))
        except TimeoutError:
            raise ApiError(408, "The body took too long to arrive.") from None
        self._is_complete = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _too_large(self._limit)
        return message
