"""Uses of undocumented API of MLflow.

If a new version of MLflow changes that API, `tests/test_mlflow_internals.py` fails, and only this file must be changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def active_experiment_id() -> str | None:
    """The experiment that `mlflow.set_experiment` selected, as far as MLflow knows without asking the store."""
    from mlflow.tracking import fluent

    return fluent._active_experiment_id


def resolve_experiment_id() -> str:
    """The experiment that `mlflow.start_run` would use now; MLflow may ask the store."""
    from mlflow.tracking import fluent

    return str(fluent._get_experiment_id())


def resolve_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """The given tags and those of `mlflow.start_run`: who started it, from which script, commit and repository."""
    from mlflow.tracking.context import registry

    tags_of_context: dict[str, str] = registry.resolve_tags(tags)
    return tags_of_context


def open_tracing_client(tracking_uri: str) -> Any:
    """A client that writes finished traces; `MlflowClient`'s own methods need spans of the live tracer."""
    from mlflow.tracing.client import TracingClient

    return TracingClient(tracking_uri)


def open_artifacts(place: str, tracking_uri: str) -> Any:
    """The repository of the artifacts at a place; MLflow's own methods ask the process's store for it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=tracking_uri)


def has_silent_server(store: Any) -> bool:
    """Whether the store is a server that did not say its version, which is asked again next time.

    MLflow waits three seconds for the answer. Without one, it takes the server for an old one as long as the process
    lives.
    """
    from mlflow.store.tracking.rest_store import RestStore

    if not isinstance(store, RestStore) or store._get_server_version(store.get_host_creds()) is not None:
        return False
    RestStore._get_server_version.cache_clear()
    return True
