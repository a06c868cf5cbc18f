"""The schema of the experience library: numbered migrations, and the tables they lead to.

Migrations are SQL text and never change once released, so that a file of any age takes the same way to the present;
the `Table` objects describe only the present, for queries. A test compares the two.

Anyone can read the file without us. Columns of type `JsonText` hold one JSON value each. Columns of type `NameText`
hold names, ids and fingerprints as they are, apart from JSON escapes for what is not printable ASCII. Both are
ASCII for one reason: LMs write NUL characters and lone surrogates, which PostgreSQL refuses and Arrow cannot hold.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Double, ForeignKey, MetaData, Table, Text, inspect, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from sirius_dspy.errors import LibraryDamagedError, LibraryVersionError

APPLICATION = "sirius_dspy"
"""Value of `created_by` in the table `meta`: how a library is told from another application's database."""

Migration = Callable[[Connection], None]
"""Brings the schema from one version to the next, inside the caller's transaction."""


class JsonText(TypeDecorator[Any]):
    """A JSON value as ASCII text; `None` is SQL NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """From Python to the database."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """From the database to Python."""
        return None if value is None else json.loads(value)


class NameText(TypeDecorator[str]):
    """A name: the inside of a JSON string, which for ordinary names is the name itself."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """From Python to the database."""
        return None if value is None else escaped_name(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """From the database to Python."""
        return None if value is None else json.loads(f'"{value}"')


def escaped_name(name: str) -> str:
    """What a `NameText` column stores for `name`."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a name: expected a string.")
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
    Column("reward_json", JsonText),  # as scored: a REAL column turns 1 into 1.0 and -0.0 into 0.0, and so the id
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

# Foreign keys are checked at the end of a transaction, so that the rows of one transaction may come in any order.
CREATE_RUNS = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """
    CREATE TABLE examples (
        key TEXT PRIMARY KEY,
        inputs TEXT NOT NULL,
        labels TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE trajectories (
        number {number},
        id TEXT NOT NULL UNIQUE,
        run TEXT NOT NULL,
        iteration BIGINT NOT NULL,
        sample BIGINT NOT NULL,
        seed BIGINT NOT NULL,
        origin TEXT NOT NULL,
        parent TEXT REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        edited BIGINT,
        example_key TEXT NOT NULL,
        program TEXT NOT NULL,
        reward DOUBLE PRECISION NOT NULL,
        reward_json TEXT NOT NULL,
        rewards TEXT NOT NULL,
        prediction TEXT,
        failure TEXT,
        seconds DOUBLE PRECISION NOT NULL,
        created_at TEXT NOT NULL,
        calls BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL
    )
    """,
    """
    CREATE TABLE steps (
        trajectory TEXT NOT NULL REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        position BIGINT NOT NULL,
        predictor TEXT NOT NULL,
        occurrence BIGINT NOT NULL,
        inputs TEXT NOT NULL,
        outputs TEXT,
        others TEXT NOT NULL,
        lm TEXT NOT NULL,
        failure TEXT,
        source TEXT NOT NULL,
        calls BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        seconds DOUBLE PRECISION NOT NULL,
        started BIGINT NOT NULL,
        ended BIGINT NOT NULL,
        num_demos BIGINT NOT NULL,
        PRIMARY KEY (trajectory, position)
    )
    """,
    # Each index ends with `number`, the order in which its rows are read.
    "CREATE INDEX trajectories_by_run ON trajectories (run, iteration, origin, number)",
    "CREATE INDEX trajectories_by_example ON trajectories (example_key, number)",
    "CREATE INDEX trajectories_by_parent ON trajectories (parent, number)",
)

CREATE_REPAIRS = (
    """
    CREATE TABLE repairs (
        number {number},
        id TEXT NOT NULL UNIQUE,
        parent TEXT NOT NULL REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        run TEXT NOT NULL,
        iteration BIGINT NOT NULL,
        seconds DOUBLE PRECISION NOT NULL
    )
    """,
    """
    CREATE TABLE attempts (
        repair TEXT NOT NULL REFERENCES repairs (id) DEFERRABLE INITIALLY DEFERRED,
        number BIGINT NOT NULL,
        position BIGINT NOT NULL,
        predictor TEXT NOT NULL,
        verdict TEXT NOT NULL,
        feedback TEXT,
        regenerated TEXT,
        rephrased TEXT,
        reward DOUBLE PRECISION,
        trajectory TEXT REFERENCES trajectories (id) DEFERRABLE INITIALLY DEFERRED,
        detail TEXT NOT NULL,
        calls BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        PRIMARY KEY (repair, number)
    )
    """,
    "CREATE INDEX repairs_by_run ON repairs (run, iteration, number)",
    "CREATE INDEX repairs_by_parent ON repairs (parent)",
    "CREATE INDEX attempts_by_trajectory ON attempts (trajectory)",
)

