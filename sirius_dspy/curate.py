"""From good runs to training sets: which steps become rows, of whom, and with which prompt.

A row's prompt is what `dspy.Predict` really sends at inference, without demonstrations: each row is made by calling its
predictor with an LM that writes down the request and answers with the completion. So a row is kept only if the prompt
written for training equals the one that is sent, and if the completion parses back to the recorded outputs.

References:
    "Standard SFT on C_t^(n)" in Algorithm 1 of SiriuS (arXiv:2502.04780). The released code trained repaired steps
    under prompts that inference never uses; the check makes that impossible.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import dspy
from dspy.adapters.base import Adapter
from dspy.lm15 import Message, Request, Response, TextPart
from dspy.lm15 import Usage as RequestUsage
from dspy.signatures import make_signature

from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.record import predictor_names, signature_of, typed
from sirius_dspy.run_dir import write_text
from sirius_dspy.trajectory import Step, Trajectory, Values, digest, to_plain

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Row:
    """One training example of one agent."""

    messages: Messages
    """Chat messages, the last one the completion to learn."""
    predictor: str
    trajectory: str
    """Id of the run that it comes from."""
    example_key: str

    @property
    def id(self) -> str:
        """Content hash of the messages."""
        return digest([dict(message) for message in self.messages])


@dataclass(frozen=True)
class TrainingSet:
    """The rows of one agent, and what was left out."""

    agent: str
    rows: tuple[Row, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason to number of steps."""

    @property
    def chat(self) -> list[dict[str, Any]]:
        """The rows as OpenAI's fine-tuning API, TRL and `lm.finetune` take them."""
        return [{"messages": [dict(message) for message in row.messages]} for row in self.rows]

    def write(self, path: Path) -> None:
        """Write OpenAI chat JSONL, and beside it `NAME.sources.jsonl` with the run behind each line.

        Two files, because OpenAI refuses rows that hold anything but `messages`.
        """
        sources = [
            {"row": row.id, "trajectory": row.trajectory, "predictor": row.predictor, "example": row.example_key}
            for row in self.rows
        ]
        write_text(path, _json_lines(self.chat))
        write_text(path.with_suffix(".sources.jsonl"), _json_lines(sources))


@dataclass(frozen=True)
class Curator:
    """Turns good runs into training sets.

    Attributes:
        max_per_example: Rows per predictor and example. Several good samples of one example teach variety, but an easy
            example must not crowd out the hard ones.
        max_rows: Rows per predictor; `None` for all. The rows that stay are drawn with the seed.

    Caps count per predictor, and not per agent, so that predictors that share weights (`mixed`, or a group) are trained
    on the same rows as when each has its own.
    """

    max_per_example: int = 4
    max_rows: int | None = None

    def curate(
        self,
        program: dspy.Module,
        trajectories: Iterable[Trajectory],
        agents: Mapping[str, Sequence[str]],
        *,
        threshold: float,
        seed: int = 0,
    ) -> dict[str, TrainingSet]:
        """Select and write the rows of each agent.

        Args:
            program: Whose predictors' signatures, and whose adapter (DSPy's setting), make the prompts.
            trajectories: Scored runs, good and bad; they are read once, in any order.
            agents: Agent name to the predictors that share its weights.
            threshold: A step counts for its agent if the run ended and the agent's reward is at least this.
            seed: Decides the order of the rows, and which stay where there are too many.
        """
        probe = PromptProbe(program)
        agent_of = {predictor: agent for agent, predictors in agents.items() for predictor in predictors}
        rows: dict[str, dict[str, Row]] = {predictor: {} for predictor in agent_of}
        dropped: dict[str, Counter[str]] = {agent: Counter() for agent in agents}
        for trajectory, step in _steps(trajectories):
            agent = agent_of.get(step.predictor)
            if agent is None or not trajectory.succeeded_for(agent, step.predictor, threshold=threshold):
                continue
            row, reason = _row(probe, trajectory, step)
            if row is None:
                dropped[agent][reason] += 1
                continue
            own = rows[step.predictor]
            known = own.get(row.id)
            dropped[agent]["duplicate"] += known is not None
            own[row.id] = min(row, known or row, key=lambda row: row.trajectory)  # whichever came first
        sets = {}
        for agent, predictors in agents.items():
            kept = [self._kept(rows[predictor].values(), seed, dropped[agent]) for predictor in predictors]
            sets[agent] = TrainingSet(agent, _shuffled(kept, seed), dict(+dropped[agent]))
        return sets

    def _kept(self, rows: Iterable[Row], seed: int, dropped: Counter[str]) -> tuple[Row, ...]:
        """Shuffle from a fixed start, so that the order in which threads finished has no say, and cap."""
        rows = sorted(rows, key=lambda row: row.id)
        random.Random(seed).shuffle(rows)
        by_example: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_example[row.example_key].append(row)
        allowed = {row.id for group in by_example.values() for row in group[: self.max_per_example]}
        kept = [row for row in rows if row.id in allowed]
        dropped["over the cap per example"] += len(rows) - len(kept)
        dropped["over the cap per predictor"] += len(kept) - len(kept[: self.max_rows])
        return tuple(kept[: self.max_rows])


