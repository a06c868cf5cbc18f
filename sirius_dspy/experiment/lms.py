"""The LM of an experiment, from what a user can write on a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.task import import_path
from sirius_dspy.local import LocalLM, LoraOptions

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:name`; the ids of hosted models have a slash before any colon."""


def lm_from(model: str, settings: Mapping[str, Any], training: Mapping[str, Any]) -> dspy.LM:
    """Make an LM.

    Args:
        model: `local/NAME`, a `.gguf` file, `provider/model` as in `dspy.LM`, or `module:name` of an LM of one's own,
            or of a function that makes one from `settings`.
        settings: Further arguments, such as `max_tokens`.
        training: `LoraOptions` of a local LM; other LMs are told when they are trained.

    Raises:
        ExperimentError: There is no such LM, or it does not take these arguments.
        ModelNotFoundError: The weights of a local LM are not there.
    """
    if not model:
        raise ExperimentError(
            "No LM: pass `--lm`, or give the recipe an `lm.model`. Expected e.g. 'openai/gpt-4o-mini'."
        )
    try:
        if model.startswith("local/") or model.endswith(".gguf"):
            return _local(model, settings, training)
        if _IMPORT_PATH.fullmatch(model):
            return _own(model, settings)
        return dspy.LM(model, **settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise ExperimentError(
            f"The LM {model!r} does not take {dict(settings)!r} and {dict(training)!r}: {error}."
        ) from error


def _local(model: str, settings: Mapping[str, Any], training: Mapping[str, Any]) -> dspy.LM:
    name = model if "@" in model else model.removeprefix("local/")  # with a hash, it is an id of this machine's index
    weights = Path(name) if name.endswith(".gguf") and Path(name).exists() else name
    return LocalLM(weights, lora=LoraOptions(**training), **settings)


def _own(path: str, settings: Mapping[str, Any]) -> dspy.LM:
    target = import_path(path, "lm")
    made = target if isinstance(target, dspy.LM) else target(**settings)
    if not isinstance(made, dspy.LM):
        raise ExperimentError(f"{path!r} is {made!r}, expected a `dspy.LM`, or a function that makes one.")
    return made
