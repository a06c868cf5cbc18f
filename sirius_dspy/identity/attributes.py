"""The attributes of instances and classes that the user set."""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

from sirius_dspy.identity.source_code import is_library, module_of

_TupleField: type = type(vars(namedtuple("_Probe", "field"))["field"])
"""The descriptor of a named tuple's field."""


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an instance, from its dict and its slots, without those that are computed."""
    attributes = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    attributes |= getattr(value, "__dict__", {})
    attributes |= getattr(value, "__pydantic_private__", None) or {}
    attributes |= getattr(value, "__pydantic_extra__", None) or {}
    return {name: item for name, item in attributes.items() if not _is_computed(type(value), name)}


def _slots(cls: type) -> Iterator[str]:
    for base in reversed(cls.__mro__):
        slots = vars(base).get("__slots__", ())
        for slot in [slots] if isinstance(slots, str) else slots:
            is_private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{slot}" if is_private else slot
            if name not in ("__dict__", "__weakref__") and not name.startswith("__pydantic"):
                yield name


def _is_computed(cls: type, name: str) -> bool:
    return name == "__wrapped__" or isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)


def _has_generated_code(cls: type) -> bool:
    """Return whether Python wrote methods of a class: of a dataclass or a named tuple."""
    return hasattr(cls, "__dataclass_fields__") or (issubclass(cls, tuple) and hasattr(cls, "_fields"))


def is_written_by_user(cls: type, name: str, item: Any) -> bool:
    """Return whether the user wrote an attribute of a class, and not Python or a decorator."""
    function = getattr(item, "__func__", item)
    if isinstance(function, types.FunctionType):
        function = inspect.unwrap(function)
        is_generated = _has_generated_code(cls) and function.__code__.co_filename == "<string>"
        return not (is_library(module_of(function)) or (is_generated and name.startswith("__")))
    if issubclass(cls, enum.Enum) and (name in cls.__members__ or name[0] == "_"):
        return False
    if isinstance(item, types.MemberDescriptorType | types.GetSetDescriptorType | _TupleField):
        return False
    if name == "__call__":
        return True  # whatever kind of object it is
    return not (name.startswith(("__", "_abc_")) or name in ("model_fields", "model_computed_fields", "model_config"))
