"""Reads JSON with tags: as values, or as text for people."""

from __future__ import annotations

import base64
import collections
import datetime
import enum
import io
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import dspy
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.plain.classes import BUILTINS, MAPPINGS, SEQUENCES, TEXT_TYPES, TYPE, URLS, class_of, classes_in
from sirius_dspy.plain.frames import read_absent, read_frame, read_time

_TOOL = f"{dspy.Tool.__module__}:{dspy.Tool.__qualname__}"

_READERS = {kind.__name__: read for kind, read in TEXT_TYPES.items()}


def from_plain(value: Any, annotation: Any = Any) -> Any:
    """Read what `to_plain` wrote: an equal value of the same type, whether or not a field asks for that type.

    Args:
        value: JSON, tagged or not.
        annotation: The type of the signature's field, if there is one. Its classes can be read.

    Raises:
        UnreadableValueError: It is opaque, or of a class that this process has not written and the annotation does not
            name.
    """
    return _read(value, classes_in(annotation))


def coerce(value: Any, annotation: Any) -> Any:
    """Read a value that need not come from `to_plain`, and convert it to the type of a field if it can be.

    Raises:
        UnreadableValueError: As for `from_plain`.
    """
    read = from_plain(value, annotation)
    if annotation is str or annotation is Any:
        return read
    try:
        return _type_adapter(annotation).validate_python(read)
    except (ValidationError, PydanticUserError, TypeError):  # the last two: pydantic does not know the type
        return read


def readable(value: Any) -> Any:
    """Return the same JSON without tags, for people, prompts and searches: an enum is its value, a model its fields."""
    if type(value) is dict:
        if TYPE not in value:
            return {key: readable(item) for key, item in value.items()}
        plain = readable(value["value"])
        is_mapping = value[TYPE] in MAPPINGS or value[TYPE] == "defaultdict"
        return {str(key): item for key, item in plain} if is_mapping else plain
    return [readable(item) for item in value] if type(value) is list else value


def comparable(value: Any) -> Any:
    """Return the same JSON without what pydantic notes in a model beside its fields, which no text of it can say.

    That is which of the fields were given and which are defaults, and the private attributes.
    """
    if type(value) is list:
        return [comparable(item) for item in value]
    if type(value) is not dict:
        return value
    unsaid = ("set", "private") if value.get(TYPE) == "model" else ()
    return {key: comparable(item) for key, item in value.items() if key not in unsaid}


