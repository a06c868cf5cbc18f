"""One MLflow experiment. Each write names its run, and what a run already has is not written twice.

Nothing here touches MLflow's active run, which stays the caller's. A write that is repeated does no harm: metrics carry
their own time, and runs, models and traces are looked for before they are made wherever an earlier try may have made
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sirius_dspy.mlflow.curves import Point
from sirius_dspy.mlflow.mlflow_internals import resolve_experiment_id, resolve_tags
from sirius_dspy.mlflow.names import clean, key_of, quote
from sirius_dspy.mlflow.patience import SHORT_WAITS
from sirius_dspy.redact import hide_keys, remember_address


@dataclass(frozen=True)
class DataRef:
    """A dataset as metrics name it."""

    name: str
    digest: str


class Store:
    """Writes to one experiment through one client.

    Args:
        client: A `mlflow.MlflowClient`.
        experiment_id: Of an experiment that is there.
    """

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self._written: dict[str, set[tuple[str, int]]] = {}

    def find(self, tags: Mapping[str, str], *, started_at: int | None = None) -> Any | None:
        """The latest run with these tags, and with this start if one is given."""
        conditions = [f"tags.`{key}` = {quote(value)}" for key, value in tags.items()]
        if started_at is not None:
            conditions.append(f"attributes.start_time = {started_at}")
        runs = self.client.search_runs(
            [self.experiment_id], " and ".join(conditions), max_results=1, order_by=["attributes.start_time DESC"]
        )
        return runs[0] if runs else None

    def start(self, name: str, tags: Mapping[str, str], parent: str | None, started_at: int) -> str:
        """Make a run."""
        all_tags = origin({**clean(tags), **({"mlflow.parentRunId": parent} if parent else {})})
        run = self.client.create_run(self.experiment_id, start_time=started_at, tags=all_tags, run_name=hide_keys(name))
        return str(run.info.run_id)

    def reopen(self, run: Any, *, replaces: bool = False) -> str:
        """Go on in a run; points that its curves have are not written again, unless what comes replaces them."""
        run_id = str(run.info.run_id)
        self.client.update_run(run_id, status="RUNNING")
        if replaces:
            return run_id
        histories = [self.client.get_metric_history(run_id, key) for key in run.data.metrics]
        self._written[run_id] = {(point.key, point.step) for history in histories for point in history}
        return run_id

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name."""
        self.client.update_run(run_id, name=hide_keys(name))

    def end(self, run_id: str, status: str, ended_at: int) -> None:
        """Close a run."""
        self.client.set_terminated(run_id, status=status, end_time=ended_at)

    def params(self, run_id: str, params: Mapping[str, Any], *, is_fresh: bool = False) -> None:
        """Log parameters; one that is there keeps its value, since MLflow refuses another.

        Args:
            run_id: Where to.
            params: Key to anything with a text form.
            is_fresh: The run was made just now, so that it need not be asked for what it has.
        """
        from mlflow.entities import Param

        there = {} if is_fresh else self.client.get_run(run_id).data.params
        fresh = [Param(key, value) for key, value in clean(params).items() if key not in there]
        for batch in _batches(fresh, 100):
            self.client.log_batch(run_id, params=batch)

    def tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags, over what was there."""
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, value) for key, value in clean(tags).items()], 100):
            self.client.log_batch(run_id, tags=batch)

    def metrics(
        self,
        run_id: str,
        values: Mapping[str, float],
        step: int,
        when: int,
        *,
        model: str | None = None,
        data: DataRef | None = None,
    ) -> None:
        """Log one value each.

        Args:
            run_id: Where to.
            values: Metric to value.
            step: Of all of them.
            when: Milliseconds since 1970.
            model: Id of the LoggedModel that they describe.
            data: What they were measured on.
        """
        self._log(run_id, [(name, (step, value, when)) for name, value in values.items()], model, data)

    def curve(self, run_id: str, name: str, points: Iterable[Point]) -> None:
        """Log many values of one metric."""
        self._log(run_id, [(name, point) for point in points], None, None)

    def _log(
        self, run_id: str, named_points: Iterable[tuple[str, Point]], model: str | None, data: DataRef | None
    ) -> None:
        from mlflow.entities import Metric

        written = self._written.setdefault(run_id, set())
        source = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        metrics = [
            Metric(key, float(value), when, step, model_id=model, **source)
            for name, (step, value, when) in named_points
            if ((key := key_of(name)), step) not in written
        ]
        for batch in _batches(metrics, 1000):
            self.client.log_batch(run_id, metrics=batch)
        written.update((metric.key, metric.step) for metric in metrics)

    def dataset(
        self,
        run_id: str,
        data: DataRef,
        context: str,
        *,
        num_rows: int,
        source_type: str,
        source: Mapping[str, Any],
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        """Link a dataset to a run as its input, by content hash; the rows themselves are not sent.

        Args:
            run_id: Where to.
            data: Its name and hash.
            context: What it is for: `train`, `val` or `finetune`.
            num_rows: How many rows it has.
            source_type: Of MLflow's kinds: `code` or `local`.
            source: Where it is from, as MLflow writes that for this kind.
            columns: One row, which shows names and types.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        schema = json.dumps({"mlflow_colspec": [_column(*item) for item in columns.items()]}) if columns else None
        profile = json.dumps({"num_rows": num_rows})
        dataset = Dataset(data.name, data.digest, source_type, json.dumps(hide_keys(source)), schema, profile)
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, [tag])])

    def model(
        self,
        run_id: str,
        name: str,
        kind: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        step: int,
        sources: Sequence[str] = (),
    ) -> str:
        """Log a version of an agent or of the program, made by this run; its weights stay where they are.

        Args:
            run_id: The run that made it.
            name: The same for all versions.
            kind: MLflow's type of model.
            params: What it is made of.
            tags: What it is.
            step: The iteration.
            sources: Ids of the LoggedModels that it was made from; they become inputs of the run.
        """
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        all_tags = {**clean(tags), "mlflow.model.isExternal": "true"}
        model = self.client.create_logged_model(
            self.experiment_id, name, source_run_id=run_id, tags=all_tags, params=clean(params), model_type=kind
        )
        self.client.finalize_logged_model(model.model_id, "READY")
        if sources:
            self.client.log_inputs(run_id, models=[LoggedModelInput(source) for source in sources])
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return str(model.model_id)

    def link_model(self, run_id: str, model_id: str, step: int) -> None:
        """Show a LoggedModel among the outputs of another run than the one that made it."""
        from mlflow.entities import LoggedModelOutput

        outputs = self.client.get_run(run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if model_id not in linked:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])

    def find_model(self, run_id: str) -> str | None:
        """The latest LoggedModel that a run made, also if the run does not know it yet."""
        models = self.client.search_logged_models(
            [self.experiment_id], filter_string=f"source_run_id = {quote(run_id)}", max_results=1
        )
        return str(models[0].model_id) if models else None

    def list_trained_models(self, run: str) -> dict[str, str]:
        """Id of the LM to the LoggedModel, of all agent versions that a compile has made."""
        models: dict[str, str] = {}
        token = None
        while True:
            condition = f"tags.`sirius.run` = {quote(run)} and tags.`sirius.level` = 'agent'"
            page = self.client.search_logged_models([self.experiment_id], filter_string=condition, page_token=token)
            for model in page:
                models.setdefault(model.params.get("lm", ""), str(model.model_id))  # the latest come first
            token = page.token
            if not token:
                return models

    def upload(self, run_id: str, path: Path, folder: str | None) -> None:
        """Keep a file as an artifact of a run, in a folder of its artifacts if one is given."""
        with SHORT_WAITS.for_upload(path.stat().st_size):
            self.client.log_artifact(run_id, str(path), folder)


