"""What an MLflowTracker makes of the events of a compile, in a store in a temporary folder."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from sirius_dspy.files import file_name
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.mlflow.names import agent_name
from sirius_dspy.testing.results import make_result
from sirius_dspy.tracking.events import Evaluated, IterationEnded, Trained, TrainingProgress
from tests.mlflow_help import AGENTS, ROOT, SECRET, WARNINGS, artifacts_of, curve, models_of, runs_of
from tests.wait import wait_until

pytest_plugins = ("tests.mlflow_help",)
pytestmark = [WARNINGS, pytest.mark.server]

BRACKETS = "solver's [0]"
COST = {
    "cost/collect/calls": 20,
    "cost/collect/prompt_tokens": 200,
    "cost/collect/completion_tokens": 40,
    "cost/collect/usd": 1.5,
    "cost/repair/calls": 4,
    "cost/repair/prompt_tokens": 40,
    "cost/repair/completion_tokens": 8,
}
"""Of each iteration of the compile."""


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.b", "a-b"), ("a b", "a_b"), ("a/b", "a:b"), ("a.b", agent_name("a b")), ("x" * 300, "x" * 301)],
)
def test_agents_with_similar_names_are_models_of_their_own(first, second):
    assert agent_name(first) != agent_name(second)
    assert agent_name("writer.predict") == "writer-predict"


def test_runs_form_the_tree_of_the_compile_and_end(store, tracker, compile_):
    compile_.run(tracker)
    runs = runs_of(store)
    assert set(runs) == {
        (None, ROOT),
        (ROOT, "iteration-1"),
        (ROOT, "iteration-2"),
        ("iteration-1", "finetune-analyst"),
        ("iteration-1", "finetune-solver's [0]"),
        ("iteration-2", "finetune-analyst"),
        ("iteration-2", "finetune-solver's [0]"),
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert tracker.run_id == runs[None, ROOT].info.run_id


def test_root_has_the_parameters_and_versions(store, tracker, compile_):
    compile_.run(tracker)
    root = store.get_run(tracker.run_id)
    expected = {
        "iterations": "2",
        "seed": "7",
        "max_tokens": "512",
        "adapter": "PlainAdapter",
        "num_train": "2",
        "num_val": "1",
        "agent.analyst": "analyst.predict",
        "lm.analyst": "local/base",
        "version.mlflow": mlflow.__version__,
    }
    assert expected.items() <= root.data.params.items()
    assert "version.dspy" in root.data.params
    assert json.loads(root.data.tags["sirius.agents"]) == AGENTS
    assert root.data.tags["sirius.best_iteration"] == "2"


def test_root_has_the_datasets_by_content(store, tracker, compile_):
    compile_.run(tracker)
    inputs = store.get_run(tracker.run_id).inputs.dataset_inputs
    assert {(item.dataset.name, item.tags[0].value) for item in inputs} == {("train", "train"), ("val", "val")}
    train = next(item.dataset for item in inputs if item.dataset.name == "train")
    assert json.loads(train.profile) == {"num_rows": 2}
    assert [column["type"] for column in json.loads(train.schema)["mlflow_colspec"]] == ["string", "long"]
    assert train.digest != next(item.dataset for item in inputs if item.dataset.name == "val").digest


def test_headline_curves_are_on_the_root_by_iteration_and_start_with_the_student(store, tracker, compile_):
    compile_.run(tracker)
    root = store.get_run(tracker.run_id)
    # The last program score before promotion (0.2, 0.4) is not the iteration's score.
    assert curve(store, root, "val/score") == [(0, 0.125), (1, 0.25), (2, 0.5)]
    assert curve(store, root, "collect/success_rate") == [(1, 0.1), (2, 0.2)]
    assert curve(store, root, "best/score") == [(2, 0.5)]
    iteration = runs_of(store)[ROOT, "iteration-2"]
    assert curve(store, iteration, "val/score") == [(2, 0.5)]
    assert curve(store, iteration, "gate/analyst") == [(2, 0.9)]


def test_score_of_the_program_stands_in_where_the_iteration_gives_none(store, tracker, compile_):
    compile_.begin(tracker)
    tracker.on_evaluated(Evaluated(1, 0.75, 1, "program"))
    tracker.on_iteration_ended(IterationEnded(compile_.iteration(1)))
    compile_.end(tracker)
    assert curve(store, store.get_run(tracker.run_id), "val/score") == [(0, 0.125), (1, 0.75)]


def test_finetune_has_the_losses_of_its_thread_at_their_steps(store, tracker, compile_):
    compile_.run(tracker)
    run = runs_of(store)["iteration-1", "finetune-analyst"]
    assert curve(store, run, "train/loss") == [(10, 2.0), (20, 1.0), (30, pytest.approx(2 / 3))]
    assert curve(store, run, "curate/dropped/duplicate") == [(1, 2.0)]
    assert run.data.params["base"] == "local/base"
    assert run.data.params["lm"] == "analyst@1"
    assert run.info.end_time - run.info.start_time >= 1500
    [rows] = run.inputs.dataset_inputs
    assert (rows.dataset.name, rows.tags[0].value) == ("analyst", "finetune")


def test_losses_of_the_result_are_used_where_the_job_reported_no_progress(store, tracker, compile_):
    compile_.begin(tracker)
    tracker.on_trained(Trained(1, "analyst", "base", "analyst@1", 3, [3.0, 2.0], 0.1, None))
    compile_.end(tracker)
    run = runs_of(store)["iteration-1", "finetune-analyst"]
    assert curve(store, run, "train/loss") == [(1, 3.0), (2, 2.0)]


def test_losses_of_the_result_are_used_where_progress_has_gaps(store, tracker, compile_):
    compile_.begin(tracker)
    tracker.on_training_progress(TrainingProgress(1, "analyst", 3, 3, 1.0))  # a resumed job reports its rest only
    tracker.on_trained(Trained(1, "analyst", "base", "analyst@1", 3, [3.0, 2.0, 1.0], 0.1, None))
    compile_.end(tracker)
    run = runs_of(store)["iteration-1", "finetune-analyst"]
    assert curve(store, run, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_agents_and_programs_are_models_with_their_scores(store, tracker, compile_):
    compile_.run(tracker)
    runs = runs_of(store)
    for name, agent in (("agent-analyst", "analyst"), (f"agent-{agent_name(BRACKETS)}", "solver's [0]")):
        first, second = models_of(store, name)
        assert first.tags["sirius.agent"] == agent
        assert (first.params["base"], first.params["lm"]) == ("local/base", f"{agent}@1")
        assert first.source_run_id == runs["iteration-1", f"finetune-{agent}"].info.run_id
        measured = {(metric.key, round(metric.value, 3), metric.dataset_name) for metric in first.metrics}
        assert measured >= {("train/final_loss", 0.667, agent), ("val/score", 0.25, "val")}
        assert f"Agent {agent} after iteration 1" in first.tags["mlflow.note.content"]
        assert {metric.key: metric.value for metric in second.metrics}["val/score"] == 0.5
        assert str(second.status) == "READY"
    programs = models_of(store, "program")
    scores = [{metric.key: metric.value for metric in program.metrics} for program in programs]
    assert scores == [
        {"val/score": 0.25, "collect/success_rate": 0.1, **COST},
        {"val/score": 0.5, "collect/success_rate": 0.2, **COST},
    ]
    assert "score 0.25 on 4 validation examples" in programs[0].tags["mlflow.note.content"]
    iteration = runs[ROOT, "iteration-1"]
    assert [output.model_id for output in iteration.outputs.model_outputs] == [programs[0].model_id]
    linked = [output.model_id for output in runs[None, ROOT].outputs.model_outputs]
    made = [
        model.model_id
        for name in ("agent-analyst", f"agent-{agent_name(BRACKETS)}")
        for model in models_of(store, name)
    ]
    assert sorted(linked) == sorted([*made, *(program.model_id for program in programs)])


def test_runs_have_the_cost_of_stages_and_agents(store, tracker, compile_):
    compile_.run(tracker)
    runs = runs_of(store)
    root = runs[None, ROOT]
    assert curve(store, root, "cost/collect/usd") == [(1, 1.5), (2, 1.5)]
    assert COST.items() <= runs[ROOT, "iteration-1"].data.metrics.items()
    assert runs["iteration-1", "finetune-analyst"].data.metrics["cost/usd"] == 0.5
    totals = {"total/calls": 48, "total/prompt_tokens": 480, "total/completion_tokens": 96, "total/seconds": 90}
    assert totals.items() <= root.data.metrics.items()
    assert "total/usd" not in root.data.metrics  # unknown is not free
    assert root.data.tags["sirius.usd"] == "unknown"


def test_the_root_says_how_the_compile_ended_and_what_came_out(store, tracker, compile_):
    compile_.begin(tracker)
    compile_.end(tracker, results=compile_.results(ended="budget", reason="100 calls"))
    root = store.get_run(tracker.run_id)
    assert root.info.run_name == ROOT
    expected = {
        "sirius.program": "Team",
        "sirius.score": "0 % to 50 % (validation)",
        "sirius.ended": "budget",
        "sirius.reason": "100 calls",
    }
    assert expected.items() <= root.data.tags.items()
    assert root.data.tags["mlflow.note.content"].startswith("# SiriuS report: Team\n\n0 % to 50 % (validation)")


def test_library_training_sets_and_report_are_artifacts_of_the_root(store, tracker, compile_, tmp_path):
    compile_.run(tracker)
    root = store.get_run(tracker.run_id)
    assert artifacts_of(store, root) == {
        "library/library.db",
        "report/report.html",
        "report/report.md",
        "report/report.json",
        "report/progress.png",
        "training_sets/iteration-1/analyst.jsonl",
        f"training_sets/iteration-1/{file_name(BRACKETS)}.jsonl",
        "training_sets/iteration-2/analyst.jsonl",
        f"training_sets/iteration-2/{file_name(BRACKETS)}.jsonl",
    }
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    library = store.download_artifacts(root.info.run_id, "library/library.db", str(downloads))
    with closing(sqlite3.connect(library)) as copy:
        assert copy.execute("select id from trajectories").fetchall() == [("t1",)]
    rows = store.download_artifacts(root.info.run_id, "training_sets/iteration-1/analyst.jsonl", str(downloads))
    assert "analyst" in Path(rows).read_text()


@pytest.mark.parametrize("url", [None, "postgresql+psycopg://user@host/db", "sqlite:///nowhere/library.db"])
def test_library_is_uploaded_only_if_wanted_and_a_file(store, compile_, url):
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri, log_library=url is not None)
    compile_.begin(tracker, **({"library_url": url} if url else {}))
    compile_.end(tracker)
    root = store.get_run(tracker.run_id)
    assert not any(path.startswith("library") for path in artifacts_of(store, root))
    assert root.info.status == "FINISHED"


@pytest.mark.parametrize(("status", "expected"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_a_compile_that_stops_while_training_closes_every_run(store, tracker, compile_, status, expected):
    compile_.begin(tracker)
    compile_.train(tracker, 1, "analyst")
    compile_.train(tracker, 1, "solver's [0]", finished=False)
    results = make_result([], ended="unfinished")
    compile_.end(tracker, status, results=results, error="TrainingError: out of memory")
    runs = runs_of(store)
    assert {name: run.info.status for (_, name), run in runs.items()} == {
        "Team-0f3a55aa": expected,
        "iteration-1": expected,
        "finetune-analyst": "FINISHED",
        "finetune-solver's [0]": expected,
    }
    unfinished = runs["iteration-1", "finetune-solver's [0]"]
    assert curve(store, unfinished, "train/loss") == [(10, 2.0), (20, 1.0), (30, pytest.approx(2 / 3))]
    assert runs[None, "Team-0f3a55aa"].data.tags["sirius.error"] == "TrainingError: out of memory"


def test_a_resumed_compile_goes_on_in_its_own_runs(store, compile_):
    killed = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)
    compile_.begin(killed)
    compile_.iterate(killed, 1)
    compile_.train(killed, 2, "analyst")  # and then kill -9: no event tells of the end
    wait_until(lambda: not killed.not_logged, 30)
    resumed = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)
    compile_.run(resumed, resumed=True)
    assert resumed.run_id == killed.run_id
    runs = runs_of(store)  # which fails where a run is there twice
    assert len(runs) == 7
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    root = store.get_run(resumed.run_id)
    assert curve(store, root, "val/score") == [(0, 0.125), (1, 0.25), (2, 0.5)]
    assert len(root.inputs.dataset_inputs) == 2
    assert len(curve(store, runs["iteration-2", "finetune-analyst"], "train/loss")) == 3
    for name in ("agent-analyst", f"agent-{agent_name(BRACKETS)}", "program"):
        models = models_of(store, name)
        assert len(models) == 2
        assert "val/score" in {metric.key for metric in models[1].metrics}


def test_a_resumed_compile_with_another_scalar_keeps_the_first_value_and_goes_on(store, tracker, compile_):
    compile_.begin(tracker, params={"num_threads": 8})
    compile_.begin(tracker, params={"num_threads": 64}, resumed=True)
    compile_.end(tracker)
    root = store.get_run(tracker.run_id)
    assert root.data.params["num_threads"] == "8"
    assert root.info.status == "FINISHED"


def test_a_second_compile_with_equal_settings_is_a_second_root(store, tracker, compile_):
    compile_.begin(tracker)
    compile_.end(tracker)
    first = tracker.run_id
    compile_.begin(tracker)
    compile_.end(tracker)
    assert tracker.run_id != first


def test_a_resumed_compile_unknown_to_the_store_starts_its_root(store, tracker, compile_):
    compile_.run(tracker, resumed=True)
    assert len(runs_of(store)) == 7


def test_joins_the_active_run_and_leaves_it_active(active_store, compile_):
    tracker = MLflowTracker(experiment="elsewhere", run_name="my compile")
    with mlflow.start_run(run_name="caller") as caller:
        compile_.run(tracker)
        assert mlflow.active_run().info.run_id == caller.info.run_id
    root = runs_of(active_store)["caller", "my compile"]
    assert root.info.run_id == tracker.run_id
    assert active_store.get_experiment_by_name("elsewhere") is None
    assert active_store.get_run(caller.info.run_id).data.metrics == {}


def test_an_active_run_of_another_store_is_not_joined(active_store, compile_, tmp_path, empty_store):
    (tmp_path / "other.db").write_bytes(empty_store)
    other = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    other.create_experiment("tests", artifact_location=(tmp_path / "other").as_uri())
    tracker = MLflowTracker(experiment="tests", tracking_uri=other.tracking_uri)
    with mlflow.start_run(run_name="caller"):
        compile_.run(tracker)
    assert "mlflow.parentRunId" not in other.get_run(tracker.run_id).data.tags


def test_no_active_run_is_left_behind_and_the_selected_experiment_can_be_used(active_store, compile_):
    tracker = MLflowTracker(experiment=None)
    compile_.run(tracker)
    assert mlflow.active_run() is None
    assert (None, ROOT) in runs_of(active_store)


def test_says_how_to_open_the_run(tracker, compile_, store):
    assert tracker.how_to_open is None
    assert tracker.run_id is None
    compile_.begin(tracker)
    assert tracker.how_to_open == f"mlflow ui --backend-store-uri {store.tracking_uri}"
    compile_.end(tracker)
    assert tracker.how_to_open is not None


def test_a_token_in_the_address_of_a_repository_is_not_written(store, tracker, compile_, monkeypatch):
    tags = {"mlflow.source.git.repoURL": "https://repository-token-1@host/me/project", "mlflow.user": "me"}
    monkeypatch.setattr("mlflow.tracking.context.registry.resolve_tags", lambda given=None: {**tags, **(given or {})})
    compile_.run(tracker)
    run = store.get_run(tracker.run_id)
    assert run.data.tags["mlflow.source.git.repoURL"] == "https://[redacted]@host/me/project"
    assert "repository-token-1" not in str([item.dataset.source for item in run.inputs.dataset_inputs])


@pytest.fixture
def other_store(tmp_path, empty_store, monkeypatch):
    """A store that MLflow is set to, with an experiment selected in it; nothing of a tracker may go there."""
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # both are as before after the test
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    (tmp_path / "other.db").write_bytes(empty_store)
    uri, before = f"sqlite:///{tmp_path / 'other.db'}", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(tracking_uri=uri)
    for number in range(3):
        client.create_experiment(f"other {number}", artifact_location=(tmp_path / "elsewhere").as_uri())
    mlflow.set_experiment("other 2")
    yield client
    mlflow.set_tracking_uri(before)


def in_other_store(client):
    experiments = client.search_experiments()
    return client.search_runs([item.experiment_id for item in experiments]), len(experiments)


def test_a_tracker_writes_into_its_own_store_whatever_mlflow_is_set_to(store, other_store, compile_, tmp_path):
    tracker = MLflowTracker(experiment=None, tracking_uri=store.tracking_uri)
    compile_.run(tracker)
    assert tracker.not_logged == {}
    assert store.get_run(tracker.run_id).info.experiment_id == "0"  # the other store's selection means nothing here
    assert in_other_store(other_store) == ([], 4)
    assert not (tmp_path / "elsewhere").exists()


def test_a_tracker_stays_with_the_store_that_mlflow_was_set_to_at_its_start(
    active_store, compile_, tmp_path, empty_store
):
    tracker = MLflowTracker(experiment=None)
    compile_.begin(tracker)
    (tmp_path / "other.db").write_bytes(empty_store)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    compile_.iterate(tracker, 1)
    compile_.end(tracker)
    assert tracker.not_logged == {}
    assert len(runs_of(active_store)) == 4
    other = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    assert in_other_store(other) == ([], 1)


def test_planted_secrets_reach_no_file(store, tracker, compile_, tmp_path, monkeypatch):
    monkeypatch.setenv("EXAMPLE_API_KEY", "plain-words-as-a-key")
    params = {"api_key": "hunter2-hunter2", "lm.api-key": "hunter3-hunter3", "note": f"uses {SECRET}", "seed": 7}
    compile_.begin(tracker, params=params, lms={"analyst": f"openai/x?{SECRET}"}, adapter="plain-words-as-a-key")
    tracker.on_trained(Trained(1, "analyst", f"base {SECRET}", "plain-words-as-a-key", 3, [1.0], 0.1, None))
    tracker.on_iteration_ended(IterationEnded(compile_.iteration(1, lms={"analyst": SECRET})))
    results = compile_.results(run=SECRET, iterations=(compile_.iteration(0, lms={"analyst": SECRET}),))
    compile_.end(tracker, "failed", results=results, error=f"401: bad key {SECRET}")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "report.json", "report.md"} <= {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        for secret in (SECRET, "hunter2", "hunter3", "plain-words-as-a-key"):
            assert secret.encode() not in content, path
    root = store.get_run(tracker.run_id)
    assert root.data.params["seed"] == "7"
    assert root.data.tags["sirius.error"].startswith("401: bad key ")


def test_a_long_training_run_and_many_parameters_are_written_whole(store, tracker, compile_):
    compile_.begin(tracker, params={f"param_{number}": number for number in range(150)} | {"long": "x" * 9000})
    tracker.on_trained(Trained(1, "analyst", "base", "analyst@1", 3, [1.0] * 1500, 0.1, None))
    compile_.end(tracker)
    root = store.get_run(tracker.run_id)
    assert sum(key.startswith("param_") for key in root.data.params) == 150
    assert len(root.data.params["long"]) == 6000
    run = runs_of(store)["iteration-1", "finetune-analyst"]
    assert len(store.get_metric_history(run.info.run_id, "train/loss")) == 1500
