"""The prompts that a program sends and the replies that its adapter writes, found out without an LM."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import dspy
from dspy.adapters.base import Adapter
from dspy.lm15 import Message, Request, Response, TextPart
from dspy.lm15 import Usage as RequestUsage
from dspy.signatures import make_signature

from sirius_dspy.errors import UnpreparedProgramError, UnreadableValueError
from sirius_dspy.plain import coerce, to_plain
from sirius_dspy.program import predictor_names, program_fingerprint, restore_values, signature_digest, signature_of
from sirius_dspy.running.requests import Messages
from sirius_dspy.trajectory import Values


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
