"""The types that have a tag of their own, and the classes of the user whose objects can be made again."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import fractions
import ipaddress
import pathlib
import types
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, get_args

import pydantic.networks
from pydantic import BaseModel

from sirius_dspy.errors import UnreadableValueError

TYPE = "$type"
"""The key that makes a JSON object a tagged value; a mapping of the user's that has it is written as pairs."""

TEXT_TYPES: dict[type, Callable[[str], Any]] = {
    decimal.Decimal: decimal.Decimal,
    fractions.Fraction: fractions.Fraction,
    uuid.UUID: uuid.UUID,
    datetime.date: datetime.date.fromisoformat,
    complex: complex,
    zoneinfo.ZoneInfo: zoneinfo.ZoneInfo,
    pathlib.PurePosixPath: pathlib.PurePosixPath,
    pathlib.PureWindowsPath: pathlib.PureWindowsPath,
    type(pathlib.Path()): pathlib.Path,
    ipaddress.IPv4Address: ipaddress.IPv4Address,
    ipaddress.IPv6Address: ipaddress.IPv6Address,
    ipaddress.IPv4Network: ipaddress.IPv4Network,
    ipaddress.IPv6Network: ipaddress.IPv6Network,
    ipaddress.IPv4Interface: ipaddress.IPv4Interface,
    ipaddress.IPv6Interface: ipaddress.IPv6Interface,
}
"""Types that their own text restores, with the function that reads it."""

MAPPINGS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
    "mappingproxy": lambda items: types.MappingProxyType(dict(items)),
}
URLS: dict[str, type] = {
    name: kind
    for name, kind in vars(pydantic.networks).items()
    if isinstance(kind, type) and kind.__name__.endswith(("Url", "Dsn")) and not name.startswith("_")
}
"""Pydantic's types of addresses, which are not strings."""

BUILTINS: dict[str, type] = {
    kind.__name__: kind for kind in (str, int, float, complex, bytes, tuple, frozenset, list, set, dict)
}
"""Types whose subclasses are written as values of the base, with their attributes."""

SEQUENCES: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytearray": bytearray,
}
_classes: dict[str, type] = {}
"""Classes of the user that this process has written, by module and qualified name; the last of equal names counts."""


def name_of(kind: type) -> str:
    """Return module and qualified name of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def remember(kind: type) -> str:
    """Return the name of a class, and keep the class for reading its values."""
    name = name_of(kind)
    _classes[name] = kind
    return name


def classes_in(annotation: Any) -> Mapping[str, type]:
    """Return the classes that an annotation names, by their names."""
    if annotation is str or annotation is Any:
        return _NO_CLASSES
    try:
        return _classes_of(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return _NO_CLASSES


_NO_CLASSES: Mapping[str, type] = {}


@lru_cache(maxsize=512)
def _classes_of(annotation: Any) -> Mapping[str, type]:
    """Return the classes in an annotation, and those of their fields."""
    classes: dict[str, type] = {}
    pending, seen = [annotation], set()
    while pending:
        item = pending.pop()
        pending += get_args(item)
        if not isinstance(item, type) or item in seen:
            continue
        seen.add(item)
        classes[name_of(item)] = item
        if issubclass(item, BaseModel):
            pending += [info.annotation for info in item.model_fields.values()]
        elif dataclasses.is_dataclass(item):
            pending += [info.type for info in dataclasses.fields(item)]
    return classes


def has_fields(kind: type) -> bool:
    """Return whether a class is made by `dataclasses` or by `attrs`."""
    return dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__")


def class_of(tagged: Mapping[str, Any], classes: Mapping[str, type], base: type | None) -> Any:
    """Return the class that a tag names.

    Args:
        tagged: The tagged value.
        classes: Classes of an annotation, beside those that this process has written.
        base: The class is a subclass of this; `None` for a dataclass.

    Raises:
        UnreadableValueError: There is no such class, or it is not of the kind that the tag says.
    """
    name = tagged["class"]
    cls = classes.get(name) or _classes.get(name)
    is_fitting = cls is not None and (has_fields(cls) if base is None else issubclass(cls, base))
    if not is_fitting:
        raise UnreadableValueError(
            f"A stored value is of the class {name!r}, which this process has not used yet. Pass an example or a "
            "signature that has it."
        )
    return cls
