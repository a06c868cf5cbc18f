"""An experiment in MLflow: one parent run, and below it one run per method and seed.

Identity is by tag (`sirius.experiment`, `sirius.method`, `sirius.seed`), so that an experiment that goes on does so in
its own runs. No write touches MLflow's active run, which stays the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.observer import Observer, Started
from sirius_dspy.experiment.results import Results, versions
from sirius_dspy.redact import redact

_STATUS = {"finished": "FINISHED", "budget": "FINISHED", "failed": "FAILED"}
_MAX_VALUE = 6000
"""Characters of a parameter that MLflow keeps."""


class MLflowRuns(Observer):
    """Writes cells as runs: parameters, accuracy, unparsed answers, calls, tokens, seconds, validation scores.

    Args:
        experiment: Name of the MLflow experiment, made if it is not there.
        tracking_uri: Where MLflow keeps runs; `None` is what MLflow is set to.

    Attributes:
        run_id: Of the parent run; `None` before there is one.
    """

    def __init__(self, experiment: str = "sirius_dspy experiments", tracking_uri: str | None = None) -> None:
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.run_id: str | None = None
        self._client: Any = None
        self._experiment_id = ""

    def on_started(self, event: Started) -> None:
        """Open the parent run, or go on with it, and write what earlier lives have finished.

        Raises:
            MissingDependencyError: mlflow is not installed.
        """
        self._client = _client(self.tracking_uri)
        self._experiment_id = _experiment_id(self._client, self.experiment)
        self.run_id = self._open({"sirius.experiment": event.id, "sirius.folder": str(event.folder)}, event.name, None)
        self._params(self.run_id, {**event.settings, **{f"version.{k}": v for k, v in versions().items()}})
        for cell in event.known:
            self.on_cell_ended(cell)

    def on_cell_started(self, method: str, seed: int) -> None:
        """Open the cell's run."""
        self._cell_run(method, seed)

    def on_cell_ended(self, cell: Cell) -> None:
        """Write the cell's numbers and close its run, unless that was done before."""
        run = self._cell_run(cell.method, cell.seed)
        if run is None:
            return
        for name, value in _metrics(cell).items():
            self._client.log_metric(run, name, value)
        for iteration, score in enumerate(cell.details.get("validation", ())):
            self._client.log_metric(run, "val/score", score, step=iteration)
        if cell.error:
            self._client.set_tag(run, "sirius.error", redact(cell.error)[:_MAX_VALUE])
        self._client.set_tag(run, "sirius.status", cell.status)
        self._client.set_terminated(run, status=_STATUS[cell.status])

    def on_ended(self, results: Results, files: Sequence[Path]) -> None:
        """Write the headline numbers and the tables, and close the parent run."""
        for row in results.rows:
            if row.accuracy is not None:
                self._client.log_metric(self.run_id, f"accuracy/{_key(row.method)}", row.accuracy.value)
        if results.majority is not None:
            self._client.log_metric(self.run_id, "accuracy/majority", results.majority)
        for path in files:
            self._client.log_artifact(self.run_id, str(path))
        self._client.set_terminated(self.run_id, status="FAILED" if results.failed else "FINISHED")

    def on_stopped(self, error: BaseException) -> None:
        """Close the parent run as killed or failed."""
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self._client.set_terminated(self.run_id, status=status)

    def _cell_run(self, method: str, seed: int) -> str | None:
        """The cell's run; `None` if an earlier life has finished it."""
        tags = {"sirius.method": method, "sirius.seed": str(seed)}
        found = self._find({**tags, "mlflow.parentRunId": str(self.run_id)})
        if found is not None and found.info.status == "FINISHED":
            return None
        run = self._open(tags, f"{method}, seed {seed}", self.run_id)
        self._params(run, {"method": method, "seed": seed})
        return run

    def _open(self, tags: Mapping[str, str], name: str, parent: str | None) -> str:
        """The run with these tags, made or opened again."""
        all_tags = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        found = self._find(all_tags)
        if found is None:
            return str(self._client.create_run(self._experiment_id, tags=all_tags, run_name=name).info.run_id)
        self._client.update_run(found.info.run_id, status="RUNNING")
        return str(found.info.run_id)

    def _find(self, tags: Mapping[str, str]) -> Any | None:
        conditions = [f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items()]
        found = self._client.search_runs([self._experiment_id], " and ".join(conditions), max_results=1)
        return found[0] if found else None

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        """Write parameters; one that is there keeps its value, since MLflow refuses another."""
        there = self._client.get_run(run).data.params
        for name, value in params.items():
            if _key(name) not in there:
                self._client.log_param(run, _key(name), redact(str(value))[:_MAX_VALUE])


def _metrics(cell: Cell) -> dict[str, float]:
    counts = {
        f"{stage}/{name}": float(value)
        for stage in ("trained", "tested")
        for name, value in asdict(getattr(cell, stage)).items()
    }
    if not cell.outcomes:
        return counts
    shares = {"accuracy": cell.accuracy, "unparsed": float(cell.num_unparsed), "items": float(len(cell.outcomes))}
    return {**shares, **{_key(name): value for name, value in cell.measures.items()}, **counts}


def _client(tracking_uri: str | None) -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise MissingDependencyError("Tracking with MLflow needs mlflow. Run `pip install mlflow`.") from error
    return mlflow.MlflowClient(tracking_uri=tracking_uri)


def _experiment_id(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return "".join(character if character.isalnum() or character in "_.-/ " else "_" for character in name)


def _quoted(value: str) -> str:
    """A string literal of MLflow's filter language, which knows no escapes but two kinds of quotes."""
    return f'"{value}"' if "'" in value else f"'{value}'"
