"""One canary for each thing of MLflow that `sirius_dspy.mlflow.mlflow_internals` uses beyond its documented API.

If one of these fails after an update of MLflow, correct that module; its test says what has moved.
"""

from __future__ import annotations

import logging

import mlflow
import pytest
from mlflow.store.tracking.rest_store import RestStore

from sirius_dspy.mlflow import mlflow_internals as internals

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's own, on current SQLAlchemy and Alembic
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def address(tmp_path, monkeypatch):
    """A store that MLflow is set to, with no experiment selected."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    before = mlflow.get_tracking_uri()
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(before)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_the_selected_experiment_is_read(address):
    assert internals.active_experiment_id() is None
    selected = mlflow.set_experiment("selected").experiment_id
    assert internals.active_experiment_id() == selected
    assert internals.resolve_experiment_id() == selected


def test_the_tags_of_the_context_are_added():
    tags = internals.resolve_tags({"own": "tag"})
    assert tags["own"] == "tag"
    assert "mlflow.source.name" in tags


def test_a_client_for_finished_traces_can_be_opened(address):
    client = internals.open_tracing_client(address)
    assert all(hasattr(client, name) for name in ("start_trace", "log_spans", "store"))
    assert not internals.has_silent_server(client.store)


def test_artifacts_of_a_trace_can_be_written(address, tmp_path):
    internals.open_artifacts((tmp_path / "trace").as_uri(), address).upload_trace_data("{}")
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "trace").iterdir()] == ["{}"]


def test_a_server_that_does_not_say_its_version_is_asked_again(monkeypatch):
    versions = [None]

    class Version:
        cache_clear = staticmethod(lambda: versions.append("asked again"))

        def __get__(self, store, kind):
            return self if store is None else lambda credentials: versions[-1]

    assert hasattr(RestStore._get_server_version, "cache_clear")
    monkeypatch.setattr(RestStore, "_get_server_version", Version())
    store = RestStore(lambda: None)
    assert internals.has_silent_server(store)
    assert not internals.has_silent_server(store)
