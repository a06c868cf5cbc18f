"""Rollouts and repairs as MLflow traces: which are chosen, what they show, and that they are linked to their run."""

import json
from dataclasses import replace

import dspy
import mlflow
import pytest
from mlflow import MlflowClient

from sirius_dspy import Collect, ExperienceLibrary
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.mlflow.sample import RepairStory, Sample
from sirius_dspy.mlflow.traces import Span, Traces, rollout_span
from sirius_dspy.tracking.events import Repaired, RolledOut
from sirius_dspy.trajectory import Attempt, Failure, Repair, Step, Trajectory, Usage
from tests import toy
from tests.http_server import Handler, serving
from tests.mlflow_help import WARNINGS, runs_of

pytest_plugins = ("tests.mlflow_help",)
pytestmark = [WARNINGS, pytest.mark.server]


def trajectory(name, reward, **changes):
    steps = (
        Step("a", 0, {"question": name}, {"facts": "two"}, "lm/a", usage=Usage(1, 10, 5), seconds=0.5),
        Step("b", 0, {"facts": "two"}, {"answer": name}, "lm/b", usage=Usage(1, 20, 7), seconds=1.0),
    )
    return Trajectory(name, steps, {"answer": name}, reward, iteration=1, seconds=1.6, **changes)


def sampled(sample, failed=(), good=(), repairs=()):
    for item in failed:
        sample.add_rollout(RolledOut(1, item, succeeded=False))
    for item in good:
        sample.add_rollout(RolledOut(1, item, succeeded=True))
    for item in repairs:
        sample.add_repair(item)
    return sample.take()


def repair_of(item, verdict):
    attempt = Attempt(1, "b", verdict, "Add again.", {"answer": "4"}, {"answer": "four"}, 1.0)
    return Repaired(1, Repair(item.id, (attempt,), iteration=1), [], item)


FAILED = [trajectory(f"failed {number}", 0.0) for number in range(30)]
GOOD = [trajectory(f"good {number}", 1.0) for number in range(30)]


def test_repairs_come_first_then_failures_and_one_good_run():
    repairs = [repair_of(item, "repaired" if number % 2 else "failed") for number, item in enumerate(FAILED[:20])]
    chosen = sampled(Sample(10), FAILED, GOOD, repairs)
    assert [isinstance(item, RepairStory) for item in chosen] == [True] * 5 + [False] * 5
    assert all(item.repair.repaired for item in chosen[:5])
    assert [item.reward for item in chosen[5:]] == [0.0] * 4 + [1.0]
    told = {item.failed.id for item in chosen[:5]}
    assert told.isdisjoint({item.id for item in chosen[5:]})  # a repair shows its failed run already


@pytest.mark.parametrize(
    ("limit", "failed", "good", "expected"),
    [(4, 30, 30, [0, 0, 0, 1]), (4, 1, 30, [0, 1, 1, 1]), (4, 30, 0, [0] * 4), (1, 30, 30, [0]), (0, 30, 30, [])],
)
def test_good_runs_fill_what_failures_leave(limit, failed, good, expected):
    assert [item.reward for item in sampled(Sample(limit), FAILED[:failed], GOOD[:good])] == expected


def test_the_choice_does_not_depend_on_the_order_of_threads():
    assert sampled(Sample(6), FAILED, GOOD) == sampled(Sample(6), FAILED[::-1], GOOD[::-1])


def test_runs_on_the_valset_are_left_out_and_a_choice_is_forgotten():
    sample = Sample(5)
    assert sampled(sample, [replace(item, origin="validation") for item in FAILED]) == []
    assert len(sampled(sample, FAILED)) == 5
    assert sample.take() == []


@pytest.fixture
def write(store, monkeypatch):
    """Writes a span tree and reads the trace back."""
    experiment = store.get_experiment_by_name("tests").experiment_id
    run = store.create_run(experiment)
    traces = Traces(store.tracking_uri, experiment)

    def written(root, key="k", times=1):
        for _ in range(times):
            trace_id = traces.write(root, key, run.info.run_id, 1_700_000_000_000, {"sirius.level": "trace"})
        found = store.search_traces(locations=[experiment])
        return next(trace for trace in found if trace.info.trace_id == trace_id), len(found), run.info.run_id

    return written


def test_a_trace_has_a_span_per_step_and_the_reward_and_belongs_to_its_run(write):
    trace, _, run = write(rollout_span(trajectory("2+2?", 0.5), {"a": "analyst", "b": "solver"}))
    root, first, second = trace.data.spans
    assert (root.name, first.name, second.name) == ("rollout", "a", "b")
    assert {first.parent_id, second.parent_id} == {root.span_id}
    assert (first.inputs, first.outputs) == ({"question": "2+2?"}, {"facts": "two"})
    assert (first.get_attribute("sirius.agent"), first.get_attribute("sirius.lm")) == ("analyst", "lm/a")
    assert second.get_attribute("mlflow.chat.tokenUsage") == {
        "input_tokens": 20,
        "output_tokens": 7,
        "total_tokens": 27,
    }
    assert root.get_attribute("sirius.reward") == 0.5
    assert trace.info.trace_metadata["mlflow.sourceRun"] == run
    assert trace.info.execution_duration == 1600
    assert trace.info.token_usage["total_tokens"] == 42
    [reward] = trace.info.assessments
    assert (reward.name, reward.value) == ("reward", 0.5)
    assert second.start_time_ns - first.start_time_ns == 500_000_000


