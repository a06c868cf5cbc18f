"""Builds the program of a command line, with its LMs and adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.checkpoint.naming import build_at
from sirius_dspy.errors import SettingsError, UnpreparedProgramError
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.imports import FAILURES, import_at
from sirius_dspy.local import LocalLM
from sirius_dspy.program import predictor_names

AdapterName = Literal["plain", "chat", "xml"]

_ADAPTERS: Mapping[str, type[Adapter]] = {"plain": PlainAdapter, "chat": dspy.ChatAdapter, "xml": dspy.XMLAdapter}
_NAMED = re.compile(r"(?P<agent>[^=/:]+)=(?P<model>.+)")


def build_program(path: str) -> dspy.Module:
    """Import and build a program.

    Raises:
        CheckpointError: The name does not exist.
        UnpreparedProgramError: It is not a program and does not build one.
    """
    target: Any = build_at(path)
    try:
        program = target if isinstance(target, dspy.Module) else target()
    except TypeError as error:
        raise UnpreparedProgramError(f"{path!r} cannot be called without arguments: {error}.") from error
    if not isinstance(program, dspy.Module):
        raise UnpreparedProgramError(f"{path!r} gives {program!r}, expected a `dspy.Module`.")
    return program


def import_setting(path: str, option: str) -> Any:
    """Import the object that an option names.

    Raises:
        SettingsError: The name does not exist.
    """
    try:
        return import_at(path)
    except FAILURES as error:
        raise SettingsError(
            f"`{option}` is {path!r}, which cannot be imported: {error}. Pass `module:name` or `file.py:name`."
        ) from error


def set_lms(
    program: dspy.Module, models: Sequence[str], groups: Mapping[str, Sequence[str]], settings: Mapping[str, Any]
) -> None:
    """Give the agents their LMs.

    Args:
        program: The program, which is changed in place.
        models: LMs as for `lm_from`, for all agents or as `agent=LM` for one.
        groups: Agents with several predictors.
        settings: Settings of all LMs, such as `max_tokens`.

    Raises:
        SettingsError: The agent does not exist.
        ExperimentError: The LM does not exist.
    """
    predictors = predictor_names(program)
    for model in sorted(models, key=lambda text: bool(_NAMED.fullmatch(text))):  # the LM for all agents comes first
        named = _NAMED.fullmatch(model)
        lm = lm_from(named["model"] if named else model, settings, {})
        for name in _predictors_of(named["agent"], predictors, groups) if named else predictors:
            predictors[name].lm = lm


def make_adapter(name: AdapterName | None, program: dspy.Module) -> Adapter:
    """Create the adapter with that name; by default `plain` for small local models, otherwise `chat`."""
    is_local = any(isinstance(predictor.lm, LocalLM) for predictor in predictor_names(program).values())
    return _ADAPTERS[name or ("plain" if is_local else "chat")]()


def _predictors_of(agent: str, predictors: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if agent in groups:
        return groups[agent]
    if agent not in predictors:
        raise SettingsError(f"`--lm` names the agent {agent!r}; the program has {[*groups, *predictors]}.")
    return (agent,)
