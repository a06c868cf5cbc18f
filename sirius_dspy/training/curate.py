"""Turns successful runs into training sets: chooses the steps, their agents and their prompts.

The prompt of a row is the recorded request without its demonstrations; it is not rendered again. Its completion is the
reply that the program's adapter writes for the recorded outputs. A row is kept only if this reply parses back to them.

Two kinds of steps have no such request: those of a teacher with another signature, and those of libraries that earlier
versions wrote. Their prompt is the one that the program sends when it is called with their inputs.

References:
    "Standard SFT on C_t^(n)" in Algorithm 1 of SiriuS (arXiv:2502.04780). The released code trained repaired steps with
    prompts that inference never uses; the check makes that impossible.
"""

from __future__ import annotations

import contextlib
import enum
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import dspy
from dspy.adapters.base import Adapter
from dspy.lm15 import Message, Request, Response, TextPart
from dspy.lm15 import Usage as RequestUsage
from dspy.signatures import make_signature

from sirius_dspy import checks
from sirius_dspy.errors import UnpreparedProgramError, UnreadableValueError
from sirius_dspy.files import write_text
from sirius_dspy.plain import coerce, digest, text_digest, to_plain
from sirius_dspy.program import predictor_names, program_fingerprint, restore_values, signature_digest, signature_of
from sirius_dspy.running.requests import Messages, prompt_text
from sirius_dspy.trajectory import IsOwn, Step, Trajectory, Values, every_step


@dataclass(frozen=True)
class Row:
    """One training example of one agent."""

    messages: Messages
    """Chat messages; the last one is the completion to learn."""
    predictor: str
    trajectory: str
    """Id of the run that the row comes from."""
    example_key: str
    request: str = ""
    """Content hash of the prompt in the step of the run; empty if it was not sent in that run."""
    weight: float = 1.0
    """How much the row counts in training, beside rows of weight 1."""

    @property
    def id(self) -> str:
        """The content hash of the messages."""
        return digest([dict(message) for message in self.messages])


class Appraisal(NamedTuple):
    """What a step is worth as a training row."""

    refused: str = ""
    """Why the step is left out; it is counted under this text in `dropped`. Empty keeps it."""
    weight: float = 1.0
    """How much its row counts in training; multiplied with what else weighs it."""


Appraise = Callable[[Trajectory, Step], Appraisal]
"""Appraises one step of a run."""


def appraise_equally(trajectory: Trajectory, step: Step) -> Appraisal:
    """The `Appraise` that keeps every step with the same weight."""
    return Appraisal()


