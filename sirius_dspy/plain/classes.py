"""Which types have a tag of their own, and which classes of the user's may be made again."""

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
"""Types that their own text restores, with what reads it."""

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
"""Pydantic's own types of addresses, which are no strings."""

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
"""Classes of the user's that this process has written, by module and qualified name; the last of equal names counts."""


def name_of(kind: type) -> str:
    """Module and qualified name of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def remember(kind: type) -> str:
    """Name a class, and know it from now on when its values are read."""
    name = name_of(kind)
    _classes[name] = kind
    return name


def known_of(annotation: Any) -> Mapping[str, type]:
    """The classes that an annotation names, by their names."""
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
        found[name_of(item)] = item
        if issubclass(item, BaseModel):
            pending += [info.annotation for info in item.model_fields.values()]
        elif dataclasses.is_dataclass(item):
            pending += [info.type for info in dataclasses.fields(item)]
    return found


def has_fields(kind: type) -> bool:
    """Whether a class is made by `dataclasses` or by `attrs`."""
    return dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__")


def class_of(tagged: Mapping[str, Any], known: Mapping[str, type], base: type | None) -> Any:
    """The class that a tag names, if it is known and of the kind that the tag says.

    Raises:
        UnreadableValueError: It is not.
    """
    name = tagged["class"]
    found = known.get(name) or _classes.get(name)
    fits = found is not None and (has_fields(found) if base is None else issubclass(found, base))
    if not fits:
        raise UnreadableValueError(
            f"A stored value is of the class {name!r}, which this process has not used yet. Pass an example or a "
            "signature that has it."
        )
    return found
