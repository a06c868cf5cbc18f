"""Values as JSON that reads back equal: what is stored, compared and hashed.

JSON's own values stand for themselves. Everything else is a *tagged* object,

    {"$type": "tuple", "value": [1, 2]}
    {"$type": "enum", "class": "shop:Color", "name": "RED", "value": "red"}

whose `value` is what a person would read, and whose other keys say what it was. Nothing is pickled, and reading imports
and calls nothing that a file names: classes are found among those that this process has written or that a signature
names, and their objects are restored field by field, without their constructors.

What cannot be restored (a lock, a function, an object of a plain class) is tagged `opaque`: it is told apart by its
content as far as that can be seen, and refused where it would have to be read back.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import io
import ipaddress
import json
import math
import pathlib
import pickle
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args

import dspy
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from sirius_dspy.errors import UnreadableValueError

TYPE = "$type"
"""The key that makes a JSON object a tagged value; a mapping of the user's that has it is written as pairs."""

_TEXT_TYPES: dict[type, Callable[[str], Any]] = {
    decimal.Decimal: decimal.Decimal,
    fractions.Fraction: fractions.Fraction,
    uuid.UUID: uuid.UUID,
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
    complex: complex,
    zoneinfo.ZoneInfo: zoneinfo.ZoneInfo,
    pathlib.PurePosixPath: pathlib.PurePosixPath,
    pathlib.PureWindowsPath: pathlib.PureWindowsPath,
    type(pathlib.Path()): pathlib.Path,
    ipaddress.IPv4Address: ipaddress.IPv4Address,
    ipaddress.IPv6Address: ipaddress.IPv6Address,
    ipaddress.IPv4Network: ipaddress.IPv4Network,
    ipaddress.IPv6Network: ipaddress.IPv6Network,
}
"""Types that their own text restores, with what reads it."""

_READERS = {kind.__name__: read for kind, read in _TEXT_TYPES.items()}
_MAPPINGS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
    "mappingproxy": lambda items: types.MappingProxyType(dict(items)),
}
_SEQUENCES: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytearray": bytearray,
}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_DEPTH = 100
"""Values are nested so deep at most; JSON readers give up at some hundreds."""

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode

_classes: dict[str, type] = {}
"""Classes of the user's that this process has written, by module and qualified name; the last of equal names counts."""


def to_plain(value: Any) -> Any:
    """Turn any value into JSON from which `from_plain` makes an equal one.

    A record at the top (`dspy.Example`, `dspy.Prediction`) becomes the mapping of its fields, without DSPy's own.

    Raises:
        UnreadableValueError: It is nested more than 100 levels deep, as values are that hold themselves.
    """
    if isinstance(value, dspy.Example):  # dspy.Prediction is one, too
        return {key: _write(item, 1) for key, item in value.items()}
    return _write(value, 0)


def from_plain(value: Any, annotation: Any = Any) -> Any:
    """Read what `to_plain` wrote: an equal value of the same type, whether or not a field asks for that type.

    Args:
        value: JSON, tagged or not.
        annotation: The type of the signature's field, if there is one: its classes are known by it.

    Raises:
        UnreadableValueError: It is opaque, or of a class that neither this process nor the annotation knows.
    """
    return _read(value, _known_of(annotation))


def fitted(value: Any, annotation: Any) -> Any:
    """Read a value that need not come from `to_plain`, and turn it into the type of a field where it fits.

    Raises:
        UnreadableValueError: As for `from_plain`.
    """
    read = from_plain(value, annotation)
    if annotation is str or annotation is Any:
        return read
    try:
        return _type_adapter(annotation).validate_python(read)
    except (ValidationError, PydanticUserError, TypeError):  # the last two: no type that pydantic knows
        return read


def readable(value: Any) -> Any:
    """The same JSON without tags, for people, prompts and searches: an enum is its value, a model its fields."""
    if type(value) is dict:
        if TYPE not in value:
            return {key: readable(item) for key, item in value.items()}
        found = readable(value["value"])
        pairs = value[TYPE] in _MAPPINGS or value[TYPE] == "defaultdict"
        return {str(key): item for key, item in found} if pairs else found
    return [readable(item) for item in value] if type(value) is list else value


