"""Everything that this package uses of DSPy beyond its documented API.

A new version of DSPy may move or rename any of it. Then this is the one file to change, and
`tests/test_dspy_internals.py` says what broke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
from dspy.adapters.chat_adapter import FieldInfoWithName as FieldInfoWithName
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER as CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import apply_output_field_defaults as apply_output_field_defaults
from dspy.adapters.utils import format_field_value as format_field_value
from dspy.adapters.utils import parse_value as parse_value
from dspy.clients._http import finite_seconds
from dspy.clients.base_lm import LM_CLASS_STATE_KEY as LM_CLASS_STATE_KEY
from dspy.clients.engines.litellm_errors import to_lm15_error
from dspy.clients.errors import wrap_error
from pydantic.fields import FieldInfo

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
