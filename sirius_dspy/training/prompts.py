"""The prompts that a program sends and the replies that its adapter writes, found out without an LM."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import dspy
from dspy.adapters.base import Adapter
from dspy.lm15 import Message, Request, Response, TextPart, ToolCallPart
from dspy.lm15 import Usage as RequestUsage
from dspy.signatures import make_signature

from sirius_dspy.errors import UnpreparedProgramError, UnreadableValueError
from sirius_dspy.plain import coerce, comparable, to_plain
from sirius_dspy.program import predictor_names, program_fingerprint, restore_values, signature_digest, signature_of
from sirius_dspy.running.answered import spellings
from sirius_dspy.running.native import native_reply, without_ids
from sirius_dspy.running.prompt import Message as ChatMessage
from sirius_dspy.running.prompt import SentPrompt
from sirius_dspy.running.requests import Listener, alias_lm, listen
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

    def prompt(self, predictor: str, inputs: Values) -> tuple[SentPrompt | None, str]:
        """Return what the predictor sends for these inputs, or `None` and the reason."""
        fields = signature_of(self.predictors[predictor]).input_fields
        if set(inputs) != set(fields):
            return None, "inputs of another signature"
        with _unheard() as listener, contextlib.suppress(Exception):  # the reply does not parse, and does not matter
            self._call(
                predictor,
                {name: coerce(value, fields[name].annotation) for name, value in inputs.items()},
                {"role": "assistant", "content": ""},
            )
        return (listener.requests[0].prompt, "") if listener.requests else (None, "has no prompt in this program")

    def reply(
        self, predictor: str, inputs: Values, outputs: Values, *, is_native: bool = False
    ) -> tuple[ChatMessage | None, str]:
        """Return the reply that represents these outputs, or `None` and the reason.

        Args:
            predictor: Its name.
            inputs: Of the call.
            outputs: Of the call.
            is_native: Whether tools were offered natively, so that tool calls are no text.
        """
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
        if is_native:
            return self._native_reply(predictor, restored, answer)
        for written in spellings(answer):
            reply = training_messages(self.adapter, signature, restored, written)[-1]
            reply = {"role": "assistant", "content": str(reply["content"])}
            with _unheard(), contextlib.suppress(Exception):  # adapters may raise anything; such a reply is no row
                text = reply["content"]
                answered = self._call(predictor, restored, reply) if restored else self.adapter.parse(signature, text)
                if comparable(to_plain({name: answered[name] for name in fields})) == comparable(plain):
                    return reply, ""
        return None, "does not parse back"

    def _native_reply(
        self, predictor: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> tuple[ChatMessage | None, str]:
        signature = signature_of(self.predictors[predictor])
        with _unheard(), contextlib.suppress(Exception):  # as above
            reply = native_reply(self.adapter, signature, outputs)
            answered = self._call(predictor, inputs, reply)
            given, read = ({name: values[name] for name in signature.output_fields} for values in (outputs, answered))
            if without_ids(to_plain(given)) == without_ids(to_plain(read)):
                return reply, ""
        return None, "does not parse back"

    def _call(self, predictor: str, inputs: Mapping[str, Any], reply: ChatMessage) -> Any:
        """Call a predictor whose LM gives this reply."""
        called = self.predictors[predictor]
        like = called.lm or dspy.settings.lm
        is_native = getattr(self.adapter, "use_native_function_calling", False)
        engine = _AnswerWith(reply).like(like, with_tools=is_native)
        lm = alias_lm(dspy.LM(getattr(like, "model", "probe/none"), engine=engine, cache=False))
        with dspy.context(adapter=self.adapter):
            return called(**inputs, lm=lm, demos=[], config={"n": 1})


@contextlib.contextmanager
def _unheard() -> Iterator[Listener]:
    """The context of calls that only the listener hears of."""
    with dspy.context(trace=[], callbacks=[], usage_tracker=None), listen() as listener:
        yield listener


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
    """An engine that returns a fixed reply."""

    def __init__(self, reply: ChatMessage) -> None:
        text = [TextPart(reply["content"])] if reply["content"] or not reply.get("tool_calls") else []
        calls = [
            ToolCallPart(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in reply.get("tool_calls", ())
        ]
        self.message = Message.assistant([*text, *calls])

    def like(self, lm: Any, *, with_tools: bool) -> _AnswerWith:
        """Declare the capabilities of an LM, because adapters write other prompts for some of them.

        Args:
            lm: The LM.
            with_tools: Whether to ask it if it calls tools natively, for which local models read their chat template.
        """
        native = ["supports_function_calling"] if with_tools else []
        for ability in ("supports_reasoning", "supports_response_schema", *native):
            setattr(self, ability, getattr(lm, ability, False))
        return self

    def complete(self, request: Request) -> Response:
        """Return the reply; DSPy calls this."""
        return Response(id=None, model=request.model, message=self.message, finish_reason="stop", usage=RequestUsage())


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
