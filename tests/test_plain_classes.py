"""Objects with more than their type shows read back whole: subclasses, attributes, slots, caches."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import ipaddress
import json
import zoneinfo

import attrs
import pandas
import pytest
from pydantic import BaseModel, HttpUrl, RootModel

from sirius_dspy.plain import from_plain, to_plain


class Name(str):
    pass


class Stack(list):
    pass


@dataclasses.dataclass
class Sized(list):
    size: int = 0


@dataclasses.dataclass
class Rectangle:
    width: int
    factor: dataclasses.InitVar[int] = 1

    def __post_init__(self, factor):
        self.scaled = self.width * factor

    @functools.cached_property
    def area(self):
        return self.width**2


@attrs.define
class Attributed:
    x: int


class Sheet(BaseModel):
    width: int

    @functools.cached_property
    def area(self):
        return self.width**2


class Numbers(RootModel[list[int]]):
    pass


class Source(BaseModel):
    url: HttpUrl


def _tagged_name():
    name = Name("n")
    name.tag = {1}
    return name


def _filled(stack):
    stack.extend([1, (2,)])
    return stack


@pytest.mark.parametrize(
    "value",
    [
        _tagged_name(),
        _filled(Stack()),
        _filled(Sized(3)),
        Rectangle(2, 3),
        Attributed(1),
        Sheet(width=3),
        Numbers([1, 2]),
        Source(url="https://example.com/a?b=1"),
        datetime.time(2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        ipaddress.ip_interface("10.0.0.1/8"),
        10**6000,
        -(10**6000),
        pandas.Timestamp("2024-01-02 03:04:05.000000006"),
        pandas.Timestamp("2024-01-02", tz="Europe/Berlin"),
        pandas.Timedelta(days=1, nanoseconds=3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_with_more_than_their_type_shows_read_back_whole(value):
    read = from_plain(json.loads(json.dumps(to_plain([value]))))[0]
    assert type(read) is type(value)
    assert read == value
    for name in ("tag", "size", "scaled", "tzinfo", "fold", "unit"):
        assert getattr(read, name, None) == getattr(value, name, None)


@pytest.mark.parametrize("value", [Sheet(width=3), Rectangle(3)], ids=["pydantic", "dataclass"])
def test_what_a_class_computes_once_is_no_part_of_a_value(value):
    before = to_plain(value)
    assert value.area == 9
    assert to_plain(value) == before
