"""The tables of the experience library as they are today.

Anyone can read the database without this package. Columns of type `JsonText` hold one JSON value each. Columns of type
`NameText` hold names, ids and fingerprints as they are, apart from JSON escapes for everything but printable ASCII.
Both are ASCII for one reason: LMs write NUL characters and lone surrogates, which PostgreSQL refuses and Arrow cannot
hold.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
from sqlalchemy import BigInteger, Column, Double, ForeignKey, MetaData, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

OWN_TYPES_ONLY = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
"""Makes orjson refuse most of what is not of one of JSON's own types."""


class JsonSource(str):
    """The JSON text of a value, which is stored without being read and written again."""

    __slots__ = ()


class JsonText(TypeDecorator[Any]):
    """A JSON value as ASCII text; `None` is SQL NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Convert a value of Python for the database."""
        return None if value is None else to_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Convert a value of the database for Python."""
        return None if value is None else json.loads(value)


class NameText(TypeDecorator[str]):
    """A name: the inside of a JSON string, which for ordinary names is the name itself."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Convert a value of Python for the database."""
        return None if value is None else escape_name(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Convert a value of the database for Python."""
        return None if value is None else json.loads(f'"{value}"')


def to_json(value: Any) -> str:
    """Return what a `JsonText` column stores for a value."""
    if isinstance(value, JsonSource):
        text = str(value)
        if not text.isascii():
            return json.dumps(json.loads(text))  # not orjson, which makes floats of whole numbers beyond 64 bits
        _check_json(text)
        return text
    if not value and isinstance(value, list | dict):
        return "[]" if isinstance(value, list) else "{}"  # as JSON would say, only faster
    return _dump_fast(value) or json.dumps(value)


def _dump_fast(value: Any) -> str | None:
    """Return JSON in a sixth of the time of Python's `json`, or `None` where the two may differ in more than spaces.

    They do beyond ASCII, for NaN, which orjson writes as null, and for what is not of one of JSON's own types.
    """
    try:
        text = orjson.dumps(value, option=OWN_TYPES_ONLY)
    except TypeError:
        return None
    return text.decode() if text.isascii() and b"null" not in text else None


def _check_json(text: str) -> None:
    try:
        orjson.loads(text)  # the faster one, which refuses NaN
    except orjson.JSONDecodeError:
        json.loads(text)


def escape_name(name: str) -> str:
    """Return what a `NameText` column stores for a name."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a name: expected a string.")
    if type(name) is str and name.isascii() and name.isprintable() and '"' not in name and "\\" not in name:
        return name  # as JSON would say, only faster: there are a dozen names in a step
    return json.dumps(name)[1:-1]


METADATA = MetaData()

META = Table("meta", METADATA, Column("key", Text, primary_key=True), Column("value", Text))

EXAMPLES = Table(
    "examples",
    METADATA,
    Column("key", NameText, primary_key=True),
    Column("inputs", JsonText),
    Column("labels", JsonText),
)

TRAJECTORIES = Table(
    "trajectories",
    METADATA,
    Column("number", BigInteger, primary_key=True),  # order of insertion; identity is `id`, the content hash
    Column("id", NameText, unique=True),
    Column("run", NameText),
    Column("iteration", BigInteger),
    Column("sample", BigInteger),
    Column("seed", BigInteger),
    Column("origin", NameText),
    Column("parent", NameText, ForeignKey("trajectories.id")),
    Column("edited", BigInteger),
    Column("example_key", NameText),
    Column("program", NameText),
    Column("reward", Double),  # for queries
    Column(
        "reward_json", JsonText
    ),  # as the metric gave it: a REAL column turns 1 into 1.0 and -0.0 into 0.0, and so the id
    Column("rewards", JsonText),
    Column("prediction", JsonText),
    Column("failure", JsonText),
    Column("seconds", Double),
    Column("created_at", NameText),
    Column("calls", BigInteger),  # this and the two below: sums over the steps
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
)

STEPS = Table(
    "steps",
    METADATA,
    Column("trajectory", NameText, ForeignKey("trajectories.id"), primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("predictor", NameText),
    Column("occurrence", BigInteger),
    Column("inputs", JsonText),
    Column("outputs", JsonText),
    Column("others", JsonText),  # further completions, a list like `[outputs, …]`
    Column("lm", NameText),
    Column("failure", JsonText),
    Column("source", NameText),
    Column("calls", BigInteger),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("seconds", Double),
    Column("started", BigInteger),
    Column("ended", BigInteger),
    Column("num_demos", BigInteger),
    Column("request", NameText, ForeignKey("requests.id")),  # what was sent; NULL where it cannot be a training row
    Column("signature", NameText),  # fingerprint of the call's signature
    Column("finish", NameText),  # why the LM stopped; `length`: it was cut off
)

# Many runs of an example begin with the same request, so each is stored once, under its content hash.
REQUESTS = Table("requests", METADATA, Column("id", NameText, primary_key=True), Column("prompt", JsonText))

REPAIRS = Table(
    "repairs",
    METADATA,
    Column("number", BigInteger, primary_key=True),
    Column("id", NameText, unique=True),
    Column("parent", NameText, ForeignKey("trajectories.id")),
    Column("run", NameText),
    Column("iteration", BigInteger),
    Column("seconds", Double),
)

ATTEMPTS = Table(
    "attempts",
    METADATA,
    Column("repair", NameText, ForeignKey("repairs.id"), primary_key=True),
    Column("number", BigInteger, primary_key=True),  # order of the attempts in their repair
    Column("position", BigInteger),  # of the edited step in the failed trajectory
    Column("predictor", NameText),
    Column("verdict", NameText),
    Column("feedback", JsonText),
    Column("regenerated", JsonText),
    Column("rephrased", JsonText),
    Column("reward", Double),
    Column("trajectory", NameText, ForeignKey("trajectories.id")),
    Column("detail", JsonText),
    Column("calls", BigInteger),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("rung", NameText),  # name of the augmenter that helped, in a ladder of several
    Column("reliance", Double),
)

UNFINISHED = Table(
    "unfinished",
    METADATA,
    Column("number", BigInteger, primary_key=True),
    Column("run", NameText),
    Column("iteration", BigInteger),
    Column("sample", BigInteger),
    Column("seed", BigInteger),
    Column("origin", NameText),
    Column("example_key", NameText),
    Column("kind", NameText),
    Column("message", JsonText),
    Column("created_at", NameText),
)
