"""From any value to JSON with tags."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import enum
import hashlib
import io
import math
import pickle
import re
import sys
import types
import zoneinfo
from collections.abc import Mapping
from typing import Any

import dspy
from pydantic import BaseModel, TypeAdapter

from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain.classes import MAPPINGS, TEXT_TYPES, TYPE, name_of, remember
from sirius_dspy.plain.digests import canonical, digest
from sirius_dspy.plain.reading import from_plain

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_DEPTH = 100
"""Values are nested so deep at most; JSON readers give up at some hundreds."""


def to_plain(value: Any) -> Any:
    """Turn any value into JSON from which `from_plain` makes an equal one.

    A record at the top (`dspy.Example`, `dspy.Prediction`) becomes the mapping of its fields, without DSPy's own.

    Raises:
        UnreadableValueError: It is nested more than 100 levels deep, as values are that hold themselves.
    """
    if isinstance(value, dspy.Example):  # dspy.Prediction is one, too
        return {key: _write(item, 1) for key, item in value.items()}
    return _write(value, 0)


def example_key(example: dspy.Example) -> str:
    """Identify an example by its inputs and labels, never by its position: optimizers shuffle."""
    return digest({"inputs": to_plain(example.inputs()), "labels": to_plain(example.labels())})


def _write(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _whole_characters(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 63 else _tagged("int", str(value))  # JSON readers have 64 bits
    if kind is float:
        return value if math.isfinite(value) else _tagged("float", repr(value))
    if depth > _MAX_DEPTH:
        raise UnreadableValueError(
            f"A value is nested more than {_MAX_DEPTH} levels deep: it holds itself, or should be flattened."
        )
    if kind is dict:
        return _write_dict(value, depth + 1)
    if kind is list:
        return [_write(item, depth + 1) for item in value]
    return _write_other(value, kind, depth + 1)


def _write_dict(value: dict[Any, Any], depth: int) -> Any:
    if TYPE not in value and all(
        type(key) is str and (key.isascii() or _whole_characters(key) == key) for key in value
    ):
        return {key: _write(item, depth) for key, item in value.items()}
    return _tagged("dict", _pairs(value, depth))


def _pairs(value: Mapping[Any, Any], depth: int) -> list[Any]:
    """Entries in an order that depends on their content alone: equal mappings are written alike."""
    return sorted(([_write(key, depth), _write(item, depth)] for key, item in value.items()), key=canonical)


def _write_other(value: Any, kind: type, depth: int) -> Any:
    if isinstance(value, enum.Enum):
        return _write_enum(value, kind, depth)
    if isinstance(value, BaseModel):
        return _write_model(value, kind, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            item.name: getattr(value, item.name) for item in dataclasses.fields(value) if hasattr(value, item.name)
        }
        return _tagged("dataclass", _write_dict(fields, depth), **{"class": remember(kind)})
    if isinstance(value, dspy.Example):
        return _write_record(value, kind, depth)
    if kind is tuple or kind is set or kind is frozenset or kind is collections.deque:
        return _write_collection(value, kind, depth)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _tagged("namedtuple", [_write(item, depth) for item in value], **{"class": remember(kind)})
    if kind in TEXT_TYPES:
        return _tagged(kind.__name__, str(value))
    for special in (_write_time, _write_bytes, _write_array, _write_frame, _write_mapping):
        if (written := special(value, kind, depth)) is not None:
            return written
    return _write_opaque(value, kind, depth)


def _write_enum(value: enum.Enum, kind: type, depth: int) -> Any:
    # Members of a Flag may be combined, and have no name of their own then; `str(value.name)` is not unique.
    named = isinstance(value.name, str) and kind.__members__.get(value.name) is value  # type: ignore[attr-defined]
    about = {"class": remember(kind), "name": value.name if named else None}
    return _tagged("enum", _write(value.value, depth), **about)


def _write_model(value: BaseModel, kind: type, depth: int) -> Any:
    state = value.__getstate__()  # pydantic's own pickling: excluded and private fields are in it, aliases are not
    about: dict[str, Any] = {"class": remember(kind), "set": sorted(state["__pydantic_fields_set__"])}
    for name in ("extra", "private"):
        if held := state[f"__pydantic_{name}__"]:
            about[name] = _write_dict(dict(held), depth)
    return _tagged("model", _write_dict(state["__dict__"], depth), **about)


def _write_record(value: dspy.Example, kind: type, depth: int) -> Any:
    if kind is not dspy.Example and kind is not dspy.Prediction:
        return _write_opaque(value, kind, depth)
    keys = getattr(value, "_input_keys", None)
    about = {} if keys is None else {"inputs": sorted(keys)}
    return _tagged(kind.__name__, _write_dict(dict(value.items()), depth), **about)


def _write_collection(value: Any, kind: type, depth: int) -> Any:
    items = [_write(item, depth) for item in value]
    if kind is collections.deque:
        return _tagged("deque", items, maxlen=value.maxlen)
    return _tagged(kind.__name__, items if kind is tuple else sorted(items, key=canonical))


def _write_time(value: Any, kind: type, depth: int) -> Any:
    if kind is datetime.datetime:
        zone = value.tzinfo
        about = {"fold": value.fold} if value.fold else {}
        if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
            about["zone"] = zone.key
        return _tagged("datetime", value.isoformat(), **about)
    if kind is datetime.timedelta:
        exact = [value.days, value.seconds, value.microseconds]
        return _tagged("timedelta", TypeAdapter(datetime.timedelta).dump_python(value, mode="json"), exact=exact)
    if kind is datetime.timezone:
        return _tagged("timezone", str(value), offset=_write(value.utcoffset(None), depth))
    return None


def _write_bytes(value: Any, kind: type, depth: int) -> Any:
    if kind is bytes or kind is bytearray:
        return _tagged(kind.__name__, base64.b64encode(value).decode())
    if kind is range or kind is slice:
        return _tagged(kind.__name__, [_write(getattr(value, name), depth) for name in ("start", "stop", "step")])
    return None


def _write_array(value: Any, kind: type, depth: int) -> Any:
    """NumPy's arrays and scalars; NumPy is not imported for a program that does not use it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    if kind is not numpy.ndarray and not isinstance(value, numpy.generic):  # a subclass, such as a masked array
        return None
    name = "ndarray" if isinstance(value, numpy.ndarray) else "numpy"
    if value.dtype.hasobject:
        return _tagged(name, _write(value.tolist(), depth), dtype="O", shape=list(value.shape))
    if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return _tagged(name, _write(value.tolist(), depth), dtype=value.dtype.str, shape=list(value.shape))
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.asarray(value), allow_pickle=False)
    return _tagged(name, base64.b64encode(buffer.getvalue()).decode(), dtype=None)