def opaque_parts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where a plain value holds what cannot be read back, and the class of it."""
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield from opaque_parts(item, f"{path}[{position}]")
    elif isinstance(value, dict):
        if value.get(TYPE) == "opaque":
            yield path, value["class"]
            return
        for key, item in value.items():
            yield from opaque_parts(item, path if TYPE in value else f"{path}.{key}" if path else key)


def canonical(value: Any) -> str:
    """The one JSON text of a plain value, whatever the order its keys were set in."""
    return _encode(value)


def digest(value: Any) -> str:
    """Content hash of a plain value: the first 32 hex digits of SHA-256 over its canonical JSON."""
    return text_digest(canonical(value))


def text_digest(text: str) -> str:
    """The first 32 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def example_key(example: dspy.Example) -> str:
    """Identify an example by its inputs and labels, never by its position: optimizers shuffle."""
    return digest({"inputs": to_plain(example.inputs()), "labels": to_plain(example.labels())})


@lru_cache(maxsize=512)
def _type_adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


# Writing


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
        return _tagged("dataclass", _write_dict(fields, depth), **{"class": _remember(kind)})
    if isinstance(value, dspy.Example):
        return _write_record(value, kind, depth)
    if kind is tuple or kind is set or kind is frozenset or kind is collections.deque:
        return _write_collection(value, kind, depth)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _tagged("namedtuple", [_write(item, depth) for item in value], **{"class": _remember(kind)})
    if kind in _TEXT_TYPES:
        return _tagged(kind.__name__, str(value))
    for special in (_write_time, _write_bytes, _write_array, _write_frame, _write_mapping):
        if (written := special(value, kind, depth)) is not None:
            return written
    return _write_opaque(value, kind, depth)


def _write_enum(value: enum.Enum, kind: type, depth: int) -> Any:
    # Members of a Flag may be combined, and have no name of their own then; `str(value.name)` is not unique.
    named = isinstance(value.name, str) and kind.__members__.get(value.name) is value  # type: ignore[attr-defined]
    about = {"class": _remember(kind), "name": value.name if named else None}
    return _tagged("enum", _write(value.value, depth), **about)


def _write_model(value: BaseModel, kind: type, depth: int) -> Any:
    state = value.__getstate__()  # pydantic's own pickling: excluded and private fields are in it, aliases are not
    about: dict[str, Any] = {"class": _remember(kind), "set": sorted(state["__pydantic_fields_set__"])}
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
        same = _read(written, {}).equals(value)
    except (UnreadableValueError, ValueError, TypeError):
        same = False
    return written if same else None


def _write_mapping(value: Any, kind: type, depth: int) -> Any:
    if kind is collections.defaultdict:
        return _tagged("defaultdict", _pairs(value, depth), factory=getattr(value.default_factory, "__name__", None))
    if isinstance(value, Mapping) and kind.__name__ in _MAPPINGS and kind.__module__ in ("collections", "builtins"):
        pairs = [[_write(key, depth), _write(item, depth)] for key, item in value.items()]
        return _tagged(kind.__name__, pairs if kind is collections.OrderedDict else sorted(pairs, key=canonical))
    return None


def _write_opaque(value: Any, kind: type, depth: int) -> Any:
    """What cannot be read back, told apart by its content as far as pickling or its text shows it."""
    about = {"class": _name_of(kind)}
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


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _remember(kind: type) -> str:
    name = _name_of(kind)
    _classes[name] = kind
    return name


# Reading


def _known_of(annotation: Any) -> Mapping[str, type]:
    if annotation is str or annotation is Any:
        return _NONE_KNOWN
    try:
        return _classes_of(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return _NONE_KNOWN


_NONE_KNOWN: Mapping[str, type] = {}


@lru_cache(maxsize=512)
def _classes_of(annotation: Any) -> Mapping[str, type]:
    """The classes in an annotation, also those of their fields."""
    found: dict[str, type] = {}
    pending, seen = [annotation], set()
    while pending:
        item = pending.pop()
        pending += get_args(item)
        if not isinstance(item, type) or item in seen:
            continue
        seen.add(item)
        found[_name_of(item)] = item
        if issubclass(item, BaseModel):
            pending += [info.annotation for info in item.model_fields.values()]
        elif dataclasses.is_dataclass(item):
            pending += [info.type for info in dataclasses.fields(item)]
    return found


def _read(value: Any, known: Mapping[str, type]) -> Any:
    if type(value) is list:
        return [_read(item, known) for item in value]
    if type(value) is not dict:
        return value
    if TYPE not in value:
        return {key: _read(item, known) for key, item in value.items()}
    try:
        return _read_tagged(value, known)
    except UnreadableValueError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UnreadableValueError(
            f"A stored value of the type {value[TYPE]!r} cannot be read: {error}. It was not written by sirius_dspy, "
            "or its class has other fields now."
        ) from error


def _read_tagged(tagged: Mapping[str, Any], known: Mapping[str, type]) -> Any:
    kind, value = tagged[TYPE], tagged["value"]
    if kind in _CLASS_READERS:
        return _CLASS_READERS[kind](tagged, _read(value, known), known)
    if kind in _READERS:
        return _READERS[kind](value)
    if kind in ("int", "float"):
        return int(value) if kind == "int" else float(value)
    if kind in ("bytes", "bytearray"):
        data = base64.b64decode(value, validate=True)
        return data if kind == "bytes" else bytearray(data)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](_read(value, known))
    if kind in _MAPPINGS:
        return _MAPPINGS[kind](_read_pairs(value, known))
    if kind == "opaque":
        raise UnreadableValueError(
            f"A value of the class {tagged['class']!r} was noted, but cannot be made again from what is stored. Use a "
            "pydantic model, a dataclass, or plain values."
        )
    raise UnreadableValueError(f"A stored value has the unknown type {kind!r}; a newer version wrote it.")


