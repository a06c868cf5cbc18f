"""The numbered migrations that bring a library of any version to the present schema.

Migrations are SQL text and never change once they are released, so that a file of any age takes the same path to the
present. The tables of `schema` describe only the present, for queries; a test compares the two.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime

from sqlalchemy import Connection, inspect, text

from sirius_dspy.errors import LibraryDamagedError, LibraryVersionError
from sirius_dspy.library.schema import META, METADATA

APPLICATION = "sirius_dspy"
"""Value of `created_by` in the table `meta`, which tells a library from the database of another application."""

Migration = Callable[[Connection], None]
"""Brings the schema from one version to the next, inside the caller's transaction."""

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

ADD_RUNGS = (
    "ALTER TABLE attempts ADD COLUMN rung TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE attempts ADD COLUMN reliance DOUBLE PRECISION",
)

# It was used only where requests are deleted, and made each insertion of a step change one more page.
DROP_STEPS_BY_REQUEST = ("DROP INDEX steps_by_request",)

# Readers go by numbers, so what they name comes before the number, and what only some of them name after it: otherwise
# each page of a list is sorted out of all rows that are left. SQLite takes the newest of two indexes that seem equally
# good to it, so the narrower ones are made again.
INDEX_BY_NUMBER = (
    "DROP INDEX trajectories_by_run",
    "DROP INDEX trajectories_by_example",
    "DROP INDEX trajectories_by_parent",
    "CREATE INDEX trajectories_by_run ON trajectories (run, number, origin)",
    "CREATE INDEX trajectories_by_iteration ON trajectories (run, iteration, number, origin)",
    "CREATE INDEX trajectories_by_example ON trajectories (example_key, number)",
    "CREATE INDEX trajectories_by_parent ON trajectories (parent, number)",
)

# A number that grows with each row: SQLite's own row id, PostgreSQL's identity column.
_NUMBER = {"sqlite": "INTEGER PRIMARY KEY", "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}


def create_runs(connection: Connection) -> None:
    """Make version 1: the runs and their steps."""
    _execute(connection, CREATE_RUNS)
    meta = {"created_by": APPLICATION, "created_at": datetime.now(UTC).isoformat(), "library_id": uuid.uuid4().hex}
    connection.execute(META.insert(), [{"key": key, "value": value} for key, value in meta.items()])


def create_repairs(connection: Connection) -> None:
    """Make version 2: the repairs of failed runs and their attempts."""
    _execute(connection, CREATE_REPAIRS)


def create_unfinished(connection: Connection) -> None:
    """Make version 3: the runs that did not end."""
    _execute(connection, CREATE_UNFINISHED)


def add_requests(connection: Connection) -> None:
    """Make version 4: the request that each step sent, and why its reply ended."""
    _execute(connection, ADD_REQUESTS)


def add_rungs(connection: Connection) -> None:
    """Make version 5: the kind of help in each attempt, and how much the text relies on it."""
    _execute(connection, ADD_RUNGS)


def drop_steps_by_request(connection: Connection) -> None:
    """Make version 6: no index of the steps by their request."""
    _execute(connection, DROP_STEPS_BY_REQUEST)


def index_by_number(connection: Connection) -> None:
    """Make version 7: indexes of the runs in the order in which they are read."""
    _execute(connection, INDEX_BY_NUMBER)


def _execute(connection: Connection, statements: Sequence[str]) -> None:
    number = _NUMBER[connection.dialect.name]
    for statement in statements:
        connection.execute(text(statement.format(number=number)))


MIGRATIONS: tuple[Migration, ...] = (
    create_runs,
    create_repairs,
    create_unfinished,
    add_requests,
    add_rungs,
    drop_steps_by_request,
    index_by_number,
)
"""The migration at index n makes version n + 1."""

SCHEMA_VERSION = len(MIGRATIONS)


def schema_version(connection: Connection) -> int:
    """Return the version of the schema that a database has; 0 if it has no table of this package.

    Raises:
        LibraryDamagedError: The database belongs to another application, or has lost its version.
        LibraryVersionError: A newer version of sirius_dspy wrote it.
    """
    names = set(inspect(connection).get_table_names())
    # A SQLite file has one owner; a PostgreSQL database may hold the tables of others beside ours.
    tables = names if connection.dialect.name == "sqlite" else names & set(METADATA.tables)
    if not tables:
        return 0
    version = _read_version(connection, tables)
    if version > SCHEMA_VERSION:
        raise LibraryVersionError(
            f"The library has schema version {version}, and this version of sirius_dspy reads versions up to "
            f"{SCHEMA_VERSION}. Nothing was changed. Run `pip install --upgrade sirius-dspy`."
        )
    return version


def _read_version(connection: Connection, tables: Set[str]) -> int:
    meta = _read_meta(connection) if "meta" in tables else {}
    version = meta.get("schema_version", "")
    if meta.get("created_by") != APPLICATION or not version.isdecimal():
        raise LibraryDamagedError(
            f"The database has the tables {sorted(tables)!r}, but they are not those of an experience library: it "
            "belongs to another application, or lost its table `meta`. Nothing was changed. Choose another path or "
            "URL, or restore the library from a backup."
        )
    return int(version)


def _read_meta(connection: Connection) -> dict[str, str]:
    columns = {column["name"] for column in inspect(connection).get_columns("meta")}
    if not {"key", "value"} <= columns:
        return {}
    return {str(row.key): str(row.value) for row in connection.execute(META.select())}


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring an empty database, or one of an older version, to the last of `migrations`.

    Args:
        connection: In a transaction that excludes other writers. The caller commits it, so all steps take effect or
            none.
        migrations: All migrations, from version 1 on.
    """
    version = schema_version(connection)
    for migration in migrations[version:]:
        migration(connection)
    if version < len(migrations):
        connection.execute(META.delete().where(META.c.key == "schema_version"))
        connection.execute(META.insert(), {"key": "schema_version", "value": str(len(migrations))})
