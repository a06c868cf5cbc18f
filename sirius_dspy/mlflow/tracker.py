"""The tracker that writes a compile to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from typing_extensions import override

from sirius_dspy.mlflow.curves import Curves, Point, now_ms
from sirius_dspy.mlflow.mlflow_internals import active_experiment_id
from sirius_dspy.mlflow.outbox import Outbox
from sirius_dspy.mlflow.patience import SHORT_WAITS
from sirius_dspy.mlflow.recorder import STATUS, Recorder
from sirius_dspy.mlflow.sample import RepairStory, Sample
from sirius_dspy.mlflow.store import Connection, current_store
from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Curated,
    Evaluated,
    IterationEnded,
    Repaired,
    RolledOut,
    StageStarted,
    Tracker,
    Trained,
    TrainingProgress,
)
from sirius_dspy.trajectory import Trajectory

_OPENING_S = 5.0
"""Seconds that a compile waits for its root run, so that `run_id` is known from the start."""


class MLflowTracker(Tracker):
    """Write a compile to MLflow: parameters, curves, datasets, agent versions, traces, library and report.

    A separate thread writes, so a failing server neither stops nor delays a compile. Failed writes are kept and
    repeated after each iteration and at the end, which waits for them. If the caller has an active run in the same
    store, the compile becomes its child.

    Args:
        experiment: Name of the experiment, which is created if necessary; `None` is the one selected with
            `mlflow.set_experiment`. With an active run, its experiment is used, since MLflow shows children only there.
        run_name: Name of the root run; by default the program with the start of the compile's id, and in the end with
            its score, as "Team: 0 % to 54 % (validation)".
        tracking_uri: Where MLflow keeps runs; `None` is what MLflow is set to, by default `mlflow.db` in the working
            directory.
        log_library: Whether the experience library becomes an artifact, where it is a SQLite file of a moderate size.
        traces: Rollouts and repairs of an iteration to show as traces, failed ones first. A trace has all texts of its
            run; 0 for none.

    Examples:
        >>> from sirius_dspy.mlflow import MLflowTracker
        >>> tracker = MLflowTracker(experiment="my agents")  # SiriuS(metric, tracker=tracker)
    """

    def __init__(
        self,
        *,
        experiment: str | None = "sirius_dspy",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        log_library: bool = True,
        traces: int = 10,
    ) -> None:
        self.experiment = experiment
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.log_library = log_library
        self.traces = traces
        self._recorder: Recorder | None = None
        self._outbox: Outbox | None = None
        self._is_open = False
        self._curves = Curves()
        self._sample = Sample(traces)
        self._seen: set[int] = set()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the root run of the latest compile; `None` if none was recorded."""
        return (self._recorder.root or None) if self._recorder else None

    @property
    def how_to_open(self) -> str | None:
        """The address of the latest root run, or the command that shows its store; `None` if none was recorded."""
        return self._recorder.how_to_open if self._recorder and self._recorder.root else None

    @property
    def not_logged(self) -> Mapping[str, int]:
        """Kind of write to the number of failed writes of the latest compile; empty if all succeeded."""
        return self._outbox.not_written if self._outbox else {}

    @override
    def on_compile_started(self, event: CompileStarted) -> None:
        """Open the root run."""
        store = self.tracking_uri or current_store()
        parent, place = self._place(store)
        self._reset()
        SHORT_WAITS.shorten()
        self._is_open = True
        connection = Connection(store, self.experiment, place)
        self._recorder = Recorder(
            event,
            connection,
            run_name=self.run_name,
            parent=parent,
            log_library=self.log_library,
        )
        self._outbox = Outbox(connection.is_up, secret=connection.password)
        self._send("start of the compile", lambda recorder, when: recorder.start(when), is_essential=True)
        self._outbox.wait(_OPENING_S)

    @override
    def on_stage_started(self, event: StageStarted) -> None:
        """Open the run of an iteration with its first stage, and write traces while its agents are trained."""
        if event.iteration not in self._seen:
            self._seen.add(event.iteration)
            number = event.iteration
            self._send("start of an iteration", lambda recorder, when: recorder.iteration_started(number, when))
        if event.stage == "curate":  # all runs of the iteration are there
            self._send_traces(event.iteration)

    @override
    def on_rolled_out(self, event: RolledOut) -> None:
        """Keep the run for a trace if it belongs to the sample."""
        self._sample.add_rollout(event)

    @override
    def on_repaired(self, event: Repaired) -> None:
        """Keep the repair for a trace if it belongs to the sample."""
        self._sample.add_repair(event)

    @override
    def on_curated(self, event: Curated) -> None:
        """Keep the training set as an artifact of the root run."""
        self._send("training set", lambda recorder, when: recorder.write_training_set(event, when))

    @override
    def on_training_progress(self, event: TrainingProgress) -> None:
        """Keep the loss until the fine-tune is written."""
        self._curves.add(event)

    @override
    def on_trained(self, event: Trained) -> None:
        """Write the fine-tune: its run, its loss curve, its rows and the agent's new version."""
        points = self._curves.take(event.iteration, event.agent)
        self._send("fine-tune", lambda recorder, when: recorder.write_fine_tune(event, points, when))

    @override
    def on_evaluated(self, event: Evaluated) -> None:
        """Start the score curve with the student's, and write what the gate saw."""
        self._send("score", lambda recorder, when: recorder.write_score(event, when))

    @override
    def on_iteration_ended(self, event: IterationEnded) -> None:
        """Write the headline metrics, the cost and the program's new version, and close the iteration."""
        self._send("iteration", lambda recorder, when: recorder.iteration_ended(event, when))
        if self._outbox is not None:
            self._outbox.try_again()

    @override
    def on_compile_ended(self, event: CompileEnded) -> None:
        """Write what is left, upload library and report, close the root run, and say what was not written."""
        if not self._is_open or self._outbox is None:
            return
        status = STATUS.get(event.status, "FAILED")
        self._send_traces(max(self._seen, default=0))
        for (iteration, agent), points in self._curves.take_all().items():
            self._send_unfinished(iteration, agent, points, status)
        self._send("library and report", lambda recorder, when: recorder.upload_results(event, when))
        self._send("end of the compile", lambda recorder, when: recorder.end(event, when))
        self._is_open = False
        try:
            self._outbox.close()
        finally:
            SHORT_WAITS.restore()

    def _place(self, store: str) -> tuple[str | None, str | None]:
        """The caller's active run in this store, and its experiment, as they are in the caller's thread."""
        import mlflow

        if store != current_store():
            return None, None
        if active := mlflow.active_run():
            return active.info.run_id, active.info.experiment_id
        return None, active_experiment_id() if self.experiment is None else None

    def _reset(self) -> None:
        """Forget the previous compile, even if its end was never reported."""
        if self._is_open:
            self._is_open = False
            SHORT_WAITS.restore()
        self._curves.take_all()
        self._sample = Sample(self.traces)
        self._seen = {0}

    def _send(self, kind: str, write: Callable[[Recorder, int], None], *, is_essential: bool = False) -> None:
        recorder, outbox = self._recorder, self._outbox
        if self._is_open and recorder is not None and outbox is not None:
            when = now_ms()
            outbox.send(kind, lambda: recorder.attempt(lambda: write(recorder, when)), is_essential=is_essential)

    def _send_traces(self, iteration: int) -> None:
        for story in self._sample.take():
            self._send_trace(iteration, story)

    def _send_trace(self, iteration: int, story: RepairStory | Trajectory) -> None:
        self._send("trace", lambda recorder, when: recorder.write_trace(iteration, story, when))

    def _send_unfinished(self, iteration: int, agent: str, points: list[Point], status: str) -> None:
        self._send(
            "fine-tune", lambda recorder, when: recorder.write_unfinished(iteration, agent, points, status, when)
        )
