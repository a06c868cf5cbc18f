"""Whole compiles against a real MLflow server, read back through its client."""

import json
import sqlite3
from contextlib import closing

import dspy
import pytest
from mlflow import MlflowClient

from sirius_dspy import Collect, CriticAugmenter, Patience, ProviderTrainer
from sirius_dspy.mlflow import MLflowTracker, register
from sirius_dspy.testing import ToyLM, chat_reply
from tests import toy
from tests.mlflow_help import SECRET, WARNINGS, artifacts_of, curve

pytest_plugins = ("tests.mlflow_help",)
pytestmark = [WARNINGS, pytest.mark.server]

COMPILES = {
    "full": {"iterations": 2, "collect": Collect(samples=2)},
    "lean": {
        "iterations": 1,
        "collect": Collect(samples=1),
        "augmenter": None,
        "trainer": ProviderTrainer(train_from="current"),
    },
}


@pytest.fixture(scope="module")
def compiles(server, tmp_path_factory):
    """Two compiles with different settings: name to tracker, compiled program and run directory."""
    done = {}
    for name, settings in COMPILES.items():
        folder = tmp_path_factory.mktemp(name)
        tracker = MLflowTracker(experiment="two compiles", run_name=name, tracking_uri=server.uri, traces=6)
        with dspy.context(adapter=toy.ADAPTER):
            optimizer = toy.optimizer(folder, tracker=tracker, **settings)
            program = optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4)))
        assert tracker.not_logged == {}
        done[name] = tracker, program, folder
    return done


@pytest.fixture(scope="module")
def client(server):
    return MlflowClient(tracking_uri=server.uri)


@pytest.fixture(scope="module")
def experiment(client, compiles):
    return client.get_experiment_by_name("two compiles").experiment_id


@pytest.fixture(scope="module")
def full(client, compiles):
    return client.get_run(compiles["full"][0].run_id)


def runs_below(client, experiment, root):
    """Path of names below a root run, to the run."""
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    paths = {}
    for run in runs.values():
        names, parent = [run.info.run_name], run.data.tags.get("mlflow.parentRunId")
        while parent and parent != root:
            names.append(runs[parent].info.run_name)
            parent = runs[parent].data.tags.get("mlflow.parentRunId")
        if parent == root:
            paths["/".join(reversed(names))] = run
    return paths


def test_each_compile_is_a_tree_of_finished_runs(client, experiment, compiles):
    tracker = compiles["full"][0]
    found = runs_below(client, experiment, tracker.run_id)
    assert set(found) == {
        f"iteration-{number}{rest}"
        for number in (1, 2)
        for rest in ("", "/finetune-doubler", "/finetune-writer.predict")
    }
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert set(runs_below(client, experiment, compiles["lean"][0].run_id)) == {
        "iteration-1",
        "iteration-1/finetune-doubler",
        "iteration-1/finetune-writer.predict",
    }


def test_settings_are_parameters_that_filter(client, experiment, compiles, full):
    found = client.search_runs([experiment], "params.samples = '1' and tags.`sirius.level` = 'compile'")
    assert [run.info.run_name for run in found] == ["lean"]
    assert (full.data.params["train_from"], full.data.params["lm.doubler"]) == ("base", "toy/base")
    assert full.data.params["num_train"] == "8"
    assert full.data.tags["sirius.best_iteration"] == "1"


def test_headline_metrics_are_on_the_root_by_iteration(client, compiles, full):
    results = compiles["full"][1].detailed_results["iterations"]
    assert [step for step, _ in curve(client, full, "val/score")] == [0, 1, 2]
    names = set(results[1]["metrics"])
    for name in names:
        wanted = [(entry["iteration"], entry["metrics"][name]) for entry in results[1:] if name in entry["metrics"]]
        assert [point for point in curve(client, full, name) if point[0]] == wanted, name
    for wanted in (
        "val/score",
        "collect/success_rate",
        "repair/rate",
        "library/size",
        "rows/doubler",
        "loss/doubler",
        "usage/prompt_tokens",
        "seconds/collect",
        "seconds/train",
    ):
        assert wanted in names
    assert full.data.metrics["best/score"] == compiles["full"][1].detailed_results["best_score"]
    assert full.data.metrics["total/calls"] == compiles["full"][1].detailed_results.usage.calls


def test_versions_of_agents_and_program_have_scores_and_lineage(client, experiment, compiles, full):
    runs = runs_below(client, experiment, full.info.run_id)
    results = compiles["full"][1].detailed_results["iterations"]
    finetune, iteration = runs["iteration-1/finetune-doubler"], runs["iteration-1"]
    [made] = finetune.outputs.model_outputs
    agent = client.get_logged_model(made.model_id)
    assert agent.name == "agent-doubler"
    assert agent.params["base"] == "toy/base"
    assert agent.params["lm"] == results[1]["agents"]["doubler"]["lm"]
    [rows] = finetune.inputs.dataset_inputs
    assert agent.tags["sirius.training_set"] == f"{rows.dataset.name}@{rows.dataset.digest}"
    assert agent.params["rows"] == str(results[1]["agents"]["doubler"]["rows"])
    metrics = {metric.key: (metric.value, metric.dataset_digest) for metric in agent.metrics}
    val = next(item.dataset for item in full.inputs.dataset_inputs if item.dataset.name == "val")
    assert metrics["val/score"] == (results[1]["score"], val.digest)
    assert metrics["train/final_loss"][1] == rows.dataset.digest
    [whole] = iteration.outputs.model_outputs
    program = client.get_logged_model(whole.model_id)
    assert program.tags["sirius.agent_model.doubler"] == agent.model_id
    parts = client.get_run(iteration.info.run_id).inputs.model_inputs  # a search does not give them
    assert {item.model_id for item in parts} == {
        program.tags[f"sirius.agent_model.{name}"] for name in ("doubler", "writer.predict")
    }


