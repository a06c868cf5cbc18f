"""Writes the files of a logged model: MLflow's description beside our checkpoint.

    MLmodel              read by MLflow
    data/<checkpoint>/   read by `sirius_dspy.load`
    code/                the sources of the program, if they were given

The model of an agent cannot be served: it only has weights for a program.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sirius_dspy.checkpoint.manifest import Manifest

LOADER = "sirius_dspy.mlflow.serving"
"""The module that MLflow imports to serve a program, so that nothing is pickled."""

_TYPES = {"str": "string", "int": "long", "float": "double", "bool": "boolean"}


def write_program(
    files: Path,
    checkpoint: Path,
    manifest: Manifest,
    *,
    served: str | None,
    model_id: str,
    code_paths: Sequence[str | Path],
) -> None:
    """Write a model that can be served.

    Args:
        files: Folder to create.
        checkpoint: Checkpoint of the program.
        manifest: Manifest of the checkpoint.
        served: The `module:name` that a server imports and calls to build the program.
        model_id: Id of the logged model.
        code_paths: Sources to store with the model.
    """
    with warnings.catch_warnings():
        # MLflow complains about type hints of its own on first import, and about a schema without an example.
        warnings.simplefilter("ignore", UserWarning)
        from mlflow import pyfunc
        from mlflow.models import Model

        pyfunc.save_model(
            str(files),
            loader_module=LOADER,
            data_path=str(checkpoint),
            code_paths=[str(path) for path in code_paths] or None,
            model_config={"program": served},  # said by who registers it; the checkpoint itself names no code
            mlflow_model=Model(model_id=model_id),
            signature=_signature(manifest.inputs),
            pip_requirements=_requirements(manifest),  # said, or MLflow would load the model to find out
        )


def write_agent(files: Path, checkpoint: Path, *, model_id: str) -> None:
    """Write a model with the weights of one agent; it cannot answer without its program.

    Args:
        files: Folder to create.
        checkpoint: Checkpoint of the agent.
        model_id: Id of the logged model.
    """
    from mlflow.models import Model

    data = files / "data" / checkpoint.name
    shutil.copytree(checkpoint, data)
    model = Model(model_id=model_id)
    model.add_flavor("sirius_dspy", data=data.relative_to(files).as_posix())
    model.save(str(files / "MLmodel"))


def _signature(inputs: Mapping[str, str] | None) -> Any | None:
    """Return MLflow's schema of the input fields, with which requests may be plain `{"inputs": {...}}`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    if not inputs:
        return None
    columns = [ColSpec(_TYPES.get(kind) or AnyType(), name) for name, kind in inputs.items()]
    return ModelSignature(inputs=Schema(columns))


def _requirements(manifest: Manifest) -> list[str]:
    """Return the requirements of a server, in the versions that wrote the checkpoint."""
    is_local = any(entry.lm.class_path.startswith("sirius_dspy.local.") for entry in manifest.agents.values())
    names = {"sirius-dspy": "[local]" if is_local else "", "dspy": "", "mlflow": ""}
    versions = {name: _version(name) for name in names}
    return [f"{name}{names[name]}=={version}" for name, version in versions.items() if version]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # run from a source tree
