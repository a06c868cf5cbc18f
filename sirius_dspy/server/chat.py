"""`/v1/models` and `/v1/chat/completions`."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from sirius_dspy.local.engine import Generation, GenerationOptions, OnText
from sirius_dspy.server.answers import ApiError, explain
from sirius_dspy.server.backend import Backend
from sirius_dspy.server.completions import Chunks, completion
from sirius_dspy.server.models import Models
from sirius_dspy.server.streams import Draw, respond
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

        async def draw(number: int, on_text: OnText | None = None) -> Generation:
            call = partial(backend.complete, weights, messages, _options(request, number), on_text)
            return await anyio.to_thread.run_sync(call, limiter=turns)

        if request.stream:
            with_usage = request.stream_options is not None and request.stream_options.include_usage
            return await respond(draw, request.n or 1, Chunks(request.model, with_usage=with_usage))
        return JSONResponse(completion(request.model, await _draw_all(draw, request.n or 1)))

    return routes


async def _draw_all(draw: Draw, number: int) -> list[Generation]:
    """Wait for all answers, or for the first error."""
    answers: dict[int, Generation] = {}

    async def keep(place: int) -> None:
        answers[place] = await draw(place, None)

    try:
        async with anyio.create_task_group() as group:
            for place in range(number):
                group.start_soon(keep, place)
    except BaseExceptionGroup as errors:
        raise explain(errors.exceptions[0]) from errors
    return [answers[place] for place in range(number)]


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
