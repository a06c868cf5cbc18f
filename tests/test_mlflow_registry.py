"""A compiled program in MLflow's model registry: registered, loaded, and served in another process."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import dspy
import mlflow
import pytest
from mlflow import MlflowClient

import sirius_dspy
from sirius_dspy import PlainAdapter
from sirius_dspy.errors import CheckpointError
from sirius_dspy.mlflow import MLflowTracker, load_agent, register
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests import ROOT, toy
from tests.mlflow_help import SECRET, WARNINGS, free_port
from tests.wait import wait_until

pytest_plugins = ("tests.mlflow_help",)
pytestmark = [WARNINGS, pytest.mark.server]

AGENTS = {"doubler", "writer.predict"}
ODD = {"number": 5}
"""What the untrained doubler does not know."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def compiled(run_dir):
    with dspy.context(adapter=toy.ADAPTER):
        optimizer = toy.optimizer(run_dir, iterations=1)
        return optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4)))


@pytest.fixture
def registered(compiled, selected):
    dspy.configure(adapter=toy.ADAPTER)
    return register(compiled, "doubling")


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another machine: no downloaded models, and DSPy as it starts."""
    monkeypatch.setenv("SIRIUS_HOME", str(tmp_path / "home"))
    dspy.configure(adapter=None)


def child_environment(server):
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where uvicorn is
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": programs, "MLFLOW_TRACKING_URI": server.uri}


def test_the_champion_is_loaded_with_the_trained_agents(registered, compiled, elsewhere):
    loaded = sirius_dspy.load("models:/doubling@champion", program=toy.Doubling, configure=True)
    assert loaded(**ODD).answer == "ans:10"
    assert loaded.detailed_results["best_score"] == compiled.detailed_results["best_score"] == 1.0
    assert loaded.doubler.lm.model == compiled.doubler.lm.model != "toy/base"
    assert sirius_dspy.load(registered.uri, program=toy.Doubling, configure=True)(**ODD).answer == "ans:10"
    assert (
        sirius_dspy.load(f"models:/{registered.model_id}", program=toy.Doubling, configure=True)(**ODD).answer
        == "ans:10"
    )


def test_a_database_without_a_server_is_a_registry_too(compiled, store, monkeypatch, elsewhere):
    dspy.configure(adapter=toy.ADAPTER)
    entry = register(compiled, "plain", tracking_uri=store.tracking_uri, experiment="tests")
    assert (entry.version, entry.alias) == (1, "champion")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.tracking_uri)
    try:
        assert sirius_dspy.load("models:/plain@champion", program=toy.Doubling)(**ODD).answer == "ans:10"
    finally:
        mlflow.set_tracking_uri(before)


def test_an_alias_moves_and_a_version_stays(registered, selected, elsewhere):
    dspy.configure(adapter=toy.ADAPTER)
    fresh = toy.student()
    newer = register(fresh, "doubling", agents=False)
    assert newer.version == registered.version + 1
    assert sirius_dspy.load("models:/doubling@champion", program=toy.Doubling).doubler.lm.model == "toy/base"
    assert sirius_dspy.load(registered.uri, program=toy.Doubling).doubler.lm.model != "toy/base"
    silent = register(fresh, "doubling", agents=False, alias=None)
    client = MlflowClient()
    assert int(client.get_model_version_by_alias("doubling", "champion").version) == newer.version
    assert client.get_model_version("doubling", str(silent.version)).aliases == []


def test_agents_are_registered_and_go_into_another_program(registered, compiled, elsewhere):
    assert set(registered.agents) == AGENTS
    entry = registered.agents["writer.predict"]
    assert (entry.name, entry.alias) == ("doubling-writer-predict", "champion")
    lm = load_agent("models:/doubling-doubler@champion")
    assert lm.model == compiled.doubler.lm.model
    mixed = toy.student()
    mixed.doubler.lm = lm
    with dspy.context(adapter=toy.ADAPTER):
        assert mixed(**ODD).answer == "ans:10"
        assert toy.student()(**ODD).answer != "ans:10"
    with pytest.raises(CheckpointError, match=r"holds only the agent 'doubler'.*load_agent"):
        sirius_dspy.load("models:/doubling-doubler@champion")
    with pytest.raises(CheckpointError, match=r"\['doubler', 'writer.predict'\], not 'judge'"):
        load_agent("models:/doubling@champion", "judge")


def test_versions_know_where_they_came_from(compiled, selected, tmp_path):
    tracker = MLflowTracker(experiment="lineage")
    dspy.configure(adapter=toy.ADAPTER)
    optimizer = toy.optimizer(tmp_path / "run", iterations=1, tracker=tracker)
    program = optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4)))
    entry = register(program, "traced", run_id=tracker.run_id, tags={"owner": "us"})
    client = MlflowClient()
    version = client.get_model_version("traced", str(entry.version))
    assert version.run_id == tracker.run_id
    assert (version.tags["sirius.best_score"], version.tags["owner"]) == ("1.0", "us")
    model = client.get_logged_model(entry.model_id)
    assert str(model.status) == "READY"
    assert model.source_run_id == tracker.run_id
    assert model.params["lm.doubler"] == program.doubler.lm.model
    assert model.tags["sirius.agent_model.doubler"] == entry.agents["doubler"].model_id


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "models:/nobody@champion",
            r"'models:/nobody@champion' cannot be loaded .*The registered models are \[.*'doubling'",
        ),
        ("models:/doubling@nobody", r"has the versions \[1.*aliases \{'champion': "),
        ("models:/doubling/999", r"has the versions \[1"),
        ("models:/m-0000", r"cannot be loaded"),
        ("models:/a/b/c", r"'models:/a/b/c' is not the address of a model. Write"),
    ],
)
def test_an_unknown_address_says_what_there_is(uri, message, registered):
    with pytest.raises(CheckpointError, match=message):
        sirius_dspy.load(uri)


def test_a_model_of_somebody_else_is_no_checkpoint(selected, tmp_path):
    (tmp_path / "weights.txt").write_text("1, 2, 3")
    client = MlflowClient()
    model = client.create_logged_model(client.create_experiment("foreign"), "foreign")
    client.log_model_artifacts(model.model_id, str(tmp_path))
    client.create_registered_model("foreign")
    client.create_model_version("foreign", model.artifact_location, model_id=model.model_id)
    with pytest.raises(CheckpointError, match="not a program or agent of sirius_dspy"):
        sirius_dspy.load("models:/foreign/1")


def test_a_download_is_kept_and_an_interrupted_one_leaves_nothing(registered, elsewhere, tmp_path, monkeypatch):
    def broken(**kwargs):
        Path(kwargs["dst_path"], "half").write_text("a model")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", broken)
        with pytest.raises(KeyboardInterrupt):
            sirius_dspy.load("models:/doubling@champion", program=toy.Doubling, configure=True)
    assert list((tmp_path / "home" / "registry").iterdir()) == []
    sirius_dspy.load("models:/doubling@champion", program=toy.Doubling, configure=True)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", broken)
        assert (
            sirius_dspy.load("models:/doubling@champion", program=toy.Doubling, configure=True)(**ODD).answer
            == "ans:10"
        )


def test_a_checkpoint_on_disk_is_registered_without_loading_it(compiled, selected, tmp_path, elsewhere):
    with dspy.context(adapter=toy.ADAPTER):
        folder = sirius_dspy.save(compiled, tmp_path / "mine")
    entry = register(folder, "from disk", alias="staging")
    shutil.rmtree(folder)
    assert sirius_dspy.load("models:/from disk@staging", program=toy.Doubling, configure=True)(**ODD).answer == "ans:10"
    assert entry.alias == "staging"


def test_a_folder_is_served_only_with_code_that_the_user_names(compiled, selected, tmp_path, elsewhere):
    """A checkpoint of a stranger names a class, too."""
    with dspy.context(adapter=toy.ADAPTER):
        folder = sirius_dspy.save(compiled, tmp_path / "mine")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "program": "os:abort"}))
    entry = register(folder, "unserved", agents=False)
    with pytest.raises(CheckpointError, match="build="):
        mlflow.pyfunc.load_model(entry.uri)
    served = register(folder, "served", agents=False, build=toy.Doubling)
    assert mlflow.pyfunc.load_model(served.uri).predict({"number": 5})[0]["answer"] == "ans:10"


class Sized(toy.Doubling):
    """A class that needs an argument."""

    def __init__(self, size):
        super().__init__()
        self.size = size


def sized():
    return Sized(3)


def test_a_program_that_needs_arguments_is_registered_with_what_builds_it(selected, elsewhere):
    program = sized()
    program.set_lm(ScriptedLM({"x": "y"}))
    dspy.configure(adapter=toy.ADAPTER)
    with pytest.raises(CheckpointError, match=r"cannot be built without arguments.*build="):
        register(program, "sized")
    with pytest.raises(CheckpointError, match="cannot be imported"):
        register(program, "sized", build=lambda: sized())
    entry = register(program, "sized", agents=False, build=sized)
    flavor = mlflow.pyfunc.load_model(entry.uri).metadata.flavors["python_function"]
    assert flavor["config"] == {"program": f"{__name__}:sized"}


@pytest.mark.parametrize("identity", ["../../outside", "/outside", "a/b", "..", "x" * 300])
def test_a_registry_cannot_say_where_its_files_go(identity, compiled, selected, elsewhere, tmp_path):
    dspy.configure(adapter=toy.ADAPTER)
    entry = register(compiled, "hostile", agents=False)
    MlflowClient().set_model_version_tag("hostile", str(entry.version), "sirius.model_id", identity)
    with pytest.raises(CheckpointError, match="not one of MLflow's"):
        sirius_dspy.load(entry.uri, program=toy.Doubling)
    assert not (tmp_path / "home").exists()


class Local(toy.Doubling):
    """A class that pretends to be of a script."""


def test_a_program_of_a_script_is_refused_before_anything_is_stored(selected):
    program = Local()
    program.set_lm(ScriptedLM({"x": "y"}))
    Local.__module__ = "__main__"
    with pytest.raises(CheckpointError, match="defined in a script or notebook"):
        register(program, "script")
    assert MlflowClient().search_registered_models("name = 'script'") == []


def test_no_key_is_in_the_files_of_a_model(selected, tmp_path, monkeypatch):
    monkeypatch.setenv("EXAMPLE_API_KEY", "plain-words-as-a-key")
    program = toy.Doubling()
    headers = {"Authorization": "Basic dXNlcjpwYXNz", "X-Api-Key": "hunter2-hunter2", "note": f"Bearer {SECRET}"}
    lm = dspy.LM("openai/gpt-4o-mini", api_key=SECRET, extra_headers=headers, user="plain-words-as-a-key")
    program.set_lm(lm)
    entry = register(program, "secretive")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{entry.model_id}", dst_path=str(tmp_path / "model")))
    parts = [
        Path(mlflow.artifacts.download_artifacts(f"models:/{part.model_id}", dst_path=str(tmp_path / agent)))
        for agent, part in entry.agents.items()
    ]
    files = [path for root in (folder, *parts) for path in root.rglob("*") if path.is_file()]
    assert {"MLmodel", "manifest.json"} <= {path.name for path in files}
    assert not [path.name for path in files if path.suffix in (".pkl", ".pickle")]
    for path in files:
        for secret in (SECRET, "dXNlcjpwYXNz", "hunter2", "plain-words-as-a-key"):
            assert secret.encode() not in path.read_bytes(), path


def test_a_pyfunc_leaves_the_settings_of_its_process_alone(registered, elsewhere):
    dspy.configure(adapter=PlainAdapter())
    served = mlflow.pyfunc.load_model("models:/doubling@champion")
    assert served.predict({"number": 5})[0]["answer"] == "ans:10"
    assert type(dspy.settings.adapter) is PlainAdapter


CHILD = """
import json, sys
import mlflow, pandas
served = mlflow.pyfunc.load_model("models:/doubling@champion")
rows = pandas.DataFrame({"number": [1, 5, 3]})
print(json.dumps([served.predict(rows), served.predict({"number": 7}), served.predict([{"number": 2}])]))
"""


def test_a_fresh_process_answers_with_the_trained_weights(registered, selected, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**child_environment(selected), "SIRIUS_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    table, one, listed = json.loads(child.stdout.splitlines()[-1])
    assert [row["answer"] for row in table] == ["ans:2", "ans:10", "ans:6"]
    assert one == [{"reasoning": "only the format is missing", "answer": "ans:14"}]
    assert listed[0]["answer"] == "ans:4"


def test_mlflow_models_serve_answers_a_request(registered, selected, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/doubling@champion"]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={**child_environment(selected), "SIRIUS_HOME": str(tmp_path)},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: ping(port), 120)
        assert ask(port, {"inputs": {"number": 5}}) == {
            "predictions": [{"reasoning": "only the format is missing", "answer": "ans:10"}]
        }
        rows = ask(port, {"dataframe_records": [{"number": 1}, {"number": 7}]})
        assert [row["answer"] for row in rows["predictions"]] == ["ans:2", "ans:14"]
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def ping(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def ask(port, payload):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


class Typed(dspy.Module):
    """Inputs of all kinds."""

    def __init__(self):
        super().__init__()
        self.say = dspy.Predict("question, count: int, words: list[str] -> answer")

    def forward(self, question: str, count: int, words: list[str], loud: bool = False):
        said = self.say(question=question, count=count, words=words).answer
        return said.upper() if loud else said


def test_a_schema_says_what_the_program_takes(selected, elsewhere):
    program = Typed()
    program.set_lm(ScriptedLM({"hello": chat_reply(answer="yes")}))
    dspy.configure(adapter=toy.ADAPTER)
    entry = register(program, "typed", agents=False)
    served = mlflow.pyfunc.load_model(entry.uri)
    assert [(column.name, str(column.type)) for column in served.metadata.get_input_schema().inputs[:2]] == [
        ("question", "DataType.string"),
        ("count", "DataType.long"),
    ]
    answer = served.predict({"question": "hello?", "count": 2, "words": ["a", "b"], "loud": True})
    assert answer == [{"prediction": "YES"}]
    with pytest.raises(mlflow.MlflowException, match="question"):
        served.predict({"count": 2})
