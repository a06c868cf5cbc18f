"""Downloads checkpoints from MLflow's model registry, once: `models:/team@champion` becomes a local folder.

Folders are kept in `SIRIUS_HOME`, named after the registry, the version, and MLflow's id of the logged model, whose
content never changes. An alias is looked up each time, because it can move.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from sirius_dspy.errors import CheckpointError
from sirius_dspy.local.home import home, new_folder
from sirius_dspy.redact import redact

SCHEME = "models:/"
MODEL_ID = "sirius.model_id"
"""Tag of a model version with the id of its logged model, which MLflow's own registry does not store."""

_FORMS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")


def fetch_checkpoint(uri: str) -> Path:
    """Download the checkpoint of a registered program or agent, unless it is already on this machine.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/MODEL_ID`, in the registry that MLflow is set to.

    Raises:
        CheckpointError: The model does not exist, was not registered by sirius_dspy, or cannot be downloaded.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        source, model_id = _locate(client, uri)
        folder = home("registry", _folder_name(client, source, model_id))
        if not folder.is_dir():
            with new_folder(folder) as draft:
                mlflow.artifacts.download_artifacts(
                    artifact_uri=source, dst_path=str(draft), tracking_uri=client.tracking_uri
                )
    except MlflowException as error:
        raise CheckpointError(_explain_refusal(client, uri, error)) from error
    manifest = next(folder.glob("data/*/manifest.json"), None)
    if manifest is None:
        raise CheckpointError(
            f"{uri!r} is not a program or agent of sirius_dspy. Register one with `sirius_dspy.mlflow.register`."
        )
    return manifest.parent


def _locate(client: Any, uri: str) -> tuple[str, str]:
    """Return the permanent address of a model, and MLflow's id of its logged model."""
    match = _FORMS.fullmatch(uri)
    if match is None:
        raise CheckpointError(
            f"{uri!r} is not the address of a model. Write `models:/NAME@ALIAS` or `models:/NAME/VERSION`."
        )
    name, alias, version = match.group("name", "alias", "version")
    if alias is None and version is None:
        return uri, str(client.get_logged_model(name).model_id)
    entry = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    if MODEL_ID not in entry.tags:
        raise CheckpointError(
            f"{uri!r} is not a program or agent of sirius_dspy. Register one with `sirius_dspy.mlflow.register`."
        )
    return f"{SCHEME}{name}/{entry.version}", str(entry.tags[MODEL_ID])


def _folder_name(client: Any, source: str, model_id: str) -> str:
    """Name the folder so that the same id from another registry, or under another name, gets another folder."""
    if not re.fullmatch(r"[\w-]{1,100}", model_id, re.ASCII):
        raise CheckpointError(f"The registry gives {source!r} the id {model_id[:100]!r}, which is not one of MLflow's.")
    place = f"{client.tracking_uri}\0{source}\0{model_id}"
    return f"{model_id}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"


def _explain_refusal(client: Any, uri: str, error: Exception) -> str:
    """Explain why a model cannot be loaded, and list the models or versions that exist."""
    text = f"{uri!r} cannot be loaded from the registry {redact(without_password(client.tracking_uri))!r}: {error}"
    if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return f"{redact(text)} Check `MLFLOW_TRACKING_URI`, or call `mlflow.set_tracking_uri(...)` first."
    names = [model.name for model in client.search_registered_models(max_results=100)]
    name = uri.removeprefix(SCHEME).partition("@")[0].partition("/")[0]
    if name not in names:
        return f"{redact(text)} The registered models are {names}; choose one, or set another `MLFLOW_TRACKING_URI`."
    aliases = dict(client.get_registered_model(name).aliases)
    versions = sorted(int(item.version) for item in client.search_model_versions(f"name = '{name}'"))
    return f"{redact(text)} {name!r} has the versions {versions} and the aliases {aliases}; choose one of them."


def without_password(uri: str) -> str:
    """Remove the password from a URL."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)