def opaque_parts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the class of each part of a plain value that cannot be read back."""
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield from opaque_parts(item, f"{path}[{position}]")
    elif isinstance(value, dict):
        if value.get(TYPE) == "opaque":
            yield path, value["class"]
            return
        for key, item in value.items():
            yield from opaque_parts(item, path if TYPE in value else f"{path}.{key}" if path else key)


@lru_cache(maxsize=512)
def _type_adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _read(value: Any, classes: Mapping[str, type]) -> Any:
    if type(value) is list:
        return [_read(item, classes) for item in value]
    if type(value) is not dict:
        return value
    if TYPE not in value:
        return {key: _read(item, classes) for key, item in value.items()}
    try:
        return _read_tagged(value, classes)
    except UnreadableValueError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UnreadableValueError(
            f"A stored value of the type {value[TYPE]!r} cannot be read: {error}. It was not written by sirius_dspy, "
            "or its class has other fields now."
        ) from error


def _read_tagged(tagged: Mapping[str, Any], classes: Mapping[str, type]) -> Any:
    kind, value = tagged[TYPE], tagged["value"]
    if kind == "model" and tagged["class"] == _TOOL:
        return _read_tool(tagged, classes)
    if kind in _CLASS_READERS:
        return _CLASS_READERS[kind](tagged, _read(value, classes), classes)
    if kind in _READERS:
        return _READERS[kind](value)
    if kind in ("int", "float"):
        return int(value, 0) if kind == "int" else float(value)
    if kind in ("bytes", "bytearray"):
        data = base64.b64decode(value, validate=True)
        return data if kind == "bytes" else bytearray(data)
    if kind in SEQUENCES:
        return SEQUENCES[kind](_read(value, classes))
    if kind in MAPPINGS:
        return MAPPINGS[kind](_read_pairs(value, classes))
    if kind == "opaque":
        raise UnreadableValueError(
            f"A value of the class {tagged['class']!r} was stored by its text alone, so it cannot be made again. Use a "
            "pydantic model, a dataclass, or plain values."
        )
    raise UnreadableValueError(f"A stored value has the unknown type {kind!r}; a newer version wrote it.")


def _read_pairs(pairs: Any, classes: Mapping[str, type]) -> Any:
    return {_read(key, classes): _read(item, classes) for key, item in pairs}


def _read_enum(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    kind = class_of(tagged, classes, enum.Enum)
    return kind(value) if tagged["name"] is None else kind[tagged["name"]]


def _read_tool(tagged: Mapping[str, Any], classes: Mapping[str, type]) -> dspy.Tool:
    """Read what a tool says of itself, which is all that a prompt needs: its function is not stored."""
    said = {name: item for name, item in tagged["value"].items() if name not in ("func", "arg_types")}
    tool: dspy.Tool = _read_model(tagged, {**_read(said, classes), "func": _call_nothing, "arg_types": {}}, classes)
    return tool


def _call_nothing(**arguments: Any) -> Any:
    raise UnreadableValueError("This tool was read from storage, which does not hold its function. Use the program's.")


def _read_model(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    kind = class_of(tagged, classes, BaseModel)
    model = kind.__new__(kind)
    model.__setstate__(
        {
            "__dict__": value,
            "__pydantic_fields_set__": set(tagged["set"]),
            "__pydantic_extra__": _read(tagged["extra"], classes) if "extra" in tagged else _no_extra(kind),
            "__pydantic_private__": _read(tagged["private"], classes) if "private" in tagged else _no_private(kind),
        }
    )
    return model


def _no_extra(kind: type[BaseModel]) -> dict[str, Any] | None:
    return {} if kind.model_config.get("extra") == "allow" else None


def _no_private(kind: type[BaseModel]) -> dict[str, Any] | None:
    return {} if kind.__private_attributes__ else None


def _read_dataclass(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    kind = class_of(tagged, classes, None)
    made = object.__new__(kind)
    for name, item in value.items():
        object.__setattr__(made, name, item)  # a frozen one refuses `setattr`
    return _set_attributes(made, tagged, classes)


def _read_namedtuple(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    return tuple.__new__(class_of(tagged, classes, tuple), value)


def _read_record(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    made = dspy.Prediction(**value) if tagged[TYPE] == "Prediction" else dspy.Example(**value)
    return made.with_inputs(*tagged["inputs"]) if "inputs" in tagged else made


def _read_deque(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    return collections.deque(value, tagged["maxlen"])


def _read_defaultdict(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    factories = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str, "bool": bool}
    return collections.defaultdict(factories.get(tagged["factory"] or ""), _read_pairs(tagged["value"], classes))


def _read_datetime(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    read = datetime.datetime.fromisoformat(value).replace(fold=tagged.get("fold", 0))
    return read.replace(tzinfo=zoneinfo.ZoneInfo(tagged["zone"])) if "zone" in tagged else read


def _read_time(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    read = datetime.time.fromisoformat(value).replace(fold=tagged.get("fold", 0))
    return read.replace(tzinfo=zoneinfo.ZoneInfo(tagged["zone"])) if "zone" in tagged else read


def _read_timedelta(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    days, seconds, microseconds = tagged["exact"]
    return datetime.timedelta(days, seconds, microseconds)


def _read_timezone(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    return datetime.timezone(_read(tagged["offset"], classes))


def _read_range(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    return (range if tagged[TYPE] == "range" else slice)(*value)


def _read_array(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    import numpy

    if tagged["dtype"] is None:
        array = numpy.load(io.BytesIO(base64.b64decode(value)), allow_pickle=False)
    elif tagged["dtype"] == "O":
        array = numpy.empty(tagged["shape"], dtype=object)
        for place in numpy.ndindex(*tagged["shape"]):
            item = value
            for position in place:
                item = item[position]
            array[place] = item
    else:
        array = numpy.array(value, dtype=tagged["dtype"]).reshape(tagged["shape"])
    return array if tagged[TYPE] == "ndarray" else array[()]


def _read_subclass(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    base: Any = BUILTINS[tagged["base"]]
    kind = class_of(tagged, classes, base)
    if base in (list, set, dict):
        made = base.__new__(kind)
        (base.extend if base is list else base.update)(made, value)
    else:
        made = base.__new__(kind, *((value.real, value.imag) if base is complex else (value,)))
    return _set_attributes(made, tagged, classes)


def _set_attributes(made: Any, tagged: Mapping[str, Any], classes: Mapping[str, type]) -> Any:
    for name, item in _read(tagged.get("attributes", {}), classes).items():
        object.__setattr__(made, name, item)
    return made


def _read_url(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    return URLS[tagged["name"]](value)


def _read_frame(tagged: Mapping[str, Any], value: Any, classes: Mapping[str, type]) -> Any:
    return read_frame(tagged, lambda item: _read(item, classes))


_CLASS_READERS: dict[str, Callable[[Mapping[str, Any], Any, Mapping[str, type]], Any]] = {
    "enum": _read_enum,
    "model": _read_model,
    "dataclass": _read_dataclass,
    "namedtuple": _read_namedtuple,
    "Example": _read_record,
    "Prediction": _read_record,
    "deque": _read_deque,
    "defaultdict": _read_defaultdict,
    "datetime": _read_datetime,
    "time": _read_time,
    "subclass": _read_subclass,
    "url": _read_url,
    "timedelta": _read_timedelta,
    "timezone": _read_timezone,
    "range": _read_range,
    "slice": _read_range,
    "ndarray": _read_array,
    "numpy": _read_array,
    "DataFrame": _read_frame,
    "Series": _read_frame,
    "Timestamp": lambda tagged, value, classes: read_time(tagged),
    "Timedelta": lambda tagged, value, classes: read_time(tagged),
    "absent": lambda tagged, value, classes: read_absent(tagged),
}