def test_an_agent_trained_on_from_an_earlier_version_names_it(server, client, tmp_path):
    tracker = MLflowTracker(experiment="lineage of agents", tracking_uri=server.uri, traces=0)
    with dspy.context(adapter=toy.ADAPTER):
        optimizer = toy.optimizer(tmp_path, tracker=tracker, trainer=ProviderTrainer(train_from="current"), gate=None)
        optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(2)))
    place = client.get_experiment_by_name("lineage of agents").experiment_id
    found = client.search_logged_models([place], filter_string="name = 'agent-doubler'")
    first, second = sorted(found, key=lambda model: model.params["iteration"])
    assert second.params["base"] == first.params["lm"]
    assert second.tags["sirius.base_model"] == first.model_id
    [source] = client.get_run(second.source_run_id).inputs.model_inputs
    assert source.model_id == first.model_id


def test_splits_are_datasets_with_equal_digests_in_both_compiles(client, compiles, full):
    digests = [
        {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
        for run in (full, client.get_run(compiles["lean"][0].run_id))
    ]
    assert set(digests[0]) == {"train", "val"}
    assert digests[0] == digests[1]


def test_traces_belong_to_their_iteration_failed_ones_first(client, experiment, full):
    iteration = runs_below(client, experiment, full.info.run_id)["iteration-1"]
    condition = f"metadata.`mlflow.sourceRun` = '{iteration.info.run_id}'"
    found = client.search_traces(locations=[experiment], filter_string=condition)
    assert len(found) == 6
    rewards = [trace.data.spans[0].get_attribute("sirius.reward") for trace in found]
    origins = [trace.info.tags["sirius.origin"] for trace in found]
    assert origins.count("repair") == 3
    assert [r for r, origin in zip(rewards, origins, strict=True) if origin == "rollout"].count(1.0) >= 1
    assert {span.get_attribute("sirius.agent") for span in found[0].data.spans} >= {"doubler"}


def test_report_library_and_training_sets_are_artifacts(client, full):
    found = artifacts_of(client, full)
    assert {"library/library.db", "report/report.html", "report/report.md"} <= found
    assert "training_sets/iteration-2/writer.predict.jsonl" in found
    assert full.data.tags["mlflow.note.content"].startswith("# SiriuS report")


class Echo(dspy.Module):
    """One agent that says whether a text is good."""

    def __init__(self):
        super().__init__()
        self.judge = dspy.Predict("text -> answer")

    def forward(self, text):
        return self.judge(text=text)


PLAIN, PASSWORD, BASIC = "plain-words-as-a-key", "hunter2-hunter2", "sk-second0123456789abcdefgh"


def skill(prompt):
    if prompt.asks_for("rewritten"):
        return chat_reply(rewritten=prompt.field("text"))
    if prompt.asks_for("feedback"):
        return chat_reply(feedback=f"never mind {SECRET}, nor {PLAIN}")
    text = prompt.field("text") or ""
    if "crash" in text:
        raise RuntimeError(f"401: the key {BASIC} is refused")
    return chat_reply(answer="yes" if "good" in text else f"no, {SECRET}")


CRASHING = Patience(retries=0, max_unfinished=1)
"""For a trainset with one example on which the LM crashes."""


@pytest.mark.filterwarnings("ignore:The runs of 1 examples did not end")  # our own: "crash" always fails
def test_planted_secrets_are_in_nothing_that_was_written(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EXAMPLE_API_KEY", PLAIN)
    texts = ["good 1", "good 2", f"bad {SECRET}", f"bad {PLAIN}", "crash"]
    train = [dspy.Example(text=text, answer="yes", note=SECRET).with_inputs("text") for text in texts]
    program = Echo()
    program.set_lm(ToyLM(skill=skill))
    uri = server.uri.replace("http://", f"http://me:{PASSWORD}@")
    tracker = MLflowTracker(experiment="secrets", run_name=f"with {SECRET}", tracking_uri=uri)
    with dspy.context(adapter=toy.ADAPTER):
        optimizer = toy.optimizer(
            tmp_path / "run",
            tracker=tracker,
            iterations=1,
            augmenter=CriticAugmenter(max_repairs=5),
            patience=CRASHING,
        )
        compiled = optimizer.compile(program, trainset=train, valset=train[:4])
        register(compiled, "secrets", tracking_uri=uri, run_id=tracker.run_id)
    assert tracker.not_logged == {}
    assert PASSWORD not in (tracker.how_to_open or "")
    written = [path for path in server.folder.rglob("*") if path.is_file()]
    assert {"library.db", "report.html", "judge.jsonl", "MLmodel", "mlflow.db"} <= {path.name for path in written}
    for path in written:
        for secret in (SECRET, PLAIN, PASSWORD, BASIC):
            assert secret.encode() not in path.read_bytes(), (secret, path)
    assert PASSWORD not in caplog.text
    library = next(path for path in written if path.name == "library.db" and b"401: the key" in path.read_bytes())
    with closing(sqlite3.connect(library)) as copy:
        inputs = {json.loads(text)["text"] for (text,) in copy.execute("select inputs from examples")}
    assert {"good 1", "bad [redacted]"} <= inputs  # it is the library, and not an empty file
