"""Everything that this package uses of DSPy beyond its documented API.

A new version of DSPy may move or rename any of it. Then this is the one file to change, and
`tests/test_dspy_internals.py` says what broke.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import dspy
from dspy._vendor.lm15.transports import StdlibTransport
from dspy.adapters.base import Adapter, _tool_call_as_openai_message_tool_call
from dspy.adapters.chat_adapter import FieldInfoWithName as FieldInfoWithName
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER as CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import apply_output_field_defaults as apply_output_field_defaults
from dspy.adapters.utils import format_field_value as format_field_value
from dspy.adapters.utils import parse_value as parse_value
from dspy.clients._http import finite_seconds
from dspy.clients.backend_selection import select_backend
from dspy.clients.base_lm import LM_CLASS_STATE_KEY as LM_CLASS_STATE_KEY
from dspy.clients.engines.litellm_errors import to_lm15_error
from dspy.clients.engines.lm15_engine import LM15Engine as LM15Engine
from dspy.clients.errors import wrap_error
from dspy.clients.model_metadata import model_info
from dspy.lm15 import LM15Error, RouterConfig
from pydantic.fields import FieldInfo

Engine = TypeVar("Engine")

LM_INTERNALS = frozenset(
    {
        "_engine_spec",
        "_async_engine_spec",
        "_providers",
        "_engine_store",
        "_engine_lock",
        "_warned_zero_temp_rollout",
    }
)
"""Private attributes of every `dspy.LM`; none of them changes what the LM answers."""

TRUNCATION_LOGGER = "dspy.clients.lm"
"""Where DSPy warns of a reply that was cut off at the token limit."""

TRUNCATION_WARNING = "LM response was truncated"
"""How such a warning begins."""


# Errors


def to_lm_error(error: Exception) -> Exception | None:
    """Translate an error of an SDK or of LiteLLM into DSPy's own; `None` if DSPy does not know it."""
    translated = to_lm15_error(error)
    return None if translated is error else wrap_error(translated, model="")


def retry_after_s(error: BaseException) -> float | None:
    """Seconds that a server asked to wait; `None` if it did not, or not in a finite number."""
    seconds: float | None = finite_seconds(getattr(error, "retry_after", None))
    return seconds


# LMs


def is_managed(lm: Any) -> bool:
    """Whether DSPy itself sends the LM's requests, and so retries them; subclasses of `dspy.BaseLM` send their own."""
    return hasattr(lm, "_engine_spec")


def has_server(lm: Any) -> bool:
    """Whether DSPy sends the LM's requests to a server, not to an engine in this process."""
    return isinstance(getattr(lm, "_engine_spec", None), str)


# Engines: what sends the requests of an LM that DSPy manages


def engine_of_server(lm: dspy.LM) -> str | None:
    """The provider whose engine DSPy itself would choose for an LM; `None` if it would go through LiteLLM.

    Providers that the user has declared are left out as well: DSPy may ask them in another dialect.
    """
    if lm._engine_spec != "auto" or lm._async_engine_spec is not None or lm._providers or lm.model_type != "chat":
        return None
    try:
        selection: Any = select_backend(lm)
    except (LM15Error, TypeError, ValueError):
        return None
    return selection.resolution.provider if selection.native else None


def kept_engine(lm: dspy.LM, key: tuple[Any, ...], build: Callable[[], Engine]) -> Engine:
    """The engine that an LM and its copies keep under a key, and close together with their own."""
    with lm._engine_lock:
        place = (None, *key)  # no event loop
        if place not in lm._engine_store:
            lm._engine_store[place] = build()
        engine: Engine = lm._engine_store[place]
        return engine


def build_engine(
    provider: str, *, api_key: Any, url: str | None, max_connections: int, looks_for_proxy: bool
) -> LM15Engine:
    """Build an engine as DSPy does, with connections of our own choice."""
    transport = StdlibTransport(max_connections=max_connections, trust_env=looks_for_proxy)
    api_keys = None if api_key is None else {provider: api_key}
    return LM15Engine(
        RouterConfig(api_keys=api_keys, base_urls={provider: url} if url else None, transport=transport),
        model_type="chat",
    )


def with_engine(lm: dspy.LM, engine: Any, *, without: Collection[str]) -> dspy.LM:
    """The same LM, its state shared, with another engine and without settings that only the engine has."""
    other = object.__new__(dspy.LM)
    kwargs = {name: value for name, value in lm.kwargs.items() if name not in without}
    vars(other).update({**vars(lm), "_engine_spec": engine, "kwargs": kwargs})
    return other


def public_error(error: Exception, model: str, provider: str) -> Exception:
    """The error that DSPy raises for one of an engine."""
    return wrap_error(error, model=model, provider=provider)


def has_listed_price(provider: str, model: str) -> bool:
    """Whether DSPy's table has an entry for a model, by which it could tell the cost of a reply."""
    return bool(model_info(provider, model))


# Native tool calls


def sent_signature(adapter: Adapter, lm: Any, signature: Any, inputs: Mapping[str, Any]) -> Any:
    """The signature by which an adapter writes its messages: without the fields that it hands to the LM natively."""
    return adapter._call_preprocess(lm, {}, signature, dict(inputs))


def native_tool_call(call: dspy.ToolCalls.ToolCall) -> dict[str, Any]:
    """A tool call as adapters write it into a message of the assistant, in OpenAI's format."""
    written: dict[str, Any] = _tool_call_as_openai_message_tool_call(call)
    return written


# Settings of the current context


def caller_modules() -> Sequence[dspy.Module]:
    """The modules that are being called, outermost first."""
    modules: Sequence[dspy.Module] = dspy.settings.caller_modules or []
    return modules


def usage_tracker() -> Any:
    """The object whose `add_usage` hears of every answered request; `None` if there is none."""
    return dspy.settings.get("usage_tracker")


# Programs


def is_compiled(module: dspy.Module) -> bool:
    """Whether an optimizer has marked the module, so that a program around it hides its predictors."""
    return bool(getattr(module, "_compiled", False))


def mark_compiled(module: dspy.Module, value: bool = True) -> None:
    """Mark a module as an optimizer does, or remove the mark."""
    module._compiled = value


def field_role(info: FieldInfo) -> str:
    """Whether a field of a signature is an `input` or an `output`."""
    extra: Any = info.json_schema_extra or {}
    return str(extra.get("__dspy_field_type", ""))


class BootstrapFinetune(dspy.BootstrapFinetune):
    """DSPy's optimizer, with a method to override that chooses the runs to train on."""

    def choose_runs(self, runs: list[Any], place: int | None) -> list[Any]:
        """The runs that become training rows.

        Args:
            runs: All that DSPy has collected: mappings with `trace` and `score`, among others.
            place: Position of the predictor that is trained; `None` for all at once.
        """
        return runs

    def _prepare_finetune_data(self, trace_data: list[Any], lm: Any, pred_ind: int | None = None) -> Any:
        chosen = self.choose_runs(trace_data, pred_ind)
        return super()._prepare_finetune_data(trace_data=chosen, lm=lm, pred_ind=pred_ind)