def _write_frame(value: Any, kind: type, depth: int) -> Any:
    """Data frames and series of pandas, unless they hold what does not come back the same."""
    pandas = sys.modules.get("pandas")
    if pandas is None or kind not in (pandas.DataFrame, pandas.Series):
        return None
    frame = value if kind is pandas.DataFrame else value.to_frame("value")
    columns = [frame.iloc[:, position] for position in range(frame.shape[1])]
    about = {
        "index": _write(list(frame.index), depth),
        "index_name": _write(frame.index.name, depth),
        "columns": _write(list(frame.columns) if kind is pandas.DataFrame else [value.name], depth),
        "dtypes": [str(column.dtype) for column in columns],
    }
    written = _tagged(kind.__name__, [_write(column.tolist(), depth) for column in columns], **about)
    try:
        same = from_plain(written).equals(value)
    except (UnreadableValueError, ValueError, TypeError):
        same = False
    return written if same else None


def _write_mapping(value: Any, kind: type, depth: int) -> Any:
    if kind is collections.defaultdict:
        return _tagged("defaultdict", _pairs(value, depth), factory=getattr(value.default_factory, "__name__", None))
    if isinstance(value, Mapping) and kind.__name__ in MAPPINGS and kind.__module__ in ("collections", "builtins"):
        pairs = [[_write(key, depth), _write(item, depth)] for key, item in value.items()]
        return _tagged(kind.__name__, pairs if kind is collections.OrderedDict else sorted(pairs, key=canonical))
    return None


def _write_opaque(value: Any, kind: type, depth: int) -> Any:
    """What cannot be read back, told apart by its content as far as pickling or its text shows it."""
    about = {"class": name_of(kind)}
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return _tagged("opaque", f"{value.__module__}:{value.__qualname__}", **about)
    try:
        about["content"] = hashlib.sha256(pickle.dumps(value)).hexdigest()[:32]
    except Exception:  # locks, clients, generators: they raise what they like
        about["content"] = ""
    return _tagged("opaque", _text_of(value), **about)


def _text_of(value: Any) -> str:
    try:
        return _whole_characters(_ADDRESS.sub("", repr(value)))
    except Exception as error:  # an object whose `repr` is broken must not end the run that it is only an input of
        return f"{type(value).__qualname__}: {type(error).__name__}"


def _whole_characters(text: str) -> str:
    """Join halves of surrogate pairs and replace lone ones: LMs write both, and no UTF-8 file can hold either."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tagged(kind: str, value: Any, **about: Any) -> dict[str, Any]:
    return {TYPE: kind, **about, "value": value}