@dataclass(frozen=True)
class TrainingSet:
    """The rows of one agent, and the counts of steps that were left out."""

    agent: str
    rows: tuple[Row, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason to the number of steps that were left out."""

    @property
    def chat(self) -> list[dict[str, Any]]:
        """Return the rows in the format of OpenAI's fine-tuning API, TRL and `lm.finetune`.

        A row whose weight is not 1 has its `weight` beside the `messages`.
        """
        weights = [{} if row.weight == 1 else {"weight": row.weight} for row in self.rows]
        return [{**row, **weight} for row, weight in zip(self._messages, weights, strict=True)]

    @property
    def _messages(self) -> list[dict[str, Any]]:
        return [{"messages": [dict(message) for message in row.messages]} for row in self.rows]

    def write(self, path: Path) -> None:
        """Write OpenAI chat JSONL, and beside it `NAME.sources.jsonl` with the run of each line.

        There are two files because OpenAI refuses rows with anything but `messages`.
        """
        sources = [
            {
                "row": row.id,
                "trajectory": row.trajectory,
                "predictor": row.predictor,
                "example": row.example_key,
                "request": row.request,
                "weight": row.weight,
            }
            for row in self.rows
        ]
        write_text(path, _json_lines(self._messages))
        write_text(path.with_suffix(".sources.jsonl"), _json_lines(sources))


@dataclass(frozen=True)
class Curator:
    """Turns successful runs into training sets.

    Attributes:
        max_per_example: Maximum number of rows per predictor and example. Several successful samples of one example
            teach variety, but easy examples must not crowd out the hard ones.
        max_rows: Maximum number of rows per predictor, drawn with the seed; `None` keeps all.
        cumulative: Whether to train on the successful runs of all iterations so far, so that rows from earlier repairs
            are kept. By default, only runs of the current iteration are used. The paper does not specify this.

    The limits apply per predictor and not per agent, so that predictors that share weights are trained on the same rows
    as predictors with their own weights.
    """

    max_per_example: int = 4
    max_rows: int | None = None
    cumulative: bool = False

    def check(self) -> None:
        """Check the settings; a subclass also checks its own.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
        """
        kinds = {
            "max_per_example": checks.whole(1),
            "max_rows": checks.optional(checks.whole(1)),
            "cumulative": checks.FLAG,
        }
        checks.check(type(self).__name__, vars(self), kinds)

    def refuse(self, row: Row) -> str:
        """Say why a row is not to be trained on; override it to choose rows. An empty text keeps the row, as here.

        Refused rows are counted under their reason in `dropped`, and do not use up the caps.
        """
        return ""

    def curate(
        self,
        program: dspy.Module,
        trajectories: Iterable[Trajectory],
        agents: Mapping[str, Sequence[str]],
        *,
        threshold: float,
        seed: int = 0,
        is_own: IsOwn = every_step,
        appraise: Appraise = appraise_equally,
    ) -> dict[str, TrainingSet]:
        """Select the rows of each agent.

        Args:
            program: The program whose signatures, together with DSPy's adapter, determine the prompts.
            trajectories: Scored runs, successful or not; they are read once, in any order.
            agents: Agent name to the predictors that share its weights.
            threshold: A step is used if its run finished and the reward of its agent is at least this value.
            seed: Seed of the order of the rows, and of the choice if there are too many.
            is_own: Returns whether an agent's LM, or its teacher, answered a step. Steps of other LMs are not used.
            appraise: Returns what a step is worth; asked only for steps that would become a row.
        """
        probe = PromptProbe(program)
        agent_of = {predictor: agent for agent, predictors in agents.items() for predictor in predictors}
        rows: dict[str, dict[str, Row]] = {predictor: {} for predictor in agent_of}
        dropped: dict[str, Counter[str]] = {agent: Counter() for agent in agents}
        for trajectory, step in _steps(trajectories):
            agent = agent_of.get(step.predictor)
            if agent is None or not trajectory.succeeded_for(agent, step.predictor, threshold=threshold):
                continue
            if not is_own(trajectory, step):
                dropped[agent]["answered by another LM"] += 1
                continue
            row, reason = _row(probe, trajectory, step)
            if row is None or (reason := self.refuse(row)):
                dropped[agent][reason] += 1
                continue
            appraisal = appraise(trajectory, step)
            if appraisal.refused:
                dropped[agent][appraisal.refused] += 1
                continue
            row = replace(row, weight=row.weight * appraisal.weight)
            by_id = rows[step.predictor]
            earlier = by_id.get(row.id)
            dropped[agent]["duplicate"] += earlier is not None
            by_id[row.id] = min(row, earlier or row, key=lambda row: row.trajectory)  # whichever came first
        sets = {}
        for agent, predictors in agents.items():
            kept = [self._kept(rows[predictor].values(), seed, dropped[agent]) for predictor in predictors]
            sets[agent] = TrainingSet(agent, shuffle_rows(kept, seed), dict(+dropped[agent]))
        return sets

    def _kept(self, rows: Iterable[Row], seed: int, dropped: Counter[str]) -> tuple[Row, ...]:
        """Shuffle the rows, independently of the order in which threads finished, and apply the limits."""
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


def shuffle_rows(parts: Sequence[Sequence[Row]], seed: int) -> tuple[Row, ...]:
    """Mix rows from several sources; those of a single one are in a random order already."""
    rows = [row for part in parts for row in part]
    if len(parts) > 1:
        random.Random(seed).shuffle(rows)
    return tuple(rows)


def _steps(trajectories: Iterable[Trajectory]) -> Iterator[tuple[Trajectory, Step]]:
    return ((trajectory, step) for trajectory in trajectories for step in trajectory.taught_steps)


def _row(probe: PromptProbe, trajectory: Trajectory, step: Step) -> tuple[Row | None, str]:
    """Return the step as a row, or `None` and the reason why it is left out."""
    if step.outputs is None:
        return None, "the call failed"
    if step.was_cut:
        return None, "cut off at the token limit"
    if "hint_" in step.inputs:  # dspy.Refine adds its advice, which does not exist at inference
        return None, "has a hint of dspy.Refine"
    prompt, reason = _prompt(probe, trajectory, step)
    if prompt is None:
        return None, reason
    completion, reason = probe.completion(step.predictor, step.inputs, step.outputs)
    if completion is None:
        return None, reason
    messages = (*prompt, {"role": "assistant", "content": completion})
    request = text_digest(prompt_text(prompt))
    sent = request if request == step.request else ""
    return Row(messages, step.predictor, trajectory.id, trajectory.example_key, sent), ""


def _prompt(probe: PromptProbe, trajectory: Trajectory, step: Step) -> tuple[Messages | None, str]:
    """Return the recorded prompt; for runs of other programs, the prompt that this one sends for the same inputs."""
    is_own = trajectory.program == probe.program_id
    if step.prompt is not None and (is_own or step.signature == probe.signature_id(step.predictor)):
        return json.loads(step.prompt), ""
    if step.signature and is_own:
        return None, "what was sent cannot be a training prompt"
    return probe.prompt(step.predictor, step.inputs)


class PromptProbe:
    """Determines the prompts and replies of a program's predictors without an LM.

    Args:
        program: Its predictors are called and left unchanged.
    """

    def __init__(self, program: dspy.Module) -> None:
        self.program_id = program_fingerprint(program)
        self.predictors = predictor_names(program)
        self.adapter = dspy.settings.adapter or dspy.ChatAdapter()

    def signature_id(self, predictor: str) -> str:
        """Return the fingerprint of a predictor's signature."""
        return signature_digest(signature_of(self.predictors[predictor]))

    def prompt(self, predictor: str, inputs: Values) -> tuple[Messages | None, str]:
        """Return the messages that the predictor sends for these inputs, or `None` and the reason."""
        fields = signature_of(self.predictors[predictor]).input_fields
        if set(inputs) != set(fields):
            return None, "inputs of another signature"
        asked = _AnswerWith("")
        with contextlib.suppress(Exception):  # the reply does not parse; only the request is needed
            self._call(
                predictor, {name: coerce(value, fields[name].annotation) for name, value in inputs.items()}, asked
            )
        return (asked.messages, "") if asked.messages else (None, "has no prompt in this program")

    def completion(self, predictor: str, inputs: Values, outputs: Values) -> tuple[str | None, str]:
        """Return the reply that represents these outputs, or `None` and the reason."""
        signature = signature_of(self.predictors[predictor])
        fields = signature.output_fields
        if set(outputs) - {"logprobs"} != set(fields):  # DSPy adds `logprobs` if the LM returns them
            return None, "outputs of another signature"
        plain = {name: outputs[name] for name in fields}
        try:
            restored = restore_values(inputs, signature.input_fields)
        except UnreadableValueError:  # such a value does not influence how replies are written and read
            restored = {}
        try:
            answer = restore_values(plain, fields)
        except UnreadableValueError:
            return None, "holds a value that cannot be stored"
        for written in _spellings(answer):
            text = str(training_messages(self.adapter, signature, restored, written)[-1]["content"])
            with contextlib.suppress(Exception):  # adapters may raise anything; such a reply is no row
                probe = _AnswerWith(text)
                answered = self._call(predictor, restored, probe) if restored else self.adapter.parse(signature, text)
                if to_plain({name: answered[name] for name in fields}) == plain:
                    return text, ""
        return None, "does not parse back"

    def _call(self, predictor: str, inputs: Mapping[str, Any], asked: _AnswerWith) -> Any:
        called = self.predictors[predictor]
        like = called.lm or dspy.settings.lm
        lm = dspy.LM(getattr(like, "model", "probe/none"), engine=asked.like(like), cache=False)
        with dspy.context(adapter=self.adapter, disable_history=True, trace=[], callbacks=[], usage_tracker=None):
            return called(**inputs, lm=lm, demos=[], config={"n": 1})


def _spellings(outputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the outputs unchanged, then with names for Enum members: DSPy reads only string values of an Enum."""
    yield outputs
    if any(isinstance(value, enum.Enum) for value in outputs.values()):
        yield {name: value.name if isinstance(value, enum.Enum) else value for name, value in outputs.items()}


def training_messages(
    adapter: Adapter, signature: type[dspy.Signature], inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> list[dict[str, Any]]:
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
    """An engine that records its request and returns a fixed reply."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.messages: list[dict[str, Any]] = []

    def like(self, lm: Any) -> _AnswerWith:
        """Declare the capabilities of an LM, because adapters write other prompts for some of them."""
        for ability in ("supports_function_calling", "supports_reasoning", "supports_response_schema"):
            setattr(self, ability, getattr(lm, ability, False))
        return self

    def complete(self, request: Request) -> Response:
        """Record the request; DSPy calls this."""
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
    """Refuse an adapter that cannot write training rows.

    Raises:
        UnpreparedProgramError: The adapter cannot write training rows.
    """
    if not isinstance(adapter, dspy.ChatAdapter):
        raise UnpreparedProgramError(
            f"{type(adapter).__name__} is not a `dspy.ChatAdapter`, so DSPy cannot write fine-tuning data with it. Use "
            "`dspy.configure(adapter=dspy.ChatAdapter())` or for small models `sirius_dspy.PlainAdapter()`."
        )
    training_messages(adapter, make_signature("question -> answer"), {"question": "?"}, {"answer": "!"})
