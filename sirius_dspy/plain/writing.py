"""Writes any value as JSON with tags."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import enum
import functools
import hashlib
import io
import math
import pickle
import re
import sys
import types
import zoneinfo
from collections.abc import Callable, Collection, Mapping
from typing import Any

import dspy
from pydantic import BaseModel, TypeAdapter

from sirius_dspy.plain.classes import BUILTINS, MAPPINGS, TEXT_TYPES, TYPE, URLS, has_fields, name_of, remember
from sirius_dspy.plain.digests import canonical, digest
from sirius_dspy.plain.frames import write_frame

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_DECIMAL_BITS = 10_000
_MAX_DEPTH = 100
"""Maximum depth of nested values; JSON readers give up at some hundreds."""


def to_plain(value: Any) -> Any:
    """Convert any value to JSON from which `from_plain` makes an equal one.

    A record at the top (`dspy.Example`, `dspy.Prediction`) becomes the mapping of its fields, without those of DSPy.
    A value that is nested more than 100 levels deep, such as one that holds itself, cannot be read back.
    """
    if isinstance(value, dspy.Example):  # dspy.Prediction is one, too
        return {key: _write_part(item) for key, item in value.items()}
    return _write_whole(value)


def _write_whole(value: Any) -> Any:
    """Write a value; of a mapping such as a step's inputs, only the values that are nested too deeply are lost."""
    try:
        return _write(value, 0)
    except _TooDeepError:
        if type(value) is dict and all(type(key) is str and key != TYPE for key in value):
            return {_replace_surrogates(key): _write_part(item) for key, item in value.items()}
        return _write_opaque(value, type(value), 0)


def _write_part(value: Any) -> Any:
    try:
        return _write(value, 1)
    except _TooDeepError:
        return _write_opaque(value, type(value), 1)


class _TooDeepError(Exception):
    """A value is nested too deeply to be written."""


def example_content(example: dspy.Example) -> dict[str, Any]:
    """Return the inputs and the labels of an example as plain values."""
    return {"inputs": to_plain(example.inputs()), "labels": to_plain(example.labels())}


def example_key(example: dspy.Example) -> str:
    """Identify an example by its inputs and labels, never by its position: optimizers shuffle."""
    return digest(example_content(example))


