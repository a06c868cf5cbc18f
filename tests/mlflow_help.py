"""For the tests of MLflow: a store in a temporary folder, a real server, and the events of a compile.

PYTEST_DONT_REWRITE: test modules import this by name, before pytest sees it as the plugin that has their fixtures.
"""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing, suppress

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import pytest
from mlflow import MlflowClient

from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.optimizer.results import AgentResult, UsageResult
from sirius_dspy.testing.results import make_iteration, make_result
from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Curated,
    Evaluated,
    IterationEnded,
    StageStarted,
    Trained,
    TrainingProgress,
)
from tests.wait import wait_until

# MLflow's own, which a store or a compile that is tracked in it sets off:
WARNINGS = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:DeprecationWarning",  # MLflow 3.17 on SQLAlchemy 2.1
    "ignore:.*type hint is inferred as AnyType:UserWarning",  # of its own hints, on import
    # From Python 3.13 on, connections that MLflow's pools leave to the garbage collector:
    "ignore:unclosed database:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

SECRET = "sk-proj-Zq81LmPlantedSecret0042xyz"
ROOT = "Team: 0 % to 50 % (validation)"
"""Name of the root run of a compile that has finished."""
AGENTS = {"analyst": ["analyst.predict"], "solver's [0]": ["solvers[0].predict", "solvers[1].predict"]}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Making MLflow's tables takes a second, so it is done once and copied."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def store(tmp_path, empty_store):
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment("tests", artifact_location=(tmp_path / "artifacts").as_uri())
    return client


@pytest.fixture
def tracker(store):
    return MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)


