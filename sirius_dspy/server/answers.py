"""Errors as OpenAI's API answers them, for its own client to understand."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from sirius_dspy.errors import PromptTooLongError, SiriuSError
from sirius_dspy.redact import redact

_UNREAD = (408, 413)
"""Statuses after which the rest of a body is not waited for."""


class ApiError(HTTPException):
    """A request that is refused.

    Args:
        status: Of HTTP.
        message: What is wrong, and what to do.
        code: OpenAI's name of the error, if it has one.
        param: The field of the request that is wrong.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.code = code
        self.param = param


def not_found(kind: str, name: str, code: str | None = None) -> ApiError:
    """Return the error about an id that nothing has."""
    return ApiError(404, f"No such {kind}: {name[:200]!r}", code=code, param="id")


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's form of an error, without credentials."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": redact(message), "type": kind, "param": param, "code": code}}


def explain(error: BaseException) -> BaseException:
    """Return what an error of a model means for the client; one that nobody foresaw stays as it is."""
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    return ApiError(500, str(error)) if isinstance(error, SiriuSError) else error


def describe(error: BaseException) -> dict[str, Any]:
    """Return OpenAI's form of any error; what nobody foresaw is not shown to the client."""
    if isinstance(error, ApiError):
        return error_body(error.status_code, error.detail, error.code, error.param)
    if isinstance(error, HTTPException):
        return error_body(error.status_code, str(error.detail))
    return error_body(500, "The server failed. Its log says why.")


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer any error that a handler raised."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = {"Connection": "close"} if isinstance(error, ApiError) and status in _UNREAD else None
    return JSONResponse(describe(error), status, headers)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a request with missing or wrong fields: name the first one, without repeating its value."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    place = _format_place(first.get("loc", ()))
    reason = f"Invalid value for {place!r}: {first.get('msg', 'not valid')}."
    message = reason if place else "The body is not valid JSON."
    return JSONResponse(error_body(400, message, "invalid_value", place or None), 400)


def _format_place(path: tuple[int | str, ...]) -> str:
    """Write the path of a field as OpenAI does: `messages[0].role`; empty for a body that is no JSON."""
    text = ""
    for part in path[1:]:  # the first one says body, query or path
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return "" if path[1:] and isinstance(path[1], int) else text.lstrip(".")
