"""Creates the LM of an experiment from its description on the command line."""

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
    """Create an LM.

    Args:
        model: `local/NAME`, a `.gguf` file, `provider/model` as in `dspy.LM`, or `module:name` of your own LM, or of a
            function that creates one from `settings`.
        settings: Further arguments, such as `max_tokens`.
        training: `LoraOptions` of a local LM; for other LMs, the trainer has them.

    Raises:
        ExperimentError: The LM does not exist, or it does not accept these arguments.
        ModelNotFoundError: The weights of a local LM cannot be found.
    """
    if not model:
        raise ExperimentError(
            "There is no LM. Pass `--lm`, or set `lm.model` in the recipe, such as 'openai/gpt-4o-mini'."
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
            f"The LM {model!r} does not accept {dict(settings)!r} and {dict(training)!r}: {error}."
        ) from error


def _local(model: str, settings: Mapping[str, Any], training: Mapping[str, Any]) -> dspy.LM:
    name = model if "@" in model else model.removeprefix("local/")  # with a hash, it is an id in this machine's index
    weights = Path(name) if name.endswith(".gguf") and Path(name).exists() else name
    return LocalLM(weights, lora=LoraOptions(**training), **settings)


def _own(path: str, settings: Mapping[str, Any]) -> dspy.LM:
    target = import_path(path, "lm")
    made = target if isinstance(target, dspy.LM) else target(**settings)
    if not isinstance(made, dspy.LM):
        raise ExperimentError(f"{path!r} is {made!r}, expected a `dspy.LM`, or a function that makes one.")
    return made
