"""Values and types without attributes of their own, as plain values."""

from __future__ import annotations

import enum
import re
import types
from pathlib import PurePath
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from sirius_dspy.identity.source_code import is_library
from sirius_dspy.trajectory import digest

Plain = Any
"""What JSON can hold."""


def describe_atom(value: Any) -> Plain:
    """Return a value without parts, such as a number or a text; `None` for any other."""
    cls = type(value)  # `isinstance` would ask the object, which may answer anything
    if issubclass(cls, enum.Enum):
        return None
    if issubclass(cls, bool | str):
        return value if cls is bool else str(value)
    if issubclass(cls, int):
        return int(value)
    if issubclass(cls, float):
        return float(value) if value - value == 0 else {"float": repr(float(value))}
    return None


_TEXTS = frozenset(
    [
        *("Decimal", "Fraction", "UUID", "date", "datetime", "time", "timedelta", "timezone", "ZoneInfo"),
        *("complex", "range", "slice", "ellipsis"),
    ]
)
"""Classes of Python that their `repr` describes completely."""


def describe_data(value: Any) -> Plain:
    """Describe a value whose content is not in its attributes, such as an array; `None` for any other."""
    cls = type(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": digest(bytes(value).hex())}
    if isinstance(value, re.Pattern):
        return {"pattern": str(value.pattern), "flags": value.flags}
    if cls.__name__ in _TEXTS and is_library(cls.__module__):
        return {cls.__name__: repr(value)}
    if hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return _describe_array(value)
    if cls.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        return {"class": class_name(cls), "content": digest(str(value.to_dict()))}
    if get_origin(value) is not None or isinstance(value, types.UnionType):
        return {"type": type_name(value)}
    return None


def _describe_array(value: Any) -> Plain:
    import numpy as np

    array = np.asarray(value)
    content = array.tolist() if array.dtype == object else np.ascontiguousarray(array).tobytes().hex()
    return {"array": str(array.dtype), "shape": list(array.shape), "content": digest(strip_addresses(content))}


def strip_addresses(value: Any) -> str:
    """Return the text of a value without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def describe_type(value: Any) -> Plain:
    """Describe a value by its type alone."""
    return {"type": class_name(type(value))}


def class_name(cls: type) -> str:
    """Return the name of a class; without its module if the user wrote it, since an imported script has another one."""
    name = local_name(cls.__qualname__)
    return f"{cls.__module__}.{name}" if is_library(cls.__module__) and cls.__module__ != "builtins" else name


def local_name(name: str) -> str:
    """Return a qualified name without the function that it was defined in."""
    return name.rpartition("<locals>.")[2]


def type_name(annotation: Any) -> str:
    """Return a type as text, without the modules of classes."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return local_name(annotation.__qualname__)
    if arguments := get_args(annotation):
        origin = get_origin(annotation)
        names = [type_name(item) if not isinstance(item, str | int | bytes) else repr(item) for item in arguments]
        return f"{type_name(origin)}[{', '.join(names)}]"
    return strip_addresses(annotation)


def schema_digest(annotation: Any) -> Plain:
    """Return a hash of the fields of a class, as DSPy shows them to an LM; empty for plain types."""
    if isinstance(annotation, type) and annotation.__module__ == "builtins":
        return ""
    try:
        return digest(TypeAdapter(annotation).json_schema())[:16]
    except Exception:  # no schema, e.g. of a class that pydantic does not know: the name has to do
        return ""