@pytest.fixture
def active_store(store):
    """The same store, as the one that the caller has selected."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment("tests")
    yield store
    mlflow.set_tracking_uri(before)


@pytest.fixture
def compile_(tmp_path):
    with closing(sqlite3.connect(tmp_path / "library.db")) as library:
        yield Compile(tmp_path, library)


class Compile:
    """Tells a tracker what a compile of two iterations and two agents would, one thread per fine-tuning job."""

    def __init__(self, folder, library):
        self.folder = folder
        library.execute("pragma journal_mode=wal")
        library.execute("create table trajectories (id text)")
        library.execute("insert into trajectories values ('t1')")
        library.commit()  # stays in the write-ahead log while the connection is open

    def started(self, *, resumed=False, **changes):
        values = {
            "run": "0f3a55aa77",
            "program": "Team",
            "run_dir": self.folder,
            "library_url": f"sqlite:///{self.folder / 'library.db'}",
            "params": {"iterations": 2, "samples": 4, "seed": 7, "max_tokens": 512},
            "agents": AGENTS,
            "lms": dict.fromkeys(AGENTS, "local/base"),
            "adapter": "PlainAdapter",
            "num_train": 2,
            "num_val": 1,
            "trainset": [{"question": "1+1?", "answer": 2}, {"question": "2+2?", "answer": 4}],
            "valset": [{"question": "3+3?", "answer": 6}],
            "resumed": resumed,
        }
        return CompileStarted(**{**values, **changes})

    def train(self, tracker, iteration, agent, *, steps=3, finished=True):
        rows = self.folder / f"{iteration}-{len(agent)}.jsonl"
        rows.write_text(json.dumps({"messages": [{"role": "user", "content": agent}]}) + "\n")
        tracker.on_curated(Curated(iteration, agent, 30, {"duplicate": 2}, rows))
        tracker.on_stage_started(StageStarted(iteration, "train", 1))
        job = threading.Thread(target=self.report, args=(tracker, iteration, agent, steps))
        job.start()
        job.join()
        if finished:
            losses = [2.0 / step for step in range(1, steps + 1)]
            tracker.on_trained(Trained(iteration, agent, "local/base", f"{agent}@{iteration}", 30, losses, 1.5, None))

    def report(self, tracker, iteration, agent, steps):
        for step in range(1, steps + 1):
            tracker.on_training_progress(TrainingProgress(iteration, agent, 10 * step, 10 * steps, 2.0 / step))

    def iterate(self, tracker, iteration):
        tracker.on_stage_started(StageStarted(iteration, "collect", 8))
        for agent in AGENTS:
            self.train(tracker, iteration, agent)
        tracker.on_evaluated(Evaluated(iteration, 0.9, 1, "analyst"))
        tracker.on_evaluated(Evaluated(iteration, 0.2 * iteration, 1, "program"))
        metrics = {"collect/success_rate": 0.1 * iteration, "val/score": 0.25 * iteration}
        tracker.on_iteration_ended(IterationEnded(self.iteration(iteration, metrics=metrics)))

    def iteration(self, number, **changes):
        """What an iteration did: it collected for a known price, and repaired for one that nobody knows."""
        values = {
            "num_val": 4,
            "lms": {agent: f"{agent}@{number}" for agent in AGENTS},
            "promoted": dict.fromkeys(AGENTS, True),
            "agents": {"analyst": AgentResult(rows=30, usage=UsageResult(7, 70, 14, 0.5))},
            "stages": {"collect": UsageResult(20, 200, 40, 1.5), "repair": UsageResult(4, 40, 8, None)},
        }
        return make_iteration(number, 0.25 * number, **{**values, **changes})

    def begin(self, tracker, **changes):
        tracker.on_compile_started(self.started(**changes))
        tracker.on_stage_started(StageStarted(0, "evaluate", 1))
        tracker.on_evaluated(Evaluated(0, 0.125, 1, "program"))

    def end(self, tracker, status="finished", **changes):
        values = {"results": self.results(), "error": ""}
        tracker.on_compile_ended(CompileEnded(status, **{**values, **changes}))

    def results(self, **changes):
        values = {
            "program": "Team",
            "iterations": tuple(self.iteration(number) for number in range(3)),
            "usage": UsageResult(48, 480, 96, None),
            "seconds": 90.0,
        }
        return make_result(**{**values, **changes})

    def run(self, tracker, **changes):
        self.begin(tracker, **changes)
        self.iterate(tracker, 1)
        self.iterate(tracker, 2)
        self.end(tracker)


class Server:
    """A real MLflow server: SQLite below, artifacts through it, one worker, a free port of this machine."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self):
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        arguments = [part for item in options.items() for part in item]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments],
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },  # more processes, for what we do not use
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self.answers, 240)  # some seconds on a machine with nothing else to do
        except BaseException:
            self.kill()
            raise

    def answers(self):
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
            return reply.status == 200
        return False

    def signal(self, number):
        """Send a signal to the server and its workers; stop and continue make it hang and go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One for all tests that only read and write."""
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


@pytest.fixture
def own_server(tmp_path, empty_store):
    """One to be killed."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store)
    running = Server(folder)
    yield running
    running.kill()


@pytest.fixture
def selected(server):
    """The server, as the one that the caller has selected."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    yield server
    mlflow.set_tracking_uri(before)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def runs_of(client):
    """Run name to run; a name that occurs twice is an error of the test."""
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in runs]
    parents = {run.info.run_id: run.info.run_name for run in runs}
    keyed = {(parents.get(run.data.tags.get("mlflow.parentRunId")), run.info.run_name): run for run in runs}
    assert len(keyed) == len(names), sorted(names)
    return keyed


def curve(client, run, key):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


def models_of(client, name):
    experiment = client.get_experiment_by_name("tests")
    found = client.search_logged_models([experiment.experiment_id], filter_string=f"name = '{name}'")
    return sorted(found, key=lambda model: model.params["iteration"])


def artifacts_of(client, run, folder=None):
    found = client.list_artifacts(run.info.run_id, folder)
    return {path for item in found for path in (artifacts_of(client, run, item.path) if item.is_dir else {item.path})}
