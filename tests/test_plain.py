"""Values that are stored read back equal, of the same type, and are told apart by their content."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import math
import pathlib
import string
import subprocess
import sys
import threading
import uuid
import zoneinfo
from typing import Any

import dspy
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from sirius_dspy import Collect, ExperienceLibrary, SiriuS
from sirius_dspy.errors import DatasetError, UnreadableValueError
from sirius_dspy.plain import coerce, digest, example_key, from_plain, opaque_parts, readable, to_plain
from sirius_dspy.testing import ToyLM, chat_reply
from tests import ROOT


class Color(enum.Enum):
    RED = "red"
    ALSO_RED = "red"
    PAIR = ("a", 1)


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Base(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    name: str
    hidden: str = Field(default="h", exclude=True)
    renamed: int = Field(default=0, alias="RENAMED")
    tag: Any = None
    _secret: int = PrivateAttr(default=3)


class Child(Base):
    salary: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: Any = None
    z: int = dataclasses.field(default=5, init=False)


Pair = collections.namedtuple("Pair", "left right")

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
ZONES = st.sampled_from(
    [None, datetime.UTC, zoneinfo.ZoneInfo("Europe/Berlin"), datetime.timezone(datetime.timedelta(hours=5, minutes=30))]
)
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    TEXTS,
    st.binary(max_size=8),
    st.sampled_from(Color),
    st.sampled_from(Level),
    st.sampled_from(Word),
    st.sampled_from([Rights.READ, Rights.READ | Rights.WRITE, Rights(0)]),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.datetimes(timezones=ZONES),
    st.complex_numbers(allow_nan=False),
    st.builds(pathlib.PurePosixPath, st.text(string.ascii_letters + "/", max_size=6)),
    st.ip_addresses(),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
    st.builds(Point, st.integers()),
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXTS | st.just("$type"), inner, max_size=3),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Point, st.integers(), inner),
        st.builds(Child, name=TEXTS, hidden=TEXTS, RENAMED=st.integers(), tag=inner, more=inner),
        st.builds(lambda value: dspy.Example(a=value, b=1).with_inputs("a"), inner),
        st.builds(lambda value: dspy.Prediction(a=value), inner),
        st.lists(inner, max_size=3).map(lambda items: collections.deque(items, 5)),
    ),
    max_leaves=8,
)


def same(one, other):
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(key in other and same(item, other[key]) for key, item in one.items())
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dspy.Example):
        keys = [getattr(example, "_input_keys", None) for example in (one, other)]
        return keys[0] == keys[1] and same(dict(one.items()), dict(other.items()))  # `toDict` cannot show every value
    return one == other


@given(VALUES)
@settings(max_examples=400, deadline=None)
def test_any_value_reads_back_equal_and_of_the_same_type(value):
    stored = json.loads(json.dumps(to_plain([value]), allow_nan=False))
    (read,) = from_plain(stored)
    assert same(read, value)
    assert to_plain([read]) == stored


@given(VALUES, VALUES)
@settings(max_examples=300, deadline=None)
def test_values_are_told_apart_by_content_and_never_by_how_they_print(one, other):
    assert digest(to_plain([one])) == digest(to_plain([copy.deepcopy(one)]))
    if not same(one, other):
        assert digest(to_plain([one])) != digest(to_plain([other]))


@pytest.mark.parametrize(
    "value",
    [
        dspy.Image("https://example.com/cat.png"),
        dspy.History(messages=[{"question": "a", "answer": "b"}]),
        dspy.Code["python"](code="x = 1"),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter("aab"),
        collections.defaultdict(list, a=[1]),
        bytearray(b"ab"),
        slice(1, None, 2),
        10**40,
        ipaddress.ip_network("10.0.0.0/8"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_kinds_read_back_as_well(value):
    read = from_plain(json.loads(json.dumps(to_plain([value]))))[0]
    assert type(read) is type(value)
    assert read == value


def test_numbers_that_json_has_not_read_back():
    (nan, inf) = from_plain(json.loads(json.dumps(to_plain([float("nan"), -math.inf]), allow_nan=False)))
    assert math.isnan(nan)
    assert inf == -math.inf


def test_parts_that_no_dump_shows_are_kept():
    model = Child(name="n", hidden="kept", RENAMED=4, more="extra")
    model._secret = 9
    read = from_plain(to_plain(model))
    assert (read, read.hidden, read.renamed, read.more, read._secret) == (model, "kept", 4, "extra", 9)
    assert read.model_fields_set == model.model_fields_set


class Vault:
    def __init__(self, number):
        self.number = number
        self.lock = threading.Lock()


def test_what_cannot_be_read_back_is_named_and_refused():
    plain = to_plain({"a": [1, Vault(3)], "b": threading.Lock(), "c": print})
    assert [path for path, _ in opaque_parts(plain)] == ["a[1]", "b", "c"]
    with pytest.raises(UnreadableValueError, match="Vault"):
        from_plain(plain)
    assert to_plain([object()]) == to_plain([object()])  # an address is no content


def test_what_holds_itself_is_noted_and_refused_where_it_is_to_be_read_back():
    value: list[Any] = [1]
    value.append(value)
    plain = to_plain({"a": 1, "itself": value})
    assert [path for path, _ in opaque_parts(plain)] == ["itself"]
    assert plain["a"] == 1
    with pytest.raises(UnreadableValueError, match="list"):
        from_plain(plain)


def test_a_program_may_return_what_holds_itself(tmp_path):
    class Node:
        def __init__(self, answer):
            self.answer, self.up = answer, self

    class Tree(dspy.Module):
        def __init__(self):
            super().__init__()
            self.writer = dspy.Predict("question -> answer")

        def forward(self, question):
            loop = {"answer": self.writer(question=question).answer}
            loop["up"] = loop
            return dspy.Prediction(loop=loop, node=Node(loop["answer"]))

    program = Tree()
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="a")))
    data = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(3)]
    optimizer = SiriuS(
        lambda gold, found: found.loop["up"]["answer"] == "a",
        iterations=1,
        collect=Collect(samples=1),
        run_dir=tmp_path,
    )
    compiled = optimizer.compile(program, trainset=data, valset=data)
    assert compiled.detailed_results["best_score"] == 1.0


@pytest.mark.parametrize("kind", [dict, lambda pairs: collections.defaultdict(str, pairs)])
def test_entries_keep_their_order_whatever_the_keys_are(kind):
    value = kind({2: "b", 1: "a"})
    assert list(from_plain(json.loads(json.dumps(to_plain(value))))) == [2, 1]


def test_reading_makes_no_class_that_nobody_used():
    for tag in (
        {"$type": "model", "class": "subprocess:Popen", "set": [], "value": {"args": "true"}},
        {"$type": "enum", "class": "os:system", "name": None, "value": "true"},
        {"$type": "dataclass", "class": "builtins:object", "value": {}},
        {"$type": "model", "class": "tests.nowhere:Model", "set": [], "value": {}},
        {"$type": "unheard of", "value": 1},
        {"$type": "tuple"},
        {"$type": "ndarray", "dtype": None, "value": "gASVAAAA"},
        {"$type": ["tuple"], "value": []},
        {"$type": "Decimal", "value": "x"},
    ):
        with pytest.raises(UnreadableValueError):
            from_plain(tag)


def test_another_process_reads_values_whose_classes_a_signature_names():
    plain = json.dumps(to_plain([Base(name="a", tag=Color.RED)]))
    code = (
        "import json; from sirius_dspy.plain import from_plain; from tests.test_plain import Base, Color\n"
        f"value = json.loads({plain!r})\n"
        "print(from_plain(value, list[Base | Color]) == [Base(name='a', tag=Color.RED)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_what_people_read_has_no_tags():
    shown = readable(to_plain({"a": (1, Color.RED), "b": Child(name="n"), "c": {1: decimal.Decimal("1.50")}}))
    assert shown["a"] == [1, "red"]
    assert shown["b"]["name"] == "n"
    assert shown["c"] == {"1": "1.50"}


def test_plain_values_are_coerced_to_a_field_and_others_left_alone():
    assert coerce("red", Color) is Color.RED
    assert coerce("4", int) == 4
    assert coerce("x", int) == "x"
    assert coerce(to_plain(Color.RED), Color | None) is Color.RED
    assert from_plain(3, float) == 3
    assert type(from_plain(3, float)) is int
    assert coerce({"a": 1}, threading.Lock) == {"a": 1}


def array(number):
    values = numpy.zeros(2000)
    values[1000] = number
    return values


class Reader(dspy.Module):
    def __init__(self):
        super().__init__()
        self.read = dspy.Predict("question -> answer")

    def forward(self, question, document):
        return self.read(question=question)


MAKERS = {
    "arrays": array,
    "keys": lambda number: {1: number, "1": 0},
    "bytes": lambda number: b"x" * 500 + bytes([number]),
    "sets": lambda number: {("a", number)},
    "models": lambda number: Base(name="n", hidden=str(number)),
    "floats": lambda number: [1, 1.0, True][number],
    "uuids": lambda number: uuid.UUID(int=number),
    "fractions": lambda number: fractions.Fraction(number, 7),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_examples_that_print_alike_are_run_each(make, tmp_path):
    program = Reader()
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="ok")))
    data = [
        dspy.Example(question="?", document=make(number)).with_inputs("question", "document") for number in range(3)
    ]
    optimizer = SiriuS(
        lambda *_: 1.0, iterations=1, collect=Collect(samples=1), augmenter=None, run_dir=tmp_path / "run"
    )
    optimizer.compile(program, trainset=data, valset=data)
    library = ExperienceLibrary(tmp_path / "run" / "library.sqlite")
    assert library.count(origin="rollout") == 3
    for example in data:
        read = library.example(example_key(example))
        assert type(read.document) is type(example.document)
        assert example_key(read) == example_key(example)


def test_an_example_that_cannot_be_stored_is_refused_by_name_before_the_first_call(tmp_path):
    lm = ToyLM(skill=lambda prompt: chat_reply(answer="ok"))
    program = Reader()
    program.set_lm(lm)
    good = dspy.Example(question="?", document="d").with_inputs("question", "document")
    bad = dspy.Example(question="?", document={"pages": [Vault(1)]}).with_inputs("question", "document")
    optimizer = SiriuS(lambda *_: 1.0, run_dir=tmp_path / "run")
    with pytest.raises(DatasetError, match=r"trainset\[1\].*Vault.*document\.pages\[0\]"):
        optimizer.compile(program, trainset=[good, bad], valset=[good])
    assert lm.calls == 0
