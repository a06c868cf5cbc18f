"""Recorded runs and repairs as MLflow traces, made after the fact: a span per step under one for the run.

The id of a trace is a hash of what it shows and of the run that it belongs to, so writing it twice gives one trace.
Nothing goes through MLflow's tracer, which belongs to the caller and may be switched off.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sirius_dspy.mlflow.mlflow_internals import has_silent_server, open_artifacts, open_tracing_client
from sirius_dspy.mlflow.sample import RepairStory
from sirius_dspy.plain import readable
from sirius_dspy.redact import hide_keys, redact
from sirius_dspy.trajectory import Attempt, Failure, Step, Trajectory, Usage, digest

_PREVIEW = 1000
"""Characters of inputs and outputs in MLflow's list of traces."""


@dataclass(frozen=True)
class Span:
    """One line of a trace."""

    name: str
    kind: str
    """MLflow's span type: `AGENT`, `CHAIN`, `LLM`, `EVALUATOR` or `UNKNOWN`."""
    inputs: Any
    outputs: Any
    seconds: float
    """How long it took; where that is unknown, the sum of its parts."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    usage: Usage = field(default_factory=Usage)
    children: Sequence[Span] = ()


def rollout_span(trajectory: Trajectory, agents: Mapping[str, str]) -> Span:
    """A run of the program.

    Args:
        trajectory: The run.
        agents: Predictor name to agent name.
    """
    return Span(
        name=trajectory.origin,
        kind="CHAIN",
        inputs=trajectory.steps[0].inputs if trajectory.steps else {},
        outputs=trajectory.prediction,
        seconds=trajectory.seconds,
        attributes=_lineage(trajectory),
        error=_text(trajectory.failure),
        children=[
            _step_span(step, agents, is_edited=i == trajectory.edited) for i, step in enumerate(trajectory.steps)
        ],
    )


def repair_span(story: RepairStory, agents: Mapping[str, str]) -> Span:
    """The failed run, and for each attempt the feedback, the new answer and the run with it.

    Args:
        story: What happened.
        agents: Predictor name to agent name.
    """
    replays: dict[str | None, Trajectory] = {trajectory.id: trajectory for trajectory in story.replays}
    repaired = next((attempt for attempt in story.repair.attempts if attempt.verdict == "repaired"), None)
    replay = replays.get(repaired.trajectory) if repaired else None
    failed = rollout_span(story.failed, agents)
    return Span(
        name="repair",
        kind="CHAIN",
        inputs={"question": failed.inputs, "failed": story.failed.prediction},
        outputs=replay.prediction if replay else None,
        seconds=story.repair.seconds,
        attributes={
            "sirius.repaired": story.repair.repaired,
            "sirius.reward": max((r.reward for r in story.replays), default=story.failed.reward),
            "sirius.parent": story.repair.parent,
        },
        children=[
            failed,
            *(_attempt_span(attempt, story.failed, replays, agents) for attempt in story.repair.attempts),
        ],
    )


def _attempt_span(
    attempt: Attempt, failed: Trajectory, replays: Mapping[str | None, Trajectory], agents: Mapping[str, str]
) -> Span:
    steps = failed.steps
    step = steps[attempt.position] if attempt.position < len(steps) else None
    before = step.outputs if step else None
    parts = []
    if attempt.feedback is not None:
        parts.append(Span("feedback", "EVALUATOR", {"answer": before}, {"feedback": attempt.feedback}, 0.0))
    if attempt.regenerated is not None:
        asked = {"answer": before, "feedback": attempt.feedback}
        parts.append(Span("regenerated", "LLM", asked, attempt.regenerated, 0.0))
    if attempt.rephrased is not None and attempt.rephrased != attempt.regenerated:
        parts.append(Span("rephrased", "LLM", attempt.regenerated, attempt.rephrased, 0.0))
    if attempt.trajectory in replays:
        parts.append(rollout_span(replays[attempt.trajectory], agents))
    agent = agents.get(attempt.predictor, attempt.predictor)
    return Span(
        name=f"attempt at {attempt.predictor}",
        kind="AGENT",
        inputs=before,
        outputs={"verdict": attempt.verdict, "answer": attempt.rephrased},
        seconds=0.0,
        attributes={
            "sirius.agent": agent,
            "sirius.verdict": attempt.verdict,
            "sirius.reward": attempt.reward,
            "sirius.detail": attempt.detail or None,
        },
        error=None if attempt.verdict == "repaired" else attempt.verdict,
        usage=attempt.usage,
        children=parts,
    )


def _step_span(step: Step, agents: Mapping[str, str], *, is_edited: bool) -> Span:
    return Span(
        name=step.predictor,
        kind="LLM",
        inputs=step.inputs,
        outputs=step.outputs if step.failure is None else step.failure.completion,
        seconds=step.seconds,
        attributes={
            "sirius.agent": agents.get(step.predictor, step.predictor),
            "sirius.predictor": step.predictor,
            "sirius.occurrence": step.occurrence,
            "sirius.source": "edited" if is_edited else step.source,
            "sirius.lm": step.lm,  # under MLflow's own name, it would import litellm, which asks the network for prices
        },
        error=_text(step.failure),
        usage=step.usage,
    )


def _lineage(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "sirius.trajectory": trajectory.id,
        "sirius.origin": trajectory.origin,
        "sirius.reward": trajectory.reward,
        "sirius.rewards": dict(trajectory.rewards) or None,
        "sirius.example": trajectory.example_key,
        "sirius.iteration": trajectory.iteration,
        "sirius.sample": trajectory.sample,
        "sirius.parent": trajectory.parent,
    }


def _text(failure: Failure | None) -> str | None:
    return None if failure is None else f"{failure.kind}: {failure.message}"


class Traces:
    """Writes span trees into one experiment.

    Args:
        tracking_uri: Of the store.
        experiment_id: Of an experiment that is there.
    """

    def __init__(self, tracking_uri: str, experiment_id: str) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_id = experiment_id

    def write(self, root: Span, key: str, run_id: str, ended_at: int, tags: Mapping[str, str]) -> str:
        """Write one trace, linked to a run.

        Args:
            root: What it shows.
            key: Identifies what it shows; the same key in the same run is the same trace.
            run_id: The run that MLflow shows it with.
            ended_at: Milliseconds since 1970.
            tags: For the list of traces.

        Returns:
            MLflow's id of the trace.
        """
        from mlflow.entities import TraceData

        number = int(digest([run_id, key]), 16)
        spans = list(_spans(root, number, ended_at * 1_000_000))
        info = _info(root, number, self.experiment_id, run_id, ended_at, tags)
        client = open_tracing_client(self.tracking_uri)
        started = client.start_trace(info)
        try:
            client.log_spans(self.experiment_id, spans)
        except NotImplementedError as error:  # a store that keeps spans as files, or a server of which MLflow thinks so
            if has_silent_server(client.store):
                raise ConnectionError("The server did not say its version, so it was sent no spans.") from error
            self._upload(started, TraceData(spans))
        return str(info.trace_id)

    def _upload(self, info: Any, trace_data: Any) -> None:
        """Keep spans as a file beside the trace."""
        place = info.tags["mlflow.artifactLocation"]
        text = json.dumps(trace_data.to_dict(), ensure_ascii=False)
        open_artifacts(place, self.tracking_uri).upload_trace_data(text)


def _info(root: Span, number: int, experiment_id: str, run_id: str, ended_at: int, tags: Mapping[str, str]) -> Any:
    from mlflow.entities import AssessmentSource, Feedback, TraceInfo, TraceLocation, TraceState

    duration = round(1000 * _seconds(root))
    trace_id = f"tr-{number:032x}"
    reward = Feedback(
        name="reward",
        value=root.attributes["sirius.reward"],
        source=AssessmentSource("CODE", "metric"),
        trace_id=trace_id,
        create_time_ms=ended_at,
        last_update_time_ms=ended_at,
    )
    reward.assessment_id = f"a-{number:032x}"  # its own, so that a second try does not add a second one
    usage = _usage(root)
    return TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=ended_at - duration,
        state=TraceState.ERROR if root.error else TraceState.OK,
        request_preview=_json(readable(root.inputs))[:_PREVIEW],
        response_preview=_json(readable(root.outputs))[:_PREVIEW],
        execution_duration=duration,
        trace_metadata={"mlflow.sourceRun": run_id, "mlflow.trace.tokenUsage": json.dumps(_tokens(usage))},
        tags={**tags, "mlflow.traceName": root.name},
        assessments=[reward],
    )


def _spans(root: Span, trace: int, ended_ns: int) -> Iterator[Any]:
    """The tree as MLflow's spans, parents first; children follow one another from the start of their parent.

    When steps really started is not recorded, only for how long they ran.
    """
    yield from _flat(root, trace, None, ended_ns - round(1e9 * _seconds(root)), path="0")


def _flat(span: Span, trace: int, parent: int | None, began_ns: int, path: str) -> Iterator[Any]:
    number = int(digest([trace, path]), 16) >> 64
    yield _mlflow_span(span, trace, number, parent, began_ns)
    for position, child in enumerate(span.children):
        yield from _flat(child, trace, number, began_ns, f"{path}.{position}")
        began_ns += round(1e9 * _seconds(child))


def _mlflow_span(span: Span, trace: int, number: int, parent: int | None, began_ns: int) -> Any:
    from mlflow.entities import Span as MLflowSpan

    attributes = {
        "mlflow.traceRequestId": f"tr-{trace:032x}",
        "mlflow.spanType": span.kind,
        "mlflow.spanInputs": hide_keys(readable(span.inputs)),
        "mlflow.spanOutputs": hide_keys(readable(span.outputs)),
        **{name: hide_keys(value) for name, value in span.attributes.items() if value is not None},
        **({"mlflow.chat.tokenUsage": _tokens(span.usage)} if span.usage.calls else {}),
    }
    return MLflowSpan.from_dict(
        {
            "trace_id": _base64(trace, 16),
            "span_id": _base64(number, 8),
            "parent_span_id": "" if parent is None else _base64(parent, 8),
            "name": span.name,
            "start_time_unix_nano": began_ns,
            "end_time_unix_nano": began_ns + round(1e9 * _seconds(span)),
            "attributes": {name: json.dumps(value, ensure_ascii=False) for name, value in attributes.items()},
            "status": {"code": "ERROR" if span.error else "OK", "message": redact(span.error or "")},
        }
    )


def _base64(number: int, num_bytes: int) -> str:
    return base64.b64encode(number.to_bytes(num_bytes, "big")).decode()


def _seconds(span: Span) -> float:
    return max(span.seconds, sum(_seconds(child) for child in span.children))


def _usage(span: Span) -> Usage:
    return sum((_usage(child) for child in span.children), span.usage)


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _json(value: Any) -> str:
    return json.dumps(hide_keys(value), ensure_ascii=False)