def test_writing_twice_gives_one_trace(write):
    trace, count, _ = write(rollout_span(trajectory("2+2?", 0.5), {}), times=2)
    assert count == 1
    assert len(trace.data.spans) == 3
    assert len(trace.info.assessments) == 1


def test_a_failed_step_shows_what_the_lm_wrote(write):
    failure = Failure("AdapterParseError", "no answer field", "well, well")
    step = Step("a", 0, {"question": "0?"}, None, "lm/a", failure)
    trace, _, _ = write(rollout_span(Trajectory("0", (step,), None, 0.0, failure=failure), {}))
    root, only = trace.data.spans
    assert trace.info.state.value == "ERROR"
    assert only.outputs == "well, well"
    assert (only.status.status_code.name, only.status.description) == ("ERROR", "AdapterParseError: no answer field")
    assert root.status.status_code.name == "ERROR"


def test_the_traces_of_a_compile(store, tmp_path):
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri, traces=4)
    with dspy.context(adapter=toy.ADAPTER):
        optimizer = toy.optimizer(tmp_path / "run", tracker=tracker, iterations=1)
        optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4)))
    assert tracker.not_logged == {}
    experiment = store.get_experiment_by_name("tests").experiment_id
    found = store.search_traces(locations=[experiment])
    iteration = next(run for (_, name), run in runs_of(store).items() if name == "iteration-1")
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in found} == {iteration.info.run_id}
    linked = mlflow_traces_of(store, experiment, iteration.info.run_id)
    assert len(linked) == len(found) == 4
    assert iteration.info.status == "FINISHED"
    origins = sorted(trace.info.tags["sirius.origin"] for trace in found)
    assert origins == ["repair", "repair", "rollout", "rollout"]
    repair = next(trace for trace in found if trace.info.tags.get("sirius.repaired") == "true")
    root = repair.data.spans[0]
    children = [span for span in repair.data.spans if span.parent_id == root.span_id]
    assert [children[0].name, children[1].name] == ["rollout", "attempt at doubler"]
    assert children[0].get_attribute("sirius.reward") == 0.0
    attempt = children[-1]
    parts = [span for span in repair.data.spans if span.parent_id == attempt.span_id]
    assert [span.name for span in parts] == ["feedback", "regenerated", "rephrased", "repair"]
    assert parts[0].outputs == {"feedback": "double the number"}
    assert parts[1].outputs["doubled"].startswith("(corrected) ")
    assert not parts[2].outputs["doubled"].startswith("(corrected) ")
    assert parts[3].get_attribute("sirius.reward") == 1.0
    library = ExperienceLibrary(tmp_path / "run" / "library.sqlite")
    assert library.get(parts[3].get_attribute("sirius.trajectory")).origin == "repair"
    json.dumps(root.attributes)


def mlflow_traces_of(store, experiment, run):
    return store.search_traces(locations=[experiment], filter_string=f"metadata.`mlflow.sourceRun` = '{run}'")


def test_traces_are_written_while_the_caller_has_switched_tracing_off(store, tmp_path):
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri, traces=2)
    mlflow.tracing.disable()
    try:
        with dspy.context(adapter=toy.ADAPTER):
            optimizer = toy.optimizer(tmp_path / "run", tracker=tracker, iterations=1, collect=Collect(samples=1))
            optimizer.compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(2)))
    finally:
        mlflow.tracing.enable()
    experiment = store.get_experiment_by_name("tests").experiment_id
    assert len(MlflowClient(tracking_uri=store.tracking_uri).search_traces(locations=[experiment])) == 2


class TraceServer(Handler):
    """As much of an MLflow server as takes traces; `versions` are its answers to who it is, `None` a refusal."""

    def do_GET(self):
        version = self.server.versions.pop(0) if len(self.server.versions) > 1 else self.server.versions[0]
        self.answer(version or "busy", 503 if version is None else 200)

    def do_POST(self):
        body = self.read()
        self.server.got.append(self.path)
        if not self.path.endswith("/mlflow/traces"):
            return self.answer({})
        trace = json.loads(body)["trace"]
        trace["trace_info"].setdefault("tags", {})["mlflow.artifactLocation"] = "mlflow-artifacts:/0/traces/t/artifacts"
        return self.answer({"trace": trace})

    def do_PUT(self):
        self.read()
        self.server.got.append(self.path)
        self.answer({})


@pytest.fixture
def trace_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(TraceServer, got=[]) as server:
        yield server


ANY_SPAN = Span("run", "CHAIN", {}, {}, 0.0, {"sirius.reward": 1.0})


def test_a_server_that_was_too_busy_to_say_its_version_is_asked_again(trace_server):
    trace_server.versions = [None, "3.5.0"]
    traces = Traces(trace_server.uri, "0")
    with pytest.raises(ConnectionError):  # so that the write waits in the queue
        traces.write(ANY_SPAN, "key", "run", 1, {})
    traces.write(ANY_SPAN, "key", "run", 1, {})
    assert trace_server.got == ["/api/3.0/mlflow/traces", "/api/3.0/mlflow/traces", "/v1/traces"]


def test_spans_go_to_the_store_of_their_trace_and_not_to_the_one_that_mlflow_is_set_to(trace_server, tmp_path):
    trace_server.versions = ["3.3.0"]  # which takes spans as files only
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        Traces(trace_server.uri, "0").write(ANY_SPAN, "key", "run", 1, {})
    finally:
        mlflow.set_tracking_uri(before)
    place = "/api/2.0/mlflow-artifacts/artifacts/0/traces/t/artifacts/traces.json"
    assert trace_server.got == ["/api/3.0/mlflow/traces", place]
    assert not (tmp_path / "other.db").exists()
