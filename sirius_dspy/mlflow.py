"""A compile as MLflow runs: compile > iteration-N > finetune-AGENT.

What one compares is on the root run, as curves over the iterations. Every write names its run and none touches MLflow's
active run, which stays the caller's. Identity is by tag, so that a resumed compile goes on in its own runs:
`sirius.run`, `sirius.level`, `sirius.iteration`, `sirius.agent`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sqlalchemy import make_url

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.redact import is_secret_name, redact
from sirius_dspy.report import write_report
from sirius_dspy.track import (
    CompileEnded,
    CompileStarted,
    Curated,
    Evaluated,
    IterationEnded,
    StageStarted,
    Tracker,
    Trained,
    TrainingProgress,
)
from sirius_dspy.trajectory import digest

logger = logging.getLogger(__name__)

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_SCORE = "val/score"
_MAX_VALUE = 6000
"""Characters of a parameter value that MLflow keeps; it warns about longer ones."""

Point = tuple[int, float, int]
"""Step, value, and milliseconds since 1970."""


class MLflowTracker(Tracker):
    """Write a compile to MLflow: parameters, curves, datasets, agent versions, training sets, library and report.

    A store that cannot be reached never stops a compile: the first error is logged, and the rest of the compile goes
    unrecorded. If the caller has an active run in the same store, the compile becomes its child.

    Args:
        experiment: Name of the experiment, made if it is not there; `None` is the one selected with
            `mlflow.set_experiment`. With an active run, its experiment is used, since MLflow shows children only there.
        run_name: Name of the root run; by default `compile-` and the start of the compile's id.
        tracking_uri: Where MLflow keeps runs; `None` is what MLflow is set to, by default `mlflow.db` in the working
            directory.
        log_library: Whether the experience library becomes an artifact, where it is a SQLite file.

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
    ) -> None:
        self.experiment = experiment
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.log_library = log_library
        self._recorder: _Recorder | None = None
        self._last: _Recorder | None = None
        self._patience = _Patience()
        self._progress = _ProgressBuffer()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the root run of the latest compile; `None` if none was recorded."""
        return self._last.root if self._last else None

    @property
    def how_to_open(self) -> str | None:
        """The address of the latest root run, or the command that shows its store; `None` if none was recorded."""
        return self._last.how_to_open if self._last else None

    def on_compile_started(self, event: CompileStarted) -> None:
        """Open the root run.

        Raises:
            MissingDependencyError: mlflow is not installed.
        """
        _check_installed()
        self._recorder = self._last = None
        self._progress.take_all()
        try:
            self._patience.shorten(5)
            self._recorder = self._last = self._open(event)
            self._patience.shorten(10)
        except Exception as error:
            self._give_up(error)

    def on_stage_started(self, event: StageStarted) -> None:
        """Open the run of an iteration with its first stage."""
        self._write(lambda recorder: recorder.stage_started(event))

    def on_curated(self, event: Curated) -> None:
        """Keep the training set as an artifact of the root run."""
        self._write(lambda recorder: recorder.curated(event))

    def on_training_progress(self, event: TrainingProgress) -> None:
        """Keep the loss until the thread that runs `compile` can write it."""
        self._progress.add(event)

    def on_trained(self, event: Trained) -> None:
        """Write the fine-tune: its run, its loss curve, its rows and the agent's new version."""
        points = self._progress.take(event.iteration, event.agent)
        self._write(lambda recorder: recorder.trained(event, points))

    def on_evaluated(self, event: Evaluated) -> None:
        """Start the score curve with the student's, and write what the promotion gate saw."""
        self._write(lambda recorder: recorder.evaluated(event))

    def on_iteration_ended(self, event: IterationEnded) -> None:
        """Write the headline metrics and the program's new version, and close the iteration."""
        self._write(lambda recorder: recorder.iteration_ended(event))

    def on_compile_ended(self, event: CompileEnded) -> None:
        """Write what is left, upload library and report, and close the root run."""
        unfinished = self._progress.take_all()
        self._write(lambda recorder: recorder.compile_ended(event, unfinished))
        self._recorder = None
        self._patience.restore()

    def _open(self, event: CompileStarted) -> _Recorder:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        same_store = self.tracking_uri in (None, mlflow.get_tracking_uri())
        active = mlflow.active_run() if same_store else None
        experiment_id = active.info.experiment_id if active else _experiment_id(client, self.experiment)
        recorder = _Recorder(_Store(client, experiment_id), event, log_library=self.log_library)
        recorder.start(self.run_name, active.info.run_id if active else None)
        return recorder

    def _write(self, write: Callable[[_Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            write(self._recorder)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._recorder = None
        self._patience.restore()
        password = urlsplit(self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")).password
        logger.warning(
            "The compile goes on, but MLflow no longer records it: %s: %s. Check `tracking_uri` and that the server "
            'runs. To silence this, call `logging.getLogger("%s").setLevel("ERROR")`.',
            type(error).__name__,
            redact(str(error), password),
            __name__,
        )


class _ProgressBuffer:
    """Losses on their way from the threads of fine-tuning jobs to the thread that writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects `_points`: jobs add while the compile thread takes
        self._points: dict[tuple[int, str], dict[int, Point]] = {}

    def add(self, event: TrainingProgress) -> None:
        point = (event.step, float(event.loss), _now())
        with self._lock:  # by step: a job that is retried replaces what its first try reported
            self._points.setdefault((event.iteration, event.agent), {})[event.step] = point

    def take(self, iteration: int, agent: str) -> list[Point]:
        with self._lock:
            return list(self._points.pop((iteration, agent), {}).values())

    def take_all(self) -> dict[tuple[int, str], list[Point]]:
        with self._lock:
            points, self._points = self._points, {}
        return {job: list(steps.values()) for job, steps in points.items()}


class _Patience:
    """Short waits for a remote server: by default MLflow retries for minutes, which would hold up the compile.

    MLflow reads these settings from the environment only. What the user has set is left alone.
    """

    def __init__(self) -> None:
        self._ours: set[str] = set()

    def shorten(self, timeout_s: int) -> None:
        wanted = {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the program
        }
        for name, value in wanted.items():
            if name in self._ours or name not in os.environ:
                os.environ[name] = value
                self._ours.add(name)

    def restore(self) -> None:
        for name in self._ours:
            os.environ.pop(name, None)
        self._ours.clear()


class _Recorder:
    """Turns the events of one compile into its tree of runs.

    One child is open at a time: an iteration, and inside it one fine-tune that is written as a whole when its job has
    ended. Children that an earlier life of a resumed compile finished are complete and left as they are.
    """

    def __init__(self, store: _Store, event: CompileStarted, *, log_library: bool) -> None:
        self.root = ""
        self._store = store
        self._compile = event
        self._log_library = log_library
        self._iterations: dict[int, str | None] = {}
        self._open_iteration: str | None = None
        self._scores: dict[int, float] = {}
        self._curated: dict[tuple[int, str], Curated] = {}
        self._agents: dict[int, list[tuple[str, str]]] = {}

    @property
    def how_to_open(self) -> str:
        uri = self._store.client.tracking_uri
        if uri.startswith(("http://", "https://")):
            return redact(f"{uri.rstrip('/')}/#/experiments/{self._store.experiment_id}/runs/{self.root}")
        return redact(f"mlflow ui --backend-store-uri {shlex.quote(uri)}")

    def start(self, run_name: str | None, parent: str | None) -> None:
        event = self._compile
        earlier = self._store.find(self._tags("compile")) if event.resumed else None
        self.root = (
            self._store.reopen(earlier)
            if earlier
            else self._store.start(run_name or f"compile-{event.run[:8]}", self._start_tags(), parent)
        )
        self._store.params(self.root, self._params())
        self._store.datasets(self.root, "train", event.trainset)
        self._store.datasets(self.root, "val", event.valset)

    def stage_started(self, event: StageStarted) -> None:
        self._iteration(event.iteration)

    def curated(self, event: Curated) -> None:
        self._curated[event.iteration, event.agent] = event
        if self._iteration(event.iteration):
            folder = f"training_sets/iteration-{event.iteration}"
            self._store.upload(self.root, event.path, folder, f"{_slug(event.agent)}.jsonl")

    def trained(self, event: Trained, points: Sequence[Point]) -> None:
        losses = points if len(points) >= len(event.losses) else [(i, x, _now()) for i, x in enumerate(event.losses, 1)]
        started_at = _now() - round(1000 * event.seconds)
        run = self._finetune(event.iteration, event.agent, started_at)
        if run is None:
            return
        about = {"agent": event.agent, "base": event.base, "lm": event.lm, "iteration": event.iteration}
        self._store.params(run, {**about, "rows": event.num_rows})
        self._store.curve(run, "train/loss", losses)
        self._store.metrics(run, {"train/rows": event.num_rows, "train/seconds": event.seconds}, event.iteration)
        curated = self._curated.get((event.iteration, event.agent))
        if curated:
            self._link_rows(run, curated)
        model = self._store.model(
            run,
            f"agent-{_slug(event.agent)}",
            "sirius-agent",
            params={**about, "rows": event.num_rows},
            tags={**self._tags("agent", iteration=event.iteration, agent=event.agent), **_location(event.weights)},
            step=event.iteration,
        )
        self._agents.setdefault(event.iteration, []).append((run, model))
        self._store.end(run, "FINISHED")

    def evaluated(self, event: Evaluated) -> None:
        if event.label != "program":
            if run := self._iteration(event.iteration):
                self._store.metrics(run, {f"gate/{event.label}": event.score}, event.iteration)
            return
        self._scores[event.iteration] = event.score
        if event.iteration == 0:  # later ones wait for promotion, which may score the program more than once
            self._store.metrics(self.root, {_SCORE: event.score}, 0)

    def iteration_ended(self, event: IterationEnded) -> None:
        number = event.iteration
        score = {_SCORE: self._scores[number]} if number in self._scores else {}
        headline = {**score, **event.metrics}
        self._store.metrics(self.root, headline, number)
        run = self._iteration(number)
        if run is None:
            return
        lms = {f"lm.{agent}": lm for agent, lm in event.lms.items()}
        tags = self._tags("program", iteration=number)
        program = self._store.model(
            run, "program", "sirius-program", params={"iteration": number, **lms}, tags=tags, step=number
        )
        self._store.metrics(run, headline, number, model=program)
        if _SCORE in headline:
            for finetune, model in self._agents.get(number, []):
                self._store.metrics(finetune, {_SCORE: headline[_SCORE]}, number, model=model)
        self._close_iteration("FINISHED")
        self._iterations[number] = None

    def compile_ended(self, event: CompileEnded, unfinished: Mapping[tuple[int, str], Sequence[Point]]) -> None:
        status = _STATUS.get(event.status, "FAILED")
        try:
            for (iteration, agent), points in unfinished.items():
                if run := self._finetune(iteration, agent, points[0][2]):
                    self._store.curve(run, "train/loss", points)
                    self._store.end(run, status)
            self._close_iteration(status)
            self._store.metrics(self.root, event.metrics, event.best_iteration or 0)
            ending = {"sirius.best_iteration": event.best_iteration, "sirius.error": event.error or None}
            self._store.tags(self.root, {key: value for key, value in ending.items() if value is not None})
            self._upload_results(event)
        finally:  # a full disk must not leave the run open for ever
            self._store.end(self.root, status)

    def _iteration(self, number: int) -> str | None:
        """The open run of this iteration, made at need; `None` for 0, which is the root's, and for one that ended."""
        if number == 0:
            return None
        if number not in self._iterations:
            self._close_iteration("FINISHED")
            tags = self._tags("iteration", iteration=number)
            run, finished = self._child(f"iteration-{number}", tags, self.root)
            self._iterations[number] = None if finished else run
            self._open_iteration = None if finished else run
        return self._iterations[number]

    def _finetune(self, iteration: int, agent: str, started_at: int) -> str | None:
        """The open run of a fine-tune; `None` for one that an earlier life has finished."""
        parent = self._iteration(iteration)
        if parent is None:
            return None
        tags = self._tags("finetune", iteration=iteration, agent=agent)
        run, finished = self._child(f"finetune-{agent}", tags, parent, started_at)
        if not finished:
            return run
        models = self._store.models_of(run)
        self._agents.setdefault(iteration, []).extend((run, model) for model in models)
        return None

    def _child(
        self, name: str, tags: Mapping[str, str], parent: str, started_at: int | None = None
    ) -> tuple[str, bool]:
        """The run with these tags, made or opened again, and whether an earlier life has finished it."""
        earlier = self._store.find(tags) if self._compile.resumed else None
        if earlier is None:
            return self._store.start(name, tags, parent, started_at), False
        if earlier.info.status == "FINISHED":
            return earlier.info.run_id, True
        return self._store.reopen(earlier), False

    def _close_iteration(self, status: str) -> None:
        if self._open_iteration:
            self._store.end(self._open_iteration, status)
            self._open_iteration = None

    def _link_rows(self, run: str, curated: Curated) -> None:
        dropped = {f"curate/dropped/{_slug(reason)}": count for reason, count in curated.dropped.items()}
        self._store.metrics(run, dropped, curated.iteration)
        with curated.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        source = json.dumps({"uri": str(curated.path)})
        profile = json.dumps({"num_rows": curated.num_rows})
        self._store.dataset(run, curated.agent, content, "finetune", "local", source, profile=profile)

    def _upload_results(self, event: CompileEnded) -> None:
        with tempfile.TemporaryDirectory(prefix="sirius-mlflow-") as name:
            folder = Path(name)
            library = _sqlite_file(self._compile.library_url) if self._log_library else None
            if library:
                _snapshot(library, folder / "library.db")
                self._store.upload(self.root, folder / "library.db", "library")
            if event.results:
                for path in write_report(_redacted(event.results), folder / "report"):
                    self._store.upload(self.root, path, "report")

    def _tags(self, level: str, *, iteration: int | None = None, agent: str | None = None) -> dict[str, str]:
        tags = {"sirius.run": self._compile.run, "sirius.level": level}
        if iteration is not None:
            tags["sirius.iteration"] = str(iteration)
        if agent is not None:
            tags["sirius.agent"] = agent
        return tags

    def _start_tags(self) -> dict[str, str]:
        event = self._compile
        agents = {agent: list(predictors) for agent, predictors in event.agents.items()}
        return {
            **self._tags("compile"),
            "sirius.run_dir": str(event.run_dir),
            "sirius.library": event.library_url,
            "sirius.agents": json.dumps(agents, ensure_ascii=False),
        }

    def _params(self) -> dict[str, Any]:
        event = self._compile
        return {
            **event.params,
            **{f"agent.{agent}": ", ".join(predictors) for agent, predictors in event.agents.items()},
            **{f"lm.{agent}": lm for agent, lm in event.lms.items()},
            "adapter": event.adapter,
            "num_train": event.num_train,
            "num_val": event.num_val,
            **{f"version.{package}": _version(package) for package in ("dspy", "mlflow", "sirius-dspy")},
        }


class _Store:
    """One experiment. Each write names its run, and what a run already has is not written twice."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self._written: dict[str, set[tuple[str, int]]] = {}
        self._val_dataset: dict[str, str] = {}

    def find(self, tags: Mapping[str, str]) -> Any | None:
        """The latest run with these tags."""
        conditions = [f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items()]
        runs = self.client.search_runs(
            [self.experiment_id], " and ".join(conditions), max_results=1, order_by=["attributes.start_time DESC"]
        )
        return runs[0] if runs else None

    def start(self, name: str, tags: Mapping[str, str], parent: str | None, started_at: int | None = None) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        mine = {**_cleaned(tags), **({"mlflow.parentRunId": parent} if parent else {})}
        # Who started it, from which script and commit: what `mlflow.start_run` records, too.
        all_tags = resolve_tags(mine)
        run = self.client.create_run(self.experiment_id, start_time=started_at, tags=all_tags, run_name=name)
        return str(run.info.run_id)

    def reopen(self, run: Any) -> str:
        run_id = str(run.info.run_id)
        self.client.update_run(run_id, status="RUNNING")
        histories = [self.client.get_metric_history(run_id, key) for key in run.data.metrics]
        self._written[run_id] = {(point.key, point.step) for history in histories for point in history}
        return run_id

    def end(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status=status)

    def params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters; one that is there keeps its value, since MLflow refuses another."""
        from mlflow.entities import Param

        there = self.client.get_run(run_id).data.params
        fresh = [Param(key, value) for key, value in _cleaned(params).items() if key not in there]
        for batch in _batches(fresh, 100):
            self.client.log_batch(run_id, params=batch)

    def tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        for key, value in _cleaned(tags).items():
            self.client.set_tag(run_id, key, value)

    def metrics(self, run_id: str, values: Mapping[str, float], step: int, *, model: str | None = None) -> None:
        now = _now()
        self._log(run_id, [(name, (step, value, now)) for name, value in values.items()], model)

    def curve(self, run_id: str, name: str, points: Iterable[Point]) -> None:
        self._log(run_id, [(name, point) for point in points], None)

    def _log(self, run_id: str, named_points: Iterable[tuple[str, Point]], model: str | None) -> None:
        from mlflow.entities import Metric

        written = self._written.setdefault(run_id, set())
        metrics = []
        for name, (step, value, when) in named_points:
            key = _key(name)
            if (key, step) not in written:
                linked = self._val_dataset if model and key == _SCORE else {}
                metrics.append(Metric(key, float(value), when, step, model_id=model, **linked))
        for batch in _batches(metrics, 1000):
            self.client.log_batch(run_id, metrics=batch)
        written.update((metric.key, metric.step) for metric in metrics)

    def datasets(self, run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Link the examples to a run, by content hash; the examples themselves stay out of MLflow."""
        from mlflow.tracking.context.registry import resolve_tags

        if not rows:
            return
        content = digest(list(rows))
        if name == "val":
            self._val_dataset = {"dataset_name": name, "dataset_digest": content}
        schema = json.dumps({"mlflow_colspec": [_column(key, value) for key, value in rows[0].items()]})
        profile = json.dumps({"num_rows": len(rows)})
        self.dataset(run_id, name, content, name, "code", json.dumps({"tags": resolve_tags()}), schema, profile)

    def dataset(
        self,
        run_id: str,
        name: str,
        content: str,
        context: str,
        source_type: str,
        source: str,
        schema: str | None = None,
        profile: str | None = None,
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, content, source_type, source, schema, profile)
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, [tag])])

    def model(
        self, run_id: str, name: str, kind: str, *, params: Mapping[str, Any], tags: Mapping[str, Any], step: int
    ) -> str:
        """Register a version of an agent or of the program, made by this run; its weights stay where they are."""
        from mlflow.entities import LoggedModelOutput

        all_tags = {**_cleaned(tags), "mlflow.model.isExternal": "true"}
        model = self.client.create_logged_model(
            self.experiment_id, name, source_run_id=run_id, tags=all_tags, params=_cleaned(params), model_type=kind
        )
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return str(model.model_id)

    def models_of(self, run_id: str) -> list[str]:
        outputs = self.client.get_run(run_id).outputs
        return [output.model_id for output in outputs.model_outputs] if outputs else []

    def upload(self, run_id: str, path: Path, folder: str, name: str | None = None) -> None:
        if name is None or name == path.name:
            self.client.log_artifact(run_id, str(path), folder)
            return
        with tempfile.TemporaryDirectory(prefix="sirius-mlflow-") as temporary:
            copied = shutil.copyfile(path, Path(temporary) / name)
            self.client.log_artifact(run_id, str(copied), folder)


def _check_installed() -> None:
    try:
        import mlflow  # noqa: F401  # this is the check
    except ImportError as error:
        raise MissingDependencyError("Tracking with MLflow needs mlflow. Run `pip install mlflow`.") from error


def _experiment_id(client: Any, name: str | None) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.fluent import _get_experiment_id  # no public name says what `set_experiment` selected

    if name is None:
        return str(_get_experiment_id())
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another process made it in between
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def _cleaned(values: Mapping[str, Any]) -> dict[str, str]:
    """Text values under keys that MLflow takes, without anything that looks like a credential."""
    return {
        _key(key): redact(str(value))[:_MAX_VALUE]
        for key, value in values.items()
        if not is_secret_name(re.sub(r"[^A-Za-z0-9]+", "_", key))
    }


def _redacted(value: Any) -> Any:
    """The same JSON without anything that looks like a credential."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key): _redacted(item) for key, item in value.items() if not is_secret_name(key)}
    return [_redacted(item) for item in value] if isinstance(value, list | tuple) else value


def _key(name: str) -> str:
    """A metric, parameter or tag key: MLflow refuses brackets and quotes."""
    return re.sub(r"[^\w.:/ -]+", "_", name)[:250]


def _slug(name: str) -> str:
    """A name for LoggedModels and files: MLflow refuses dots, slashes, colons, per cent signs and quotes there."""
    return re.sub(r"[^\w-]+", "_", name)[:200]


def _quoted(value: str) -> str:
    """A string literal of MLflow's filter language, which knows no escapes but two kinds of quotes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _column(name: str, value: Any) -> dict[str, Any]:
    kinds = {str: "string", bool: "boolean", int: "long", float: "double"}
    return {"name": name, "type": kinds.get(type(value), "any"), "required": True}


def _location(weights: Path | None) -> dict[str, str]:
    return {"sirius.weights": str(weights)} if weights else {}


def _sqlite_file(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    path = Path(parsed.database)
    return path if path.is_file() else None


def _snapshot(library: Path, target: Path) -> None:
    """Copy through SQLite itself: the newest rows may still be in the write-ahead log beside the file."""
    address = f"file:{quote(str(library.resolve()))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"  # e.g. run from a source tree


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _now() -> int:
    return time.time_ns() // 1_000_000
