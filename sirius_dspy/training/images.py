"""Finds inputs that are not text: images, audio and files, on which not every LM can be trained."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dspy
import pydantic

_MEDIA = (dspy.Image, dspy.Audio, dspy.File)
_TEXT = (dspy.Code, dspy.History, dspy.Tool, dspy.ToolCalls, dspy.Reasoning)


def media_fields(signature: type[dspy.Signature], examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the input fields that hold media, according to their annotation or to the examples.

    Args:
        signature: Signature of the predictor.
        examples: Inputs of the program; the inputs of a predictor are known only when it is called.
    """
    fields = signature.input_fields
    names = {name for name, info in fields.items() if _annotates_media(info.annotation, set())}
    for example in examples:
        names |= {name for name, value in example.items() if name in fields and name not in names and _is_media(value)}
    return [name for name in fields if name in names]


def _annotates_media(annotation: Any, seen: set[Any]) -> bool:
    if isinstance(annotation, type):
        if annotation in seen:
            return False
        seen.add(annotation)
        if issubclass(annotation, _MEDIA):
            return True
        if issubclass(annotation, pydantic.BaseModel) and not issubclass(annotation, dspy.Type):
            return any(_annotates_media(info.annotation, seen) for info in annotation.model_fields.values())
        if dataclasses.is_dataclass(annotation):
            return any(_annotates_media(item.type, seen) for item in dataclasses.fields(annotation))
    return any(_annotates_media(part, seen) for part in typing.get_args(annotation))


def _is_media(value: Any) -> bool:
    """Return whether a value contains media at any depth."""
    if isinstance(value, _MEDIA):
        return True
    if isinstance(value, dspy.Type) and not isinstance(value, _TEXT):
        return _formats_media(value)
    return any(map(_is_media, _parts(value)))


def _formats_media(value: dspy.Type) -> bool:
    """Return whether a custom type is sent as anything but text."""
    try:
        parts = value.format()
    except Exception:  # it fails again in the run, where the error names the example
        return False
    return isinstance(parts, list) and any(part.get("type") != "text" for part in parts if isinstance(part, dict))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, pydantic.BaseModel):
        yield from (*vars(value).values(), *(value.model_extra or {}).values())  # its own `__iter__` may yield anything
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, item.name) for item in dataclasses.fields(value))