def _write(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _replace_surrogates(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 63 else _tag("int", _digits(value))  # JSON readers have 64 bits
    if kind is float:
        return value if math.isfinite(value) else _tag("float", repr(value))
    if depth > _MAX_DEPTH:
        raise _TooDeepError
    if kind is dict:
        return _write_dict(value, depth + 1)
    if kind is list:
        return [_write(item, depth + 1) for item in value]
    return _write_other(value, kind, depth + 1)


def _digits(value: int) -> str:
    """Write a large number; Python reads at most some thousand decimal digits."""
    return str(value) if value.bit_length() < _MAX_DECIMAL_BITS else hex(value)


def _write_dict(value: dict[Any, Any], depth: int) -> Any:
    if TYPE not in value and all(
        type(key) is str and (key.isascii() or _replace_surrogates(key) == key) for key in value
    ):
        return {key: _write(item, depth) for key, item in value.items()}
    return _tag("dict", _pairs(value, depth))


def _pairs(value: Mapping[Any, Any], depth: int) -> list[Any]:
    """Write entries in their own order, since a program may show it to an LM."""
    return [[_write(key, depth), _write(item, depth)] for key, item in value.items()]


def _write_other(value: Any, kind: type, depth: int) -> Any:
    if isinstance(value, enum.Enum):
        return _write_enum(value, kind, depth)
    if isinstance(value, BaseModel):
        return _write_model(value, kind, depth)
    if has_fields(kind) and _base_of(value) is None and not isinstance(value, BaseException):
        return _write_fields(value, kind, depth)
    if isinstance(value, dspy.Example):
        return _write_record(value, kind, depth)
    if kind is tuple or kind is set or kind is frozenset or kind is collections.deque:
        return _write_collection(value, kind, depth)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _tag("namedtuple", [_write(item, depth) for item in value], **{"class": remember(kind)})
    if kind in TEXT_TYPES:
        return _tag(kind.__name__, str(value))
    for special in (_write_time, _write_bytes, _write_array, _write_frame, _write_mapping, _write_url, _write_builtin):
        if (written := special(value, kind, depth)) is not None:
            return written
    return _write_opaque(value, kind, depth)


def _write_enum(value: enum.Enum, kind: type, depth: int) -> Any:
    # Members of a Flag may be combined, and have no name of their own then; `str(value.name)` is not unique.
    named = isinstance(value.name, str) and kind.__members__.get(value.name) is value  # type: ignore[attr-defined]
    about = {"class": remember(kind), "name": value.name if named else None}
    return _tag("enum", _write(value.value, depth), **about)


def _write_fields(value: Any, kind: type, depth: int) -> Any:
    """Write an object of `dataclasses` or `attrs`, with the attributes that it has beside its fields."""
    kinds = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else kind.__attrs_attrs__  # type: ignore[attr-defined]
    names = [item.name for item in kinds]
    fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
    about: dict[str, Any] = {"class": remember(kind)}
    if more := _attributes(value, names):
        about["attributes"] = _write_dict(more, depth)
    return _tag("dataclass", _write_dict(fields, depth), **about)


def _attributes(value: Any, but: Collection[str] = ()) -> dict[str, Any]:
    """Return what an object holds in its `__dict__`, without cached properties."""
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    cached = {
        name
        for owner in type(value).__mro__
        for name, item in vars(owner).items()
        if isinstance(item, functools.cached_property)
    }
    return {name: item for name, item in attributes.items() if name not in cached and name not in but}


def _base_of(value: Any) -> type | None:
    """Return the builtin type of a value, or the one that its type is a subclass of."""
    return next((base for base in BUILTINS.values() if isinstance(value, base)), None)


def _write_builtin(value: Any, kind: type, depth: int) -> Any:
    """Write an object of a subclass of a builtin, e.g. of `str`, unless it has slots of its own."""
    base = _base_of(value)
    if base is None or any(vars(owner).get("__slots__") for owner in kind.__mro__):
        return None
    about: dict[str, Any] = {"class": remember(kind), "base": base.__name__}
    if attributes := _attributes(value):
        about["attributes"] = _write_dict(attributes, depth)
    return _tag("subclass", _write(_TO_BASE[base](value), depth), **about)


# These call the methods of the base, since those of the subclass may do anything.
_TO_BASE: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: lambda value: complex(value.real, value.imag),
    bytes: lambda value: bytes(memoryview(value)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    list: list.copy,
    set: lambda value: set(set.__iter__(value)),
    dict: dict.copy,
}


def _write_url(value: Any, kind: type, depth: int) -> Any:
    return _tag("url", str(value), name=kind.__name__) if URLS.get(kind.__name__) is kind else None


def _write_model(value: BaseModel, kind: type[BaseModel], depth: int) -> Any:
    state = value.__getstate__()  # pydantic's own pickling: excluded and private fields are in it, aliases are not
    about: dict[str, Any] = {"class": remember(kind), "set": sorted(state["__pydantic_fields_set__"])}
    for name in ("extra", "private"):
        if attributes := state.get(f"__pydantic_{name}__"):  # a `RootModel` has no such state
            about[name] = _write_dict(dict(attributes), depth)
    fields = {
        name: item for name, item in state["__dict__"].items() if name in kind.model_fields
    }  # without cached properties
    return _tag("model", _write_dict(fields, depth), **about)


def _write_record(value: dspy.Example, kind: type, depth: int) -> Any:
    if kind is not dspy.Example and kind is not dspy.Prediction:
        return _write_opaque(value, kind, depth)
    keys = getattr(value, "_input_keys", None)
    about = {} if keys is None else {"inputs": sorted(keys)}
    return _tag(kind.__name__, _write_dict(dict(value.items()), depth), **about)


def _write_collection(value: Any, kind: type, depth: int) -> Any:
    items = [_write(item, depth) for item in value]
    if kind is collections.deque:
        return _tag("deque", items, maxlen=value.maxlen)
    return _tag(kind.__name__, items if kind is tuple else sorted(items, key=canonical))


def _write_time(value: Any, kind: type, depth: int) -> Any:
    if kind is datetime.datetime or kind is datetime.time:
        zone = value.tzinfo
        about = {"fold": value.fold} if value.fold else {}
        if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
            about["zone"] = zone.key
        return _tag(kind.__name__, value.isoformat(), **about)
    if kind is datetime.timedelta:
        exact = [value.days, value.seconds, value.microseconds]
        return _tag("timedelta", TypeAdapter(datetime.timedelta).dump_python(value, mode="json"), exact=exact)
    if kind is datetime.timezone:
        return _tag("timezone", str(value), offset=_write(value.utcoffset(None), depth))
    return None


def _write_bytes(value: Any, kind: type, depth: int) -> Any:
    if kind is bytes or kind is bytearray:
        return _tag(kind.__name__, base64.b64encode(value).decode())
    if kind is range or kind is slice:
        return _tag(kind.__name__, [_write(getattr(value, name), depth) for name in ("start", "stop", "step")])
    return None


def _write_array(value: Any, kind: type, depth: int) -> Any:
    """Write an array or scalar of NumPy, which is not imported for a program that does not use it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    if kind is not numpy.ndarray and not isinstance(value, numpy.generic):  # a subclass, such as a masked array
        return None
    name = "ndarray" if isinstance(value, numpy.ndarray) else "numpy"
    if value.dtype.hasobject:
        return _tag(name, _write(value.tolist(), depth), dtype="O", shape=list(value.shape))
    if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return _tag(name, _write(value.tolist(), depth), dtype=value.dtype.str, shape=list(value.shape))
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.asarray(value), allow_pickle=False)
    return _tag(name, base64.b64encode(buffer.getvalue()).decode(), dtype=None)


def _write_frame(value: Any, kind: type, depth: int) -> Any:
    """Write a value of pandas that reads back the same; pandas is not imported for a program that does not use it."""
    pandas = sys.modules.get("pandas")
    return None if pandas is None else write_frame(value, kind, lambda item: _write(item, depth))


def _write_mapping(value: Any, kind: type, depth: int) -> Any:
    if kind is collections.defaultdict:
        return _tag("defaultdict", _pairs(value, depth), factory=getattr(value.default_factory, "__name__", None))
    if isinstance(value, Mapping) and kind.__name__ in MAPPINGS and kind.__module__ in ("collections", "builtins"):
        return _tag(kind.__name__, _pairs(value, depth))
    return None


def _write_opaque(value: Any, kind: type, depth: int) -> Any:
    """Write a value that cannot be read back: its content counts as far as pickling or its text shows it."""
    about = {"class": name_of(kind)}
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return _tag("opaque", f"{value.__module__}:{value.__qualname__}", **about)
    try:
        about["content"] = hashlib.sha256(pickle.dumps(value)).hexdigest()[:32]
    except Exception:  # locks, clients, generators: they raise what they like
        about["content"] = ""
    return _tag("opaque", _text_of(value), **about)


def _text_of(value: Any) -> str:
    try:
        return _replace_surrogates(_ADDRESS.sub("", repr(value)))
    except Exception as error:  # an object whose `repr` is broken must not end the run that it is only an input of
        return f"{type(value).__qualname__}: {type(error).__name__}"


def _replace_surrogates(text: str) -> str:
    """Join halves of surrogate pairs and replace lone ones: LMs write both, and UTF-8 cannot encode either."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tag(kind: str, value: Any, **about: Any) -> dict[str, Any]:
    return {TYPE: kind, **about, "value": value}