def _shuffled(parts: Sequence[Sequence[Row]], seed: int) -> tuple[Row, ...]:
    """The rows of an agent's predictors among one another; those of a single one are in a random order already."""
    rows = [row for part in parts for row in part]
    if len(parts) > 1:
        random.Random(seed).shuffle(rows)
    return tuple(rows)


def _steps(trajectories: Iterable[Trajectory]) -> Iterator[tuple[Trajectory, Step]]:
    return ((trajectory, step) for trajectory in trajectories for step in trajectory.taught_steps)


def _row(probe: PromptProbe, trajectory: Trajectory, step: Step) -> tuple[Row | None, str]:
    """The step as a row, or why it is none."""
    if step.outputs is None:
        return None, "the call failed"
    if "hint_" in step.inputs:  # dspy.Refine shows its own advice; at inference there is none
        return None, "has a hint of dspy.Refine"
    messages, reason = probe.messages(step.predictor, step.inputs, step.outputs)
    if messages is None:
        return None, reason
    return Row(messages, step.predictor, trajectory.id, trajectory.example_key), ""


class PromptProbe:
    """Finds out what a program's predictors send at inference, without asking an LM.

    Args:
        program: Its predictors are called, and left as they are.
    """

    def __init__(self, program: dspy.Module) -> None:
        self.predictors = predictor_names(program)
        self.adapter = dspy.settings.adapter or dspy.ChatAdapter()

    def messages(self, predictor: str, inputs: Values, outputs: Values) -> tuple[Messages | None, str]:
        """The chat row of one call, or `None` and the reason."""
        called = self.predictors[predictor]
        signature = signature_of(called)
        if set(outputs) != set(signature.output_fields):
            return None, "outputs of another signature"
        typed_inputs = typed(inputs, signature.input_fields)
        row = training_messages(self.adapter, signature, typed_inputs, typed(outputs, signature.output_fields))
        asked = _AnswerWith(row[-1]["content"])
        try:
            answered = self._call(called, typed_inputs, asked)
        except Exception:  # adapters raise what they like; a row that cannot be read back is no row
            return None, "does not parse back"
        if asked.messages != list(row[:-1]):
            return None, "prompt differs from inference"
        if to_plain(answered) != {name: outputs[name] for name in signature.output_fields}:
            return None, "does not parse back"
        return row, ""

    def _call(self, predictor: dspy.Predict, inputs: Mapping[str, Any], asked: _AnswerWith) -> Any:
        like = predictor.lm or dspy.settings.lm
        lm = dspy.LM(getattr(like, "model", "probe/none"), engine=asked.like(like), cache=False)
        with dspy.context(adapter=self.adapter, disable_history=True, trace=[], callbacks=[], usage_tracker=None):
            return predictor(**inputs, lm=lm, demos=[], config={"n": 1})


def training_messages(
    adapter: Adapter, signature: type[dspy.Signature], inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Write one call as a chat row, without demonstrations.

    Raises:
        UnpreparedProgramError: The adapter cannot write training rows.
    """
    try:
        row = cast(dspy.ChatAdapter, adapter).format_finetune_data(signature, [], dict(inputs), dict(outputs))
    except (NotImplementedError, AttributeError) as error:
        raise UnpreparedProgramError(
            f"{type(adapter).__name__} cannot write training rows. Use `dspy.configure(adapter=dspy.ChatAdapter())`, "
            "`dspy.XMLAdapter()`, or for small models `sirius_dspy.PlainAdapter()`."
        ) from error
    return list(row["messages"])


class _AnswerWith:
    """An engine that writes down what it was asked and gives a fixed reply."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.messages: list[dict[str, str]] = []

    def like(self, lm: Any) -> _AnswerWith:
        """Claim the abilities of an LM, since adapters write other prompts for some of them."""
        for ability in ("supports_function_calling", "supports_reasoning", "supports_response_schema"):
            setattr(self, ability, getattr(lm, ability, False))
        return self

    def complete(self, request: Request) -> Response:
        """DSPy's engine method."""
        system = request.system if isinstance(request.system, str) else _text(request.system or ())
        asked = [{"role": "system", "content": system}] if system else []
        self.messages = asked + [{"role": item.role, "content": item.text or ""} for item in request.messages]
        message = Message.assistant([TextPart(self.reply)])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=RequestUsage())


def _text(parts: Iterable[Any]) -> str:
    return "".join(part.text for part in parts)


def _json_lines(records: Iterable[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def check_adapter(adapter: Adapter) -> None:
    """Refuse, before anything is paid for, an adapter that cannot write training rows.

    Raises:
        UnpreparedProgramError: As `training_messages` would, after all rollouts.
    """
    if not isinstance(adapter, dspy.ChatAdapter):
        raise UnpreparedProgramError(
            f"{type(adapter).__name__} is not a `dspy.ChatAdapter`, so DSPy cannot make fine-tuning data with it. Use "
            "`dspy.configure(adapter=dspy.ChatAdapter())` or for small models `sirius_dspy.PlainAdapter()`."
        )
    training_messages(adapter, make_signature("question -> answer"), {"question": "?"}, {"answer": "!"})
