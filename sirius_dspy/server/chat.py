"""`/v1/models` and `/v1/chat/completions`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sirius_dspy.errors import PromptTooLongError, SiriuSError
from sirius_dspy.local.engine import Generation, GenerationOptions
from sirius_dspy.server.answers import ApiError
from sirius_dspy.server.backend import Backend
from sirius_dspy.server.models import Models
from sirius_dspy.server.wire import ChatRequest, ModelObject

_MAX_TOKENS = 1024
"""Length of an answer if the request gives none."""

_AT_ONCE = 64
"""Answers that are generated at the same time; others wait."""

_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
}
"""Fields that are refused, and the values that ask for nothing."""

_IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
}
"""Fields that do not change an answer."""


def chat_routes(backend: Backend, models: Models) -> APIRouter:
    """Return the handlers of models and chats."""
    routes = APIRouter()
    turns = anyio.CapacityLimiter(_AT_ONCE)

    @routes.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": list(models)}

    @routes.get("/v1/models/{name:path}")
    def retrieve_model(name: str) -> ModelObject:
        return models.get(name)

    @routes.delete("/v1/models/{name:path}")
    def delete_model(name: str) -> dict[str, Any]:
        models.remove(name)
        return {"id": name, "object": "model", "deleted": True}

    @routes.post("/v1/chat/completions")
    async def complete(request: ChatRequest) -> Response:
        _check(request)
        weights = models.weights_of(models.get(request.model))
        messages = [message.plain for message in request.messages]
        answers: list[Generation] = [Generation("", 0, 0, "stop")] * (request.n or 1)

        async def draw(number: int) -> None:
            call = partial(backend.complete, weights, messages, _options(request, number))
            answers[number] = await anyio.to_thread.run_sync(call, limiter=turns)

        try:
            async with anyio.create_task_group() as group:
                for number in range(len(answers)):
                    group.start_soon(draw, number)
        except BaseExceptionGroup as errors:
            raise _explain(errors) from errors
        if request.stream:
            return StreamingResponse(_events(request, answers), media_type="text/event-stream")
        return JSONResponse(_completion(request, answers))

    return routes


def _check(request: ChatRequest) -> None:
    """Refuse what would change the answer and is not supported."""
    for name, value in (request.model_extra or {}).items():
        if value is None or name in _IGNORED or value in _NO_EFFECT.get(name, ()):
            continue
        shown, known = name[:100], "is not supported by this server" if name in _NO_EFFECT else "is not known"
        raise ApiError(400, f"The field {shown!r} {known}. Remove it.", code="unsupported_parameter", param=shown)


def _options(request: ChatRequest, number: int) -> GenerationOptions:
    """Return how to draw one of the answers: each has its own seed."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return GenerationOptions(
        max_tokens=request.max_completion_tokens or request.max_tokens or _MAX_TOKENS,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p or 1.0,
        stop=tuple(text for text in stop if text),
        seed=None if request.seed is None else request.seed + number * 1_000_003,
    )


def _explain(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    if isinstance(first, PromptTooLongError):
        return ApiError(400, str(first), code="context_length_exceeded", param="messages")
    return ApiError(500, str(first)) if isinstance(first, SiriuSError) else first


# Answers


def _head(request: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": request.model}


def _completion(request: ChatRequest, answers: list[Generation]) -> dict[str, Any]:
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        for number, answer in enumerate(answers)
    ]
    return {**_head(request, "chat.completion"), "choices": choices, "usage": _usage(answers)}


def _usage(answers: list[Generation]) -> dict[str, int]:
    prompt = answers[0].prompt_tokens
    completion = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _events(request: ChatRequest, answers: list[Generation]) -> Iterator[str]:
    """Yield finished answers word by word, as server-sent events."""
    wants_usage = request.stream_options is not None and request.stream_options.include_usage
    head = _head(request, "chat.completion.chunk") | ({"usage": None} if wants_usage else {})
    for number, answer in enumerate(answers):
        yield _event({**head, "choices": [_delta(number, {"role": "assistant", "content": ""})]})
        for word in re.findall(r"\s*\S+|\s+\Z", answer.text):
            yield _event({**head, "choices": [_delta(number, {"content": word})]})
        yield _event({**head, "choices": [_delta(number, {}, answer.finish_reason)]})
    if wants_usage:
        yield _event({**head, "choices": [], "usage": _usage(answers)})
    yield "data: [DONE]\n\n"


def _delta(number: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
