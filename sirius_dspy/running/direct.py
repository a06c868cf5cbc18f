"""Asks a server with OpenAI's chat API without what DSPy does anew for every call and that never changes.

For a model name without a listed price, which is every name of a local server, DSPy searches its whole price table
twice for each reply. It also chooses the engine and reads the proxies of the environment for each call, and opens at
most 100 connections. So the LM of a recorded call is replaced by one with an engine of its own, which settles all of
this once. Everything around the engine stays DSPy's: cache, retries, history, usage, callbacks and errors.

Only calls of text and numbers are made this way, of a plain `dspy.LM` whose settings say nothing unusual; all others
are left alone, and so are models with a listed price, whose cost DSPy tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import dspy
from dspy.lm15 import Request, Response

from sirius_dspy.dspy_internals import (
    LM15Engine,
    build_engine,
    engine_of_server,
    has_listed_price,
    kept_engine,
    public_error,
    with_engine,
)

PROVIDER = "openai-chat"
"""What DSPy calls OpenAI's chat API, at whatever address."""

MAX_CONNECTIONS = 4096
"""More than there are threads, which are what limits the calls under way."""

CONNECTION = ("api_key", "api_base", "base_url")
"""Settings that the engine has instead of the LM; DSPy's cache does not tell calls apart by them either."""

_PLAIN_SETTINGS = frozenset(
    {
        *CONNECTION,
        *("temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "seed"),
        *("presence_penalty", "frequency_penalty", "rollout_id", "cache"),
    }
)


def direct_lm(lm: Any, kwargs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    """Return the LM with an engine that asks its server directly, or the LM itself where that could change anything.

    Args:
        lm: Of a predictor; its state is shared, but for its engine and its address.
        kwargs: Arguments of the call.
        inputs: Of the predictor.
    """
    if type(lm) is not dspy.LM or not _is_plain({**lm.kwargs, **kwargs}, inputs) or _is_moved(kwargs):
        return lm
    address = tuple(lm.kwargs.get(name) for name in CONNECTION)
    choice = kept_engine(lm, ("sirius_dspy", lm.model, lm.model_type, *address), lambda: _Choice(_engine_for(lm)))
    engine = choice.engine
    return lm if engine is None or engine.has_price else with_engine(lm, engine, without=CONNECTION)


def _is_plain(settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    return settings.keys() <= _PLAIN_SETTINGS and all(_is_text(value) for value in inputs.values())


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_simple(item) for item in value)
    return _is_simple(value)


def _is_simple(value: Any) -> bool:
    return value is None or type(value) in (str, int, float, bool)


def _is_moved(kwargs: Mapping[str, Any]) -> bool:
    return any(name in kwargs for name in CONNECTION)


def _engine_for(lm: dspy.LM) -> DirectEngine | None:
    """The engine for an LM; `None` if it is to be left alone."""
    if engine_of_server(lm) != PROVIDER or has_listed_price(PROVIDER, lm.model.partition("/")[2]):
        return None
    return DirectEngine(lm)


class DirectEngine:
    """Makes one try at one request, as DSPy's own engine for OpenAI's chat API does.

    Args:
        lm: Whose address and abilities it has.
    """

    def __init__(self, lm: dspy.LM) -> None:
        url = lm.kwargs.get("api_base") or lm.kwargs.get("base_url")
        self.supports_function_calling = lm.supports_function_calling
        self.supports_reasoning = lm.supports_reasoning
        self.supports_response_schema = lm.supports_response_schema
        self.supported_params = lm.supported_params
        self.has_price = False
        """Whether the server answers under a name that does have a listed price, so that DSPy is to tell the cost."""
        self._names = {""}
        self._engine: LM15Engine = build_engine(
            PROVIDER,
            api_key=lm.kwargs.get("api_key"),
            url=url,
            max_connections=MAX_CONNECTIONS,
            looks_for_proxy=url is None or _has_proxy(url),
        )

    def complete(self, request: Request) -> Response:
        """Ask the server.

        Raises:
            LMError: As DSPy's own engine would.
        """
        try:
            response: Response = self._engine.complete(request)
        except Exception as error:
            public = public_error(error, request.model, PROVIDER)
            if public is error:
                raise
            raise public from error
        if response.model not in self._names:
            self._names.add(response.model)
            self.has_price |= has_listed_price(PROVIDER, response.model)
        return response

    def stream(self, request: Request) -> Iterator[Any]:
        """Ask the server, and pass on the reply in pieces."""
        return self._engine.stream(request)

    def close(self) -> None:
        """Close the connections; DSPy calls this when the LM is closed."""
        self._engine.close()


@dataclass(frozen=True)
class _Choice:
    """What was decided for an LM; DSPy closes it with the LM."""

    engine: DirectEngine | None

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


def _has_proxy(url: str) -> bool:
    parts, proxies = urlsplit(url), getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.hostname or "")
