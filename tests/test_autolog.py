"""SiriuS under `mlflow.dspy.autolog()` and inside `dspy.BetterTogether`, with a real MLflow store."""

from __future__ import annotations

import logging

import dspy
import mlflow
import pytest

from sirius_dspy import Collect, SiriuS
from sirius_dspy.mlflow import MLflowTracker
from tests.mlflow_help import WARNINGS
from tests.toy import ADAPTER, exact, examples, student

pytestmark = [WARNINGS, pytest.mark.server]


@pytest.fixture
def store(tmp_path):
    loggers = [logging.getLogger(name) for name in ("dspy", "alembic", "mlflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.create_experiment("auto", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("auto")
    yield
    mlflow.dspy.autolog(disable=True)
    mlflow.set_tracking_uri(before)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def tree() -> list[tuple[str, str | None]]:
    runs = {run.info.run_id: run for run in mlflow.search_runs(output_format="list")}
    parents = {key: runs.get(run.data.tags.get("mlflow.parentRunId")) for key, run in runs.items()}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    return [(run.info.run_name, parents[key] and parents[key].info.run_name) for key, run in runs.items()]


def test_better_together_under_autolog_nests_our_runs_and_makes_no_trace_per_rollout(store, tmp_path):
    dspy.configure(adapter=ADAPTER)
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces_from_compile=False, silent=True)
    tracker = MLflowTracker(traces=0)
    step = SiriuS(
        exact, iterations=1, collect=Collect(samples=2), run_dir=tmp_path / "run", tracker=tracker, num_threads=4
    )
    together = dspy.BetterTogether(metric=exact, s=step)
    best = together.compile(student(), trainset=examples(), valset=examples(), strategy="s", num_threads=2)
    assert max(found["score"] for found in best.candidate_programs) == 100.0
    assert "student" not in vars(step)  # autolog writes into what `get_params` returns
    edges = tree()
    roots = [name for name, parent in edges if parent is None]
    assert len(roots) == 1
    names = [name for name, _ in edges]
    assert names.count("iteration-1") == 1
    assert sum(name.startswith("finetune-") for name in names) == 2
    assert not mlflow.search_traces(return_type="list")