def _read_pairs(pairs: Any, known: Mapping[str, type]) -> Any:
    return {_read(key, known): _read(item, known) for key, item in pairs}


def _class_of(tagged: Mapping[str, Any], known: Mapping[str, type], base: type | None) -> Any:
    """A class among the known ones, if it is of the kind that the tag says."""
    name = tagged["class"]
    found = known.get(name) or _classes.get(name)
    fits = found is not None and (dataclasses.is_dataclass(found) if base is None else issubclass(found, base))
    if not fits:
        raise UnreadableValueError(
            f"A stored value is of the class {name!r}, which this process has not used yet. Pass an example or a "
            "signature that has it."
        )
    return found


def _read_enum(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    kind = _class_of(tagged, known, enum.Enum)
    return kind(value) if tagged["name"] is None else kind[tagged["name"]]


def _read_model(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    kind = _class_of(tagged, known, BaseModel)
    model = kind.__new__(kind)
    model.__setstate__(
        {
            "__dict__": value,
            "__pydantic_fields_set__": set(tagged["set"]),
            "__pydantic_extra__": _read(tagged["extra"], known) if "extra" in tagged else _no_extra(kind),
            "__pydantic_private__": _read(tagged["private"], known) if "private" in tagged else _no_private(kind),
        }
    )
    return model


def _no_extra(kind: type[BaseModel]) -> dict[str, Any] | None:
    return {} if kind.model_config.get("extra") == "allow" else None


def _no_private(kind: type[BaseModel]) -> dict[str, Any] | None:
    return {} if kind.__private_attributes__ else None


def _read_dataclass(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    kind = _class_of(tagged, known, None)
    made = object.__new__(kind)
    for name, item in value.items():
        object.__setattr__(made, name, item)  # a frozen one refuses `setattr`
    return made


def _read_namedtuple(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    return tuple.__new__(_class_of(tagged, known, tuple), value)


def _read_record(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    made = dspy.Prediction(**value) if tagged[TYPE] == "Prediction" else dspy.Example(**value)
    return made.with_inputs(*tagged["inputs"]) if "inputs" in tagged else made


def _read_deque(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    return collections.deque(value, tagged["maxlen"])


def _read_defaultdict(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    factories = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str, "bool": bool}
    return collections.defaultdict(factories.get(tagged["factory"] or ""), _read_pairs(tagged["value"], known))


def _read_datetime(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    read = datetime.datetime.fromisoformat(value).replace(fold=tagged.get("fold", 0))
    return read.replace(tzinfo=zoneinfo.ZoneInfo(tagged["zone"])) if "zone" in tagged else read


def _read_timedelta(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    days, seconds, microseconds = tagged["exact"]
    return datetime.timedelta(days, seconds, microseconds)


def _read_timezone(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    return datetime.timezone(_read(tagged["offset"], known))


def _read_range(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    return (range if tagged[TYPE] == "range" else slice)(*value)


def _read_array(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
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


def _read_frame(tagged: Mapping[str, Any], value: Any, known: Mapping[str, type]) -> Any:
    import pandas

    index = pandas.Index(_read(tagged["index"], known), name=_read(tagged["index_name"], known))
    columns = [
        pandas.Series(items, index=index, dtype=dtype) for items, dtype in zip(value, tagged["dtypes"], strict=True)
    ]
    names = _read(tagged["columns"], known)
    if tagged[TYPE] == "Series":
        return columns[0].rename(names[0])
    frame = pandas.concat(columns, axis=1) if columns else pandas.DataFrame(index=index)
    frame.columns = pandas.Index(names)
    return frame


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
    "timedelta": _read_timedelta,
    "timezone": _read_timezone,
    "range": _read_range,
    "slice": _read_range,
    "ndarray": _read_array,
    "numpy": _read_array,
    "DataFrame": _read_frame,
    "Series": _read_frame,
}