class Connection:
    """A store that is opened at first use, since that may take long or fail.

    Args:
        tracking_uri: Of the store. Said here, since what MLflow is set to may be another by the time of a write.
        experiment: Name of the experiment, made if it is not there; `None` is the one that the caller has selected.
        place: Id of the experiment, if it is known.
    """

    def __init__(self, tracking_uri: str, experiment: str | None, place: str | None = None) -> None:
        remember_address(tracking_uri)
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._place = place
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The store."""
        if self._store is None:
            client = open_client(self._tracking_uri)
            self._store = Store(client, self._place or experiment_id(client, self._experiment))
        return self._store

    @property
    def password(self) -> str | None:
        """What the address holds that no message may show."""
        return urlsplit(self._tracking_uri).password

    def is_up(self) -> bool:
        """Whether the server, or the database, answers a small question."""
        try:
            self.store.client.search_experiments(max_results=1)
        except Exception:  # or it cannot even be opened
            return False
        return True


def origin(tags: Mapping[str, str] | None = None) -> dict[str, str]:
    """The given tags, and who started it from which script, commit and repository, as `mlflow.start_run` has it."""
    resolved = resolve_tags(tags)
    for value in resolved.values():
        remember_address(str(value))  # that of a repository may hold a token
    return hide_keys(resolved)


def current_store() -> str:
    """The address of the store that MLflow is set to at this moment."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def open_client(tracking_uri: str | None) -> Any:
    """A client of MLflow, for what it is set to now if there is no address."""
    import mlflow

    address = tracking_uri or current_store()
    remember_address(address)
    return mlflow.MlflowClient(tracking_uri=address)


def experiment_id(client: Any, name: str | None) -> str:
    """The experiment of this name, made if it is not there; of `None`, the one that the caller has selected.

    What is selected is the experiment of the store that MLflow is set to; in another one its id means nothing, and
    MLflow's default experiment is taken there.
    """
    from mlflow.exceptions import MlflowException

    if name is None and client.tracking_uri == current_store():
        return resolve_experiment_id()
    name = name or "Default"
    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another process made it in between
        if experiment := client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        raise


def _column(name: str, value: Any) -> dict[str, Any]:
    kinds = {str: "string", bool: "boolean", int: "long", float: "double"}
    return {"name": name, "type": kinds.get(type(value), "any"), "required": True}


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
