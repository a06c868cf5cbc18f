"""The base of results: frozen records that are also mappings, and checked when they are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sirius_dspy import checks
from sirius_dspy.errors import ResultError
from sirius_dspy.running.standing import Standing


class Result(Mapping[str, Any]):
    """A frozen record that is also a mapping of plain values."""

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a record back.

        Raises:
            ResultError: It is not what `to_dict` gives; the message says where.
        """
        try:
            return _adapter(cls).validate_json(json.dumps(require_mapping(cls, data)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or cls.__name__
            raise ResultError(f"`{where}` of {cls.__name__}: {first['msg']}.") from error
        except (TypeError, ValueError) as error:
            raise ResultError(f"{cls.__name__} holds a value that JSON does not have: {error}.") from error

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return _plain(getattr(self, key))

    def __contains__(self, key: object) -> bool:
        return any(item.name == key for item in dataclasses.fields(self))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return (item.name for item in dataclasses.fields(self))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(dataclasses.fields(self))  # type: ignore[arg-type]


STRICT = ConfigDict(strict=True, extra="forbid")
"""How pydantic checks a record: values are not converted, and no other fields are accepted."""


def require_mapping(kind: type[Result], data: Any) -> dict[str, Any]:
    """A mapping as a dict.

    Raises:
        ResultError: It is none.
    """
    if not isinstance(data, Mapping):
        raise ResultError(
            f"{kind.__name__} is {checks.describe_value(data)}, expected a mapping, as `to_dict` gives one."
        )
    return dict(data)


@cache
def _adapter(kind: type[Result]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Standing):
        return value.to_plain()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
