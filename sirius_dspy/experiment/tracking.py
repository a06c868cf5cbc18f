"""Tracks an experiment in MLflow: one parent run with one child run per method and seed.

Tags identify the runs (`sirius.experiment`, `sirius.method`, `sirius.seed`), so resumed experiments and repeated writes
use the same runs. Writes do not change MLflow's active run, and only the last one is waited for; see
`sirius_dspy.mlflow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.events import CellEnded, CellStarted, ExperimentEnded, ExperimentStarted
from sirius_dspy.experiment.results import Results, versions
from sirius_dspy.mlflow.curves import now_ms
from sirius_dspy.mlflow.outbox import Outbox
from sirius_dspy.mlflow.patience import SHORT_WAITS
from sirius_dspy.mlflow.store import Connection, Store, current_store
from sirius_dspy.tracking.events import Tracker

_STATUS = {"finished": "FINISHED", "budget": "FINISHED", "failed": "FAILED"}
_OPENING_S = 5.0
"""Seconds that an experiment waits for its parent run before it continues without."""


class MLflowRuns(Tracker):
    """Writes cells as runs with parameters, accuracy, unparsed answers, calls, tokens, seconds and validation scores.

    A failing server neither stops nor delays the experiment: failed writes are kept and repeated after each cell and at
    the end.

    Args:
        experiment: Name of the MLflow experiment, which is created if necessary.
        tracking_uri: Address of the MLflow store; `None` takes MLflow's current one.
    """

    def __init__(self, experiment: str = "sirius_dspy experiments", tracking_uri: str | None = None) -> None:
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self._writer: _Writer | None = None
        self._outbox: Outbox | None = None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the parent run; `None` before it exists."""
        return (self._writer.parent or None) if self._writer else None

    @property
    def not_logged(self) -> Mapping[str, int]:
        """Kind of write to the number of failed writes; empty if all succeeded."""
        return self._outbox.not_written if self._outbox else {}

    def on_experiment_started(self, event: ExperimentStarted) -> None:
        """Open or resume the parent run, and write the cells that earlier calls have finished."""
        SHORT_WAITS.shorten()
        connection = Connection(self.tracking_uri or current_store(), self.experiment)
        self._writer = _Writer(event, connection)
        self._outbox = Outbox(connection.is_up, secret=connection.password)
        self._send("start of the experiment", lambda writer, when: writer.start(when), is_essential=True)
        self._outbox.wait(_OPENING_S)
        for cell in event.finished:
            self._send_cell(cell)

    def on_cell_started(self, event: CellStarted) -> None:
        """Open the run of the cell."""
        self._send("start of a cell", lambda writer, when: writer.start_cell(event.method, event.seed, when))

    def on_cell_ended(self, event: CellEnded) -> None:
        """Write the numbers of the cell and close its run, unless that is done already."""
        self._send_cell(event.cell)
        if self._outbox is not None:
            self._outbox.try_again()

    def on_experiment_ended(self, event: ExperimentEnded) -> None:
        """Write the headline numbers and the tables, and close the parent run."""
        for path in event.files:
            self._send_file(path)
        self._send("end of the experiment", lambda writer, when: writer.end(event, when))
        if self._outbox is not None:
            try:
                self._outbox.close()
            finally:
                SHORT_WAITS.restore()

    def _send(self, kind: str, write: Callable[[_Writer, int], None], *, is_essential: bool = False) -> None:
        writer, outbox = self._writer, self._outbox
        if writer is not None and outbox is not None:
            when = now_ms()
            outbox.send(kind, lambda: write(writer, when), is_essential=is_essential)

    def _send_cell(self, cell: Cell) -> None:
        self._send("cell", lambda writer, when: writer.end_cell(cell, when))

    def _send_file(self, path: Path) -> None:
        self._send("file", lambda writer, when: writer.store.upload(writer.parent, path, None))


class _Writer:
    """Writes cells as runs; every method may be repeated after a failure.

    It searches for a run before it creates one, because an earlier attempt may have created it.
    """

    def __init__(self, event: ExperimentStarted, connection: Connection) -> None:
        self.parent = ""
        self._event = event
        self._connection = connection

    @property
    def store(self) -> Store:
        """The store to write to."""
        return self._connection.store

    def start(self, when: int) -> None:
        """Open the parent run."""
        event = self._event
        tags = {"sirius.experiment": event.id, "sirius.folder": str(event.folder)}
        self.parent = self._open(tags, event.name, None, when)
        packages = {f"version.{name}": version for name, version in versions().items()}
        self.store.params(self.parent, {**event.settings, **packages})

    def start_cell(self, method: str, seed: int, when: int) -> None:
        """Open the run of a cell."""
        self._cell_run(method, seed, when)

    def end_cell(self, cell: Cell, when: int) -> None:
        """Write the numbers of a cell and close its run, unless that is done already."""
        run = self._cell_run(cell.method, cell.seed, when)
        if run is None:
            return
        self.store.metrics(run, _metrics(cell), 0, when)
        scores = enumerate(cell.details.get("validation", ()))
        self.store.curve(run, "val/score", [(iteration, score, when) for iteration, score in scores])
        error = {"sirius.error": cell.error} if cell.error else {}
        self.store.tags(run, {"sirius.status": cell.status, **error})
        self.store.end(run, _STATUS[cell.status], when)

    def end(self, event: ExperimentEnded, when: int) -> None:
        """Write the headline numbers and close the parent run."""
        results = event.results
        if results is None:
            self.close("KILLED" if event.status == "interrupted" else "FAILED", when)
            return
        try:
            self.store.metrics(self.parent, _shares(results), 0, when)
        finally:  # a value that MLflow refuses must not leave the run open
            self.close("FAILED" if results.failed else "FINISHED", when)

    def close(self, status: str, when: int) -> None:
        """Close the parent run."""
        self.store.end(self.parent, status, when)

    def _cell_run(self, method: str, seed: int, when: int) -> str | None:
        """Return the run of a cell; `None` if an earlier attempt has finished it."""
        tags = {"sirius.method": method, "sirius.seed": str(seed)}
        earlier = self.store.find({**tags, "mlflow.parentRunId": self.parent})
        if earlier is not None and earlier.info.status == "FINISHED":
            return None
        run = self._open(tags, f"{method}, seed {seed}", self.parent, when)
        self.store.params(run, {"method": method, "seed": seed})
        return run

    def _open(self, tags: Mapping[str, str], name: str, parent: str | None, when: int) -> str:
        """Open or create the run with these tags; a cell that failed before gets new numbers."""
        earlier = self.store.find({**tags, **({"mlflow.parentRunId": parent} if parent else {})})
        if earlier is None:
            return self.store.start(name, tags, parent, when)
        return self.store.reopen(earlier, replaces=True)


def _shares(results: Results) -> dict[str, float]:
    shares = {f"accuracy/{row.method}": row.accuracy.value for row in results.rows if row.accuracy is not None}
    return shares if results.majority is None else {**shares, "accuracy/majority": results.majority}


def _metrics(cell: Cell) -> dict[str, float]:
    counts = {
        f"{stage}/{name}": float(value)
        for stage in ("trained", "tested")
        for name, value in getattr(cell, stage).to_dict().items()
        if value is not None
    }
    if not cell.outcomes:
        return counts
    shares: dict[str, Any] = {
        "accuracy": cell.accuracy,
        "unparsed": float(cell.num_unparsed),
        "items": float(len(cell.outcomes)),
    }
    return {**shares, **cell.measures, **counts}
