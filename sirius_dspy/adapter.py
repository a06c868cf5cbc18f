"""A short prompt format for small LMs, which cannot follow the scaffolding of DSPy's default adapter.

The prompt of a signature with one output is its instructions and `name: value` lines, nothing else; the reply *is* the
output. It is a `dspy.ChatAdapter`, so DSPy accepts it for training rows, and training prompts equal inference prompts
by construction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError
from pydantic.fields import FieldInfo

from sirius_dspy.dspy_internals import FieldInfoWithName, apply_output_field_defaults, format_field_value, parse_value


class PlainAdapter(dspy.ChatAdapter):
    """Short prompts and lenient parsing for very small LMs.

    With one output field, the whole reply is its value, so a string field always parses. With several output fields,
    the reply has a line `name: value` for each; a reply without any such line becomes the value of the last field,
    which is the answer by convention. `Name:`, `**Name:**` and `**Name**:` are all accepted.

    Args:
        **settings: Passed on to `dspy.ChatAdapter`. Its JSON fallback stays off, because the answer to its second
            prompt would be trained under the first one.

    Examples:
        >>> adapter = PlainAdapter()
        >>> adapter.format(dspy.Signature("question -> answer", "Answer."), [], {"question": "2+2?"})[-1]["content"]
        'question: 2+2?'
        >>> adapter.parse(dspy.Signature("question -> answer: int"), " 4 ")
        {'answer': 4}
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(use_json_adapter_fallback=False, **settings)

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """Return the signature's instructions, without anything about fields or types."""
        return signature.instructions.strip()

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Write one `name: value` line per input, and the names of the outputs only if there are several."""
        lines = [prefix, *_lines(signature.input_fields, inputs)]
        if main_request and len(signature.output_fields) > 1:
            names = ", ".join(f"'{name}:'" for name in signature.output_fields)
            lines.append(f"Reply with the lines {names}.")
        return "\n".join(line for line in [*lines, suffix] if line).strip()

    def format_field_with_value(self, fields_with_values: Mapping[FieldInfoWithName, Any]) -> str:
        """Write the reply that an LM should give: the bare value, or one line per field."""
        values = {item.name: str(format_field_value(item.info, value)) for item, value in fields_with_values.items()}
        if len(values) == 1:
            return next(iter(values.values()))
        return "\n".join(f"{name}: {value}" for name, value in values.items())

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Write the reply that represents `outputs` in demonstrations and training rows."""
        return self.format_field_with_value(
            {
                FieldInfoWithName(name, info): outputs.get(name, missing_field_message)
                for name, info in signature.output_fields.items()
            }
        )

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Parse the outputs from a reply.

        Raises:
            AdapterParseError: A value does not fit its field's type, or a field without a default is missing.
        """
        fields: dict[str, Any] = {}
        for name, text in _split(list(signature.output_fields), completion).items():
            try:
                fields[name] = parse_value(text, signature.output_fields[name].annotation)
            except ValueError as error:
                raise _parse_error(signature, completion, fields, str(error)) from error
        fields = apply_output_field_defaults(signature, fields)
        if fields.keys() != signature.output_fields.keys():
            raise _parse_error(signature, completion, fields)
        return fields


def _lines(fields: Mapping[str, FieldInfo], values: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {format_field_value(info, values[name])}" for name, info in fields.items() if name in values]


def _split(names: list[str], completion: str) -> dict[str, str]:
    """Map each field name to its text; the first mention of a field counts."""
    if len(names) == 1:
        return {names[0]: completion.strip()}
    alternatives = "|".join(re.escape(name) for name in names)
    matches = list(
        re.finditer(rf"^\s*(\**)({alternatives})(?:\s*:\1|\1\s*:)\s*", completion, re.IGNORECASE | re.MULTILINE)
    )
    if not matches:
        return {names[-1]: completion.strip()}
    by_folded = {name.casefold(): name for name in names}
    ends = [match.start() for match in matches[1:]] + [len(completion)]
    texts: dict[str, str] = {}
    for match, end in zip(matches, ends, strict=True):
        texts.setdefault(by_folded[match.group(2).casefold()], completion[match.end() : end].strip())
    return texts


def _parse_error(
    signature: type[dspy.Signature], completion: str, parsed: dict[str, Any], message: str | None = None
) -> AdapterParseError:
    return AdapterParseError(
        adapter_name="PlainAdapter",
        signature=signature,
        lm_response=completion,
        parsed_result=parsed,  # type: ignore[arg-type]  # a dict is what DSPy's own adapters pass
        message=message,
    )