CREATE_UNFINISHED = (
    """
    CREATE TABLE unfinished (
        number {number},
        run TEXT NOT NULL,
        iteration BIGINT NOT NULL,
        sample BIGINT NOT NULL,
        seed BIGINT NOT NULL,
        origin TEXT NOT NULL,
        example_key TEXT NOT NULL,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        created_at TEXT NOT NULL
    )
    """,
    "CREATE INDEX unfinished_by_run ON unfinished (run, iteration, number)",
)

ADD_REQUESTS = (
    "CREATE TABLE requests (id TEXT PRIMARY KEY, prompt TEXT NOT NULL)",
    "ALTER TABLE steps ADD COLUMN request TEXT REFERENCES requests (id) DEFERRABLE INITIALLY DEFERRED",
    "ALTER TABLE steps ADD COLUMN signature TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE steps ADD COLUMN finish TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX steps_by_request ON steps (request)",
)

# A number that grows with each row: SQLite's own row id, PostgreSQL's identity column.
_NUMBER = {"sqlite": "INTEGER PRIMARY KEY", "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}


def create_runs(connection: Connection) -> None:
    """Version 1: what happened."""
    _execute(connection, CREATE_RUNS)
    born = {"created_by": APPLICATION, "created_at": datetime.now(UTC).isoformat(), "library_id": uuid.uuid4().hex}
    connection.execute(META.insert(), [{"key": key, "value": value} for key, value in born.items()])


def create_repairs(connection: Connection) -> None:
    """Version 2: what was tried about it."""
    _execute(connection, CREATE_REPAIRS)


def create_unfinished(connection: Connection) -> None:
    """Version 3: what did not end."""
    _execute(connection, CREATE_UNFINISHED)


def add_requests(connection: Connection) -> None:
    """Version 4: what was sent in each step, and how the reply ended."""
    _execute(connection, ADD_REQUESTS)


def _execute(connection: Connection, statements: Sequence[str]) -> None:
    number = _NUMBER[connection.dialect.name]
    for statement in statements:
        connection.execute(text(statement.format(number=number)))


MIGRATIONS: tuple[Migration, ...] = (create_runs, create_repairs, create_unfinished, add_requests)
"""The one at index n makes version n + 1."""

SCHEMA_VERSION = len(MIGRATIONS)


def schema_version(connection: Connection) -> int:
    """Version of the schema that a database has; 0 for one without any table of ours.

    Raises:
        LibraryDamagedError: The database belongs to another application, or has lost its version.
        LibraryVersionError: A newer version of sirius_dspy wrote it.
    """
    inspector = inspect(connection)
    names = set(inspector.get_table_names())
    # A SQLite file has one owner; a PostgreSQL database may hold the tables of others beside ours.
    foreign = names if connection.dialect.name == "sqlite" else names & set(METADATA.tables)
    if not foreign:
        return 0
    known = _read_meta(connection) if "meta" in names else {}
    if known.get("created_by") != APPLICATION or not known.get("schema_version", "").isdecimal():
        raise LibraryDamagedError(
            f"The database has the tables {sorted(foreign)!r}, but they are not those of an experience library: it "
            "belongs to another application, or lost its table `meta`. Nothing was changed. Choose another path or "
            "URL, or restore the library from a backup."
        )
    version = int(known["schema_version"])
    if version > SCHEMA_VERSION:
        raise LibraryVersionError(
            f"The library has schema version {version}, and this version of sirius_dspy knows versions up to "
            f"{SCHEMA_VERSION}. Nothing was changed. Run `pip install --upgrade sirius-dspy`."
        )
    return version


def _read_meta(connection: Connection) -> dict[str, str]:
    columns = {column["name"] for column in inspect(connection).get_columns("meta")}
    if not {"key", "value"} <= columns:
        return {}
    return {str(row.key): str(row.value) for row in connection.execute(META.select())}


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring a database, empty or of an older version, to the last of `migrations`.

    Args:
        connection: In a transaction that nobody else can write beside, which the caller commits: all steps or none.
        migrations: All of them from version 1 on.
    """
    version = schema_version(connection)
    for migration in migrations[version:]:
        migration(connection)
    if version < len(migrations):
        connection.execute(META.delete().where(META.c.key == "schema_version"))
        connection.execute(META.insert(), {"key": "schema_version", "value": str(len(migrations))})
