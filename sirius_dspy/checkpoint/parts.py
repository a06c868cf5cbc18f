"""The adapters and LMs that a checkpoint may name, how they are stored, and how they are built again.

Both sets are closed. Anything else is never imported, and the caller of `load` must pass it.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.adapters.base import Adapter
from pydantic import ValidationError

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.checkpoint.manifest import AdapterState, LMState
from sirius_dspy.checkpoint.naming import path_of
from sirius_dspy.dspy_internals import LM_CLASS_STATE_KEY
from sirius_dspy.errors import CheckpointError

_FLAGS = ("use_native_function_calling", "parallel_tool_calls")
_ADAPTERS: Mapping[type[Adapter], Sequence[str]] = {
    dspy.ChatAdapter: (*_FLAGS, "use_json_adapter_fallback"),
    dspy.XMLAdapter: (*_FLAGS, "use_json_adapter_fallback"),
    dspy.JSONAdapter: _FLAGS,
    BAMLAdapter: _FLAGS,
    PlainAdapter: _FLAGS,
}
"""Adapter class to the arguments that are stored, which are flags only."""


@dataclass(frozen=True)
class _Kind:
    """An LM class that a checkpoint may name."""

    module: str
    """Imported only when such an LM is built, because the testing LMs are in a layer above this one."""
    name: str
    fields: frozenset[str] = frozenset()
    """Fields that only this class has."""
    left_out: frozenset[str] = frozenset()
    """Arguments that a loaded LM does not need."""
    ids: str = r".+"
    """Pattern of the ids that such an LM may have."""


_LMS = {
    "dspy.clients.lm.LM": _Kind("dspy", "LM"),
    "sirius_dspy.local.lm.LocalLM": _Kind(
        "sirius_dspy.local.lm",
        "LocalLM",
        frozenset({"device", "lora"}),
        ids=r"local/[^/@]+@[0-9a-f]{12}",  # others are paths, or would be downloaded
    ),
    "sirius_dspy.training.hosted_lm.ToolCallingLM": _Kind("sirius_dspy.training.hosted_lm", "ToolCallingLM"),
    "sirius_dspy.testing.scripted.ScriptedLM": _Kind(
        "sirius_dspy.testing.scripted", "ScriptedLM", frozenset({"answers"}), frozenset({"latency_s"})
    ),
    "sirius_dspy.testing.toy.ToyLM": _Kind(
        "sirius_dspy.testing.toy",
        "ToyLM",
        left_out=frozenset({"skill", "registry", "fail_training", "writes_weights", "latency_s"}),
    ),
}
_OWN_FIELDS = frozenset().union(*(kind.fields for kind in _LMS.values()))
_EMPTY: tuple[Any, ...] = (None, {}, [], "", False)


# LMs


def store_lm(lm: dspy.LM) -> tuple[LMState, list[str]]:
    """Return the stored state of an LM, and the names of the arguments that are not stored.

    Raises:
        CheckpointError: Its id is not valid.
    """
    try:
        plain = lm.dump_state()
    except Exception:  # an LM of any class; the state is the user's code, and the LM can be passed to `load`
        plain = {LM_CLASS_STATE_KEY: f"{type(lm).__module__}.{type(lm).__qualname__}", "model": lm.model, "state": "?"}
    kind = _LMS.get(plain[LM_CLASS_STATE_KEY], _Kind("", ""))
    state = {LM_CLASS_STATE_KEY: plain.pop(LM_CLASS_STATE_KEY), "model": plain.pop("model")}
    withheld = []
    for name, value in plain.items():
        if _fits({**state, name: value}) and (name not in _OWN_FIELDS or name in kind.fields):
            state[name] = value
        elif value not in _EMPTY and name not in kind.left_out:
            withheld.append(name)
    try:
        return LMState.model_validate(state), sorted(withheld)
    except ValidationError as error:
        raise CheckpointError(
            f"The LM {state['model']!r} cannot be stored: {error.errors()[0]['msg']}. Give it another id."
        ) from error


def _fits(state: Mapping[str, Any]) -> bool:
    try:
        LMState.model_validate(state)
        json.dumps(state, allow_nan=False)
    except (ValidationError, ValueError):
        return False
    return True


def is_known(state: LMState) -> bool:
    """Return whether a checkpoint may name the LM's class."""
    return state.class_path in _LMS


def check_lm(state: LMState) -> None:
    """Refuse fields and ids that belong to another class.

    Raises:
        CheckpointError: The state has such a field or id.
    """
    kind = _LMS[state.class_path]
    if not re.fullmatch(kind.ids, state.model):
        raise CheckpointError(
            f"{state.model!r} is not the id of a {kind.name}. The checkpoint was not written by `save`."
        )
    strangers = (_OWN_FIELDS - kind.fields) & state.model_fields_set
    if strangers:
        raise CheckpointError(
            f"The LM {state.model!r} of class {state.class_path!r} has no {sorted(strangers)}. The checkpoint was not "
            "written by `save`."
        )


def build_lm(state: LMState, weights: Path | None) -> dspy.LM:
    """Build an LM that `is_known` and `check_lm` have accepted.

    Args:
        state: The stored state of the LM.
        weights: Folder of its weights, in a verified checkpoint.

    Raises:
        CheckpointError: It cannot be built here, or the weights are different ones.
    """
    kind = _LMS[state.class_path]
    lm_class = getattr(importlib.import_module(kind.module), kind.name)
    try:
        if weights is None:
            lm: dspy.LM = lm_class.load_state(state.arguments())
        else:
            lm = lm_class.from_folder(weights, state.arguments())
    except Exception as error:
        raise CheckpointError(f"The LM {state.model!r} cannot be built: {str(error)[:500]}") from error
    if lm.model != state.model:
        raise CheckpointError(f"The weights in {str(weights)!r} are {lm.model!r}, expected {state.model!r}.")
    return lm


# Adapters


def store_adapter(adapter: Adapter) -> AdapterState:
    """Return the stored state of an adapter."""
    names = _ADAPTERS.get(type(adapter), ())
    overridden = {"native_response_types"} & vars(adapter).keys() if type(adapter) in _ADAPTERS else set()
    withheld = [name for name in sorted(overridden) if getattr(adapter, name) != getattr(type(adapter)(), name)]
    return AdapterState.model_validate(
        {
            "class": path_of(type(adapter)),
            "arguments": {name: value for name in names if isinstance(value := getattr(adapter, name), bool | None)},
            "withheld": withheld,
        }
    )


def describe_adapter(state: AdapterState) -> str:
    """Describe an adapter as the call that creates it."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in state.arguments.items())
    return f"{state.class_path.partition(':')[2]}({arguments})"


def build_adapter(state: AdapterState) -> Adapter:
    """Build an adapter from its stored state.

    Raises:
        CheckpointError: Its class is not one that a checkpoint may name, or it has other arguments.
    """
    adapter = next((cls for cls in _ADAPTERS if path_of(cls) == state.class_path), None)
    if adapter is None or state.withheld or not set(state.arguments) <= set(_ADAPTERS[adapter]):
        raise CheckpointError(
            f"The checkpoint was made under {describe_adapter(state)}{_without(state)}, which `load` does not build "
            "from a file. Call "
            f"`dspy.configure(adapter=...)` with a {state.class_path.partition(':')[2]} before `load`."
        )
    arguments: dict[str, Any] = dict(state.arguments)
    if adapter is PlainAdapter:
        return PlainAdapter(**arguments)
    return adapter(**arguments)


def _without(state: AdapterState) -> str:
    return f" with a custom {', '.join(state.withheld)}" if state.withheld else ""
