"""One failed run under repair, and how its steps and answers read in the prompts of a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dspy

from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain import opaque_parts, readable, to_plain
from sirius_dspy.program import predictor_names, restore_values, signature_of
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.reliance import score_reply, scorer_of
from sirius_dspy.repair.solved import REASONING, only_label
from sirius_dspy.repair.wording import as_written
from sirius_dspy.running.answered import as_answered
from sirius_dspy.running.native import without_ids
from sirius_dspy.running.recording import Recording
from sirius_dspy.trajectory import Attempt, Step, Trajectory, Usage, Values, Verdict


@dataclass(frozen=True)
class Case:
    """One failed run under repair."""

    failed: Trajectory
    example: dspy.Example
    context: RepairContext

    def can_edit(self, step: Step) -> bool:
        """Whether the step belongs to a trained agent, which wrote something that can be improved."""
        wrote_something = step.outputs is not None or (step.failure is not None and step.failure.completion is not None)
        return self.context.may_edit(self.failed, step) and wrote_something

    def signature_of(self, step: Step) -> type[dspy.Signature]:
        """The signature of the step's predictor."""
        return signature_of(predictor_names(self.context.program)[step.predictor])

    def fields_of(self, position: int, answered: Recording | None = None) -> dict[str, Any] | None:
        """The output fields of the failed step, or of a new answer to it, without what DSPy adds to them."""
        step = self.failed.steps[position]
        outputs = step.outputs if answered is None else answered.steps[0].outputs if answered.steps else None
        fields = self.signature_of(step).output_fields
        return None if outputs is None else {name: value for name, value in outputs.items() if name in fields}

    def is_unchanged(self, position: int, outputs: Values) -> bool:
        """Whether outputs say what the failed step did; the ids of tool calls do not count."""
        earlier = self.fields_of(position)
        return without_ids(dict(outputs)) == without_ids(earlier)

    def lm_of(self, step: Step) -> dspy.LM:
        """The LM of the step's predictor."""
        return predictor_names(self.context.program)[step.predictor].lm or dspy.settings.lm

    def key(self, stage: str, position: int, *tries: int) -> str:
        """Names the sample of one LM call of this repair."""
        return self.context.key(self.failed, self.example, stage, position, *tries)

    def answer_fields(self, step: Step, outputs: Values) -> set[str]:
        """Output fields that are the program's answer: named like a label, or, without any, those of the last step."""
        named = set(outputs) & set(self.example.labels().keys())
        if named or self.failed.failure is not None or step is not self.failed.steps[-1]:
            return named
        predicted = self.failed.prediction if isinstance(self.failed.prediction, dict) else {}
        return set(outputs) & set(predicted) or set(outputs)

    def attempt(self, position: int, verdict: Verdict, **fields: Any) -> Attempt:
        """An attempt at one step, with further fields of `Attempt`."""
        return Attempt(position, self.failed.steps[position].predictor, verdict, **fields)

    def gold_of(self, position: int) -> dict[str, Any] | None:
        """The label as all that a step writes; `None` if it has other output fields, or no place for a label."""
        gold = self.gold_field(position)
        return dict([gold]) if gold and not self.writes_more(position) else None

    def gold_field(self, position: int) -> tuple[str, Any] | None:
        """The output field of a step that may have to hold the label, and the label for it.

        It is the field with the name of a label, or else, of a step with one field besides its thoughts, this one. Then
        the label is the only one there is, if that is of the field's type or can be its text. It is as the agent would
        have written it: without space at its ends, and of the field's type. A label that cannot be so is no help.
        """
        written = self._gold_field(position)
        if written is None:
            return None
        signature = _with_output(self.signature_of(self.failed.steps[position]), written[0])
        answered = as_answered(signature, dict([written]))
        return None if answered is None else (written[0], answered[written[0]])

    def _gold_field(self, position: int) -> tuple[str, Any] | None:
        labels, fields = to_plain(self.example.labels()), self.signature_of(self.failed.steps[position]).output_fields
        named = [name for name in fields if name in labels]
        written = named if len(named) == 1 else [name for name in fields if name != REASONING]
        if len(written) != 1:
            return None
        name, kind = written[0], fields[written[0]].annotation
        if name in labels:
            return _fill(name, kind, labels[name])
        label = only_label(self.example)
        if label is not None and kind is str:
            return name, as_written(label)
        return (name, label) if kind in (int, float) and type(label) is kind else None

    def writes_more(self, position: int) -> bool:
        """Whether a step has more than one output field, such as its thoughts and an answer."""
        return len(self.signature_of(self.failed.steps[position]).output_fields) > 1

    def inputs_of(self, position: int) -> dict[str, Any]:
        """The inputs of a step, as its predictor was called with them.

        Raises:
            UnreadableValueError: One of them cannot be restored.
        """
        step = self.failed.steps[position]
        fields = self.signature_of(step).input_fields
        return restore_values({name: value for name, value in step.inputs.items() if name in fields}, fields)

    def log_probs(
        self,
        position: int,
        outputs: Values,
        *,
        inputs: Mapping[str, Any] | None = None,
        signature: type[dspy.Signature] | None = None,
        demos: Sequence[dspy.Example] = (),
    ) -> Sequence[float] | None:
        """How likely the agent is to write these outputs in a step, per token in nats; see `score_reply`.

        Returns:
            `None` if the LM cannot score, or a value cannot be restored.
        """
        step = self.failed.steps[position]
        if not self.context.can_score or scorer_of(self.lm_of(step)) is None:
            return None
        own = self.signature_of(step)
        try:
            read = self.inputs_of(position) if inputs is None else inputs
            written = restore_values(outputs, own.output_fields)
        except UnreadableValueError:
            return None
        return score_reply(self.lm_of(step), signature or own, read, written, demos)


@lru_cache(maxsize=256)
def _with_output(signature: type[dspy.Signature], name: str) -> type[dspy.Signature]:
    """A signature without its other output fields."""
    for other in signature.output_fields:
        signature = signature if other == name else signature.delete(other)
    return signature


def _fill(name: str, kind: Any, label: Any) -> tuple[str, Any] | None:
    """Return a field of some type with its label, in a text field as text; `None` if the label cannot stand there.

    A list of accepted answers is no text, and an object of a class that cannot be made again is nothing to write.
    """
    if any(opaque_parts(label)) or (label is None and kind is str):
        return None
    if label is None or kind not in (str, str | None):
        return name, label
    text = readable(label)
    return None if isinstance(text, list | dict) else (name, as_written(text))


def output_text(recording: Recording, name: str) -> str:
    """One output of a recorded call as text; empty if the call gave none."""
    outputs = recording.steps[0].outputs if recording.steps else None
    return str(readable((outputs or {}).get(name)) or "").strip()


def was_cut(recording: Recording) -> bool:
    """Whether an answer was cut off at the token limit, though it parses."""
    return any(step.was_cut for step in recording.steps)


def usage_of(recording: Recording) -> Usage:
    """What a recording consumed."""
    return sum((step.usage for step in recording.steps), Usage())


def answer_text(step: Step) -> str:
    """What an agent wrote in a step, also where it did not parse."""
    if step.outputs is not None:
        return fields_text(step.outputs)
    return (step.failure and step.failure.completion) or ""


def fields_text(values: Values) -> str:
    """Fields as text: the bare value of a single one, else a line for each."""
    texts = readable(dict(values))
    if len(texts) == 1:
        return str(next(iter(texts.values())))
    return "\n".join(f"{name}: {value}" for name, value in texts.items())
