"""MkDocs hook: the schema of the experience library, read from a database that the library itself has just made.

`<!-- tables -->` becomes a list of every table's columns, `<!-- statements -->` the SQL that is in the database. What
a column means is the docstring of the field that it stores.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import sqlalchemy as sa

from sirius_dspy import ExperienceLibrary
from sirius_dspy.library.migrations import SCHEMA_VERSION
from sirius_dspy.library.schema import METADATA, JsonText, NameText

STORED = {"trajectories": "Trajectory", "steps": "Step", "repairs": "Repair", "attempts": "Attempt"}
"""Table to the value in `sirius_dspy.trajectory` whose fields its columns hold."""

MEANINGS = {
    "calls": "LM calls; answers from a cache or a recording count nothing",
    "completion_tokens": "written by the LM",
    "created_at": "UTC, ISO 8601",
    "detail": "why, in words; empty if there is nothing to say",
    "ended": "the same clock as `started`",
    "example_key": "of the example it ran on",
    "failure": "kind, message, and what the LM wrote if that did not parse",
    "feedback": "the critic's",
    "id": "content hash",
    "inputs": "field to value",
    "iteration": "of the compile, from 1; 0 is the student as given",
    "key": "what the row is called",
    "kind": "class of the exception",
    "labels": "the gold fields",
    "message": "of the exception",
    "number": "order of insertion",
    "origin": "`rollout`, `repair`, `validation` or `imported`",
    "position": "index of the step in its trajectory, from 0",
    "predictor": "whose step was edited",
    "prompt": "the messages that were sent, less demonstrations",
    "prompt_tokens": "read by the LM",
    "regenerated": "what the agent answered with the feedback",
    "repair": "that it was part of",
    "request": "what was sent; NULL where it cannot be a training prompt",
    "reward_json": "the reward as scored: a REAL column turns 1 into 1.0, and so the content hash",
    "run": "the compile that made it",
    "sample": "which try at the example, from 0; in `validation`, which candidate",
    "seconds": "that it took",
    "seed": "of the compile",
    "source": "`live`, `recorded` (replayed) or `edited`",
    "trajectory": "that the step is part of",
    "value": "of the key",
}
"""Column to meaning, where neither the column nor a field says it."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page."""
    if "<!-- tables -->" not in markdown:
        return markdown
    tables, statements = _printed()
    version = str(SCHEMA_VERSION)
    replaced = markdown.replace("<!-- tables -->", tables).replace("<!-- statements -->", statements)
    return replaced.replace("<!-- version -->", version)


@cache
def _printed() -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.sqlite"
        with ExperienceLibrary(path) as library:
            library.count()  # the first use makes the database
        with closing(sqlite3.connect(path)) as connection:
            names = [name for name in METADATA.tables if _exists(connection, name)]
            tables = "\n\n".join("\n".join(_table(connection, name)) for name in names)
            return tables, _statements(connection)


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone() is not None


def _table(connection: sqlite3.Connection, table: str) -> Iterator[str]:
    """A heading, and a row per column: name, SQL type, what the text in it is, whether it may be NULL, meaning."""
    columns = METADATA.tables[table].columns
    references = {row[3]: f"{row[2]}.{row[4]}" for row in connection.execute(f"PRAGMA foreign_key_list({table})")}
    yield f"### `{table}`"
    yield ""
    yield "| column | type | holds | meaning |"
    yield "| --- | --- | --- | --- |"
    for _, name, kind, required, _, key in connection.execute(f"PRAGMA table_info({table})"):
        nullable = "" if required or key else ", may be NULL"
        link = f"→ `{references[name]}`" if name in references else _held(columns[name].type)
        yield f"| `{name}` | {kind}{nullable} | {link} | {_meaning(table, columns[name])} |"


def _held(kind: sa.types.TypeEngine[Any]) -> str:
    return "JSON" if isinstance(kind, JsonText) else "name" if isinstance(kind, NameText) else ""


def _meaning(table: str, column: sa.Column[Any]) -> str:
    """The column's own comment, else the docstring of the field that it stores, else ours."""
    fields = _fields(STORED[table]) if table in STORED else {}
    meaning = column.comment or fields.get(column.name) or MEANINGS[column.name]
    return " ".join(meaning.split()).replace("|", r"\|")


@cache
def _fields(value: str) -> dict[str, str]:
    """Field name to docstring; Python itself forgets them."""
    found = griffe.load("sirius_dspy.trajectory")[value]
    return {name: member.docstring.value for name, member in found.members.items() if member.docstring}


def _statements(connection: sqlite3.Connection) -> str:
    rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    return "```sql\n" + "\n".join(f"{_tidied(sql)};" for (sql,) in rows) + "\n```"


def _tidied(statement: str) -> str:
    """Without the indentation that the statement has in our source."""
    return re.sub(r"^ {4}", "", statement.strip(), flags=re.MULTILINE)
