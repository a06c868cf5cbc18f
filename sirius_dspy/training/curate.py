"""From good runs to training sets: which steps become rows, of whom, and with which prompt.

A row's prompt is the request that was sent in the recorded call, less its demonstrations; nothing is rendered again.
Its completion is the reply that the program's adapter writes for the recorded outputs, and a row is kept only if this
reply parses back to them.

Two kinds of steps have no such request, and get the prompt that the program sends when it is called with their inputs:
those of a teacher whose signature is not the student's, and those of libraries written by earlier versions.

References:
    "Standard SFT on C_t^(n)" in Algorithm 1 of SiriuS (arXiv:2502.04780). The released code trained repaired steps
    under prompts that inference never uses; the check makes that impossible.
"""

from __future__ import annotations

import contextlib
import enum
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
    """Chat messages, the last one the completion to learn."""
    predictor: str
    trajectory: str
    """Id of the run that it comes from."""
    example_key: str
    request: str = ""
    """Content hash of the prompt, as the step of the run has it; empty if it was not sent in that run."""

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
            {
                "row": row.id,
                "trajectory": row.trajectory,
                "predictor": row.predictor,
                "example": row.example_key,
                "request": row.request,
            }
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
        cumulative: Whether to train on the successful runs of all iterations so far. The paper leaves open which; by
            default it is the current iteration's alone. Agents succeed on what they find easy, and what was repaired
            once stays in this way.

    Caps count per predictor, and not per agent, so that predictors that share weights (`mixed`, or a group) are trained
    on the same rows as when each has its own.
    """

    max_per_example: int = 4
    max_rows: int | None = None
    cumulative: bool = False

    def check(self) -> None:
        """Refuse caps that make no sense; a subclass checks its own settings, too.

        Raises:
            SettingsError: The message names the setting.
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
    ) -> dict[str, TrainingSet]:
        """Select and write the rows of each agent.

        Args:
            program: Whose predictors' signatures, and whose adapter (DSPy's setting), make the prompts.
            trajectories: Scored runs, good and bad; they are read once, in any order.
            agents: Agent name to the predictors that share its weights.
            threshold: A step counts for its agent if the run ended and the agent's reward is at least this.
            seed: Decides the order of the rows, and which stay where there are too many.
            is_own: Whether an agent's LM, or its teacher, answered a step; what another LM answered teaches nobody.
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
            own = rows[step.predictor]
            known = own.get(row.id)
            dropped[agent]["duplicate"] += known is not None
            own[row.id] = min(row, known or row, key=lambda row: row.trajectory)  # whichever came first
        sets = {}
        for agent, predictors in agents.items():
            kept = [self._kept(rows[predictor].values(), seed, dropped[agent]) for predictor in predictors]
            sets[agent] = TrainingSet(agent, _shuffle(kept, seed), dict(+dropped[agent]))
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


def _shuffle(parts: Sequence[Sequence[Row]], seed: int) -> tuple[Row, ...]:
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
    if step.was_cut:
        return None, "cut off at the token limit"
    if "hint_" in step.inputs:  # dspy.Refine shows its own advice; at inference there is none
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
    """What was sent; for runs of other programs, what this one sends for the same inputs."""
    is_own = trajectory.program == probe.program_id
    if step.prompt is not None and (is_own or step.signature == probe.signature_id(step.predictor)):
        return json.loads(step.prompt), ""
    if step.signature and is_own:
        return None, "what was sent cannot be a training prompt"
    return probe.prompt(step.predictor, step.inputs)


class PromptProbe:
    """Finds out what a program's predictors send and read, without asking an LM.

    Args:
        program: Its predictors are called, and left as they are.
    """

    def __init__(self, program: dspy.Module) -> None:
        self.program_id = program_fingerprint(program)
        self.predictors = predictor_names(program)
        self.adapter = dspy.settings.adapter or dspy.ChatAdapter()

    def signature_id(self, predictor: str) -> str:
        """Fingerprint of a predictor's own signature."""
        return signature_digest(signature_of(self.predictors[predictor]))

    def prompt(self, predictor: str, inputs: Values) -> tuple[Messages | None, str]:
        """The messages that the predictor sends for these inputs, or `None` and the reason."""
        fields = signature_of(self.predictors[predictor]).input_fields
        if set(inputs) != set(fields):
            return None, "inputs of another signature"
        asked = _AnswerWith("")
        with contextlib.suppress(Exception):  # the reply does not parse; only what was asked is wanted
            self._call(
                predictor, {name: coerce(value, fields[name].annotation) for name, value in inputs.items()}, asked
            )
        return (asked.messages, "") if asked.messages else (None, "has no prompt in this program")

    def completion(self, predictor: str, inputs: Values, outputs: Values) -> tuple[str | None, str]:
        """The reply that stands for these outputs, or `None` and the reason."""
        signature = signature_of(self.predictors[predictor])
        fields = signature.output_fields
        if set(outputs) - {"logprobs"} != set(fields):  # which DSPy adds where the LM gives them
            return None, "outputs of another signature"
        own = {name: outputs[name] for name in fields}
        try:
            shown = restore_values(inputs, signature.input_fields)
        except UnreadableValueError:  # what cannot be made again has no influence on how a reply is written and read
            shown = {}
        try:
            answer = restore_values(own, fields)
        except UnreadableValueError:
            return None, "holds a value that cannot be stored"
        for written in _spellings(answer):
            text = str(training_messages(self.adapter, signature, shown, written)[-1]["content"])
            with contextlib.suppress(Exception):  # adapters raise what they like; what cannot be read back is no row
                answered = (
                    self._call(predictor, shown, _AnswerWith(text)) if shown else self.adapter.parse(signature, text)
                )
                if to_plain({name: answered[name] for name in fields}) == own:
                    return text, ""
        return None, "does not parse back"

    def _call(self, predictor: str, inputs: Mapping[str, Any], asked: _AnswerWith) -> Any:
        called = self.predictors[predictor]
        like = called.lm or dspy.settings.lm
        lm = dspy.LM(getattr(like, "model", "probe/none"), engine=asked.like(like), cache=False)
        with dspy.context(adapter=self.adapter, disable_history=True, trace=[], callbacks=[], usage_tracker=None):
            return called(**inputs, lm=lm, demos=[], config={"n": 1})


def _spellings(outputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The outputs as they are, then with members of an Enum by name: DSPy reads no values that are not text."""
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
    """An engine that writes down what it was asked and gives a fixed reply."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.messages: list[dict[str, Any]] = []

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
