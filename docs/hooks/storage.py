"""MkDocs hook: the schema of the experience library, read from a new database.

`<!-- tables -->` becomes a list of the columns of each table, `<!-- statements -->` the SQL of the database. The
meaning of a column is the docstring of the field that it stores.
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
    "calls": "LM calls; answers from a cache or a recording do not count",
    "completion_tokens": "tokens that the LM wrote",
    "created_at": "UTC, ISO 8601",
    "detail": "the reason, in words; empty if there is none",
    "ended": "time of the same clock as `started`",
    "example_key": "key of the example",
    "failure": "kind, message, and the text of the LM if it did not parse",
    "feedback": "feedback of the critic",
    "id": "content hash",
    "inputs": "field to value",
    "iteration": "iteration of the compile, from 1; 0 is the untrained student",
    "key": "name of the row",
    "kind": "class of the exception",
    "labels": "fields with the correct answer",
    "message": "message of the exception",
    "number": "order of insertion",
    "origin": "`rollout`, `repair`, `confirmation`, `credit`, `validation`, `demonstration` or `imported`",
    "position": "index of the step in its trajectory, from 0",
    "predictor": "predictor whose step was edited",
    "prompt": "the messages that were sent, without demonstrations",
    "prompt_tokens": "tokens that the LM read",
    "regenerated": "the agent's answer after the feedback",
    "repair": "repair that the attempt belongs to",
    "request": "digest of the prompt that was sent; NULL if it cannot be a training prompt",
    "reward_json": "the reward as scored; a REAL column would turn 1 into 1.0 and change the content hash",
    "run": "id of the compile",
    "sample": "number of the run of this example, from 0; in `validation`, number of the candidate",
    "seconds": "duration",
    "seed": "seed of the compile",
    "source": "`live`, `recorded` (replayed) or `edited`",
    "trajectory": "trajectory that the step belongs to",
    "value": "value of the key",
}
"""Column to meaning, if neither the column nor a field has a description."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of one page."""
    if "<!-- tables -->" not in markdown:
        return markdown
    tables, statements = _describe()
    version = str(SCHEMA_VERSION)
    replaced = markdown.replace("<!-- tables -->", tables).replace("<!-- statements -->", statements)
    return replaced.replace("<!-- version -->", version)


@cache
def _describe() -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.sqlite"
        with ExperienceLibrary(path) as library:
            library.count()  # the first use creates the database
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
        link = f"→ `{references[name]}`" if name in references else _content(columns[name].type)
        yield f"| `{name}` | {kind}{nullable} | {link} | {_explain(table, columns[name])} |"


def _content(kind: sa.types.TypeEngine[Any]) -> str:
    return "JSON" if isinstance(kind, JsonText) else "name" if isinstance(kind, NameText) else ""


def _explain(table: str, column: sa.Column[Any]) -> str:
    """The column's comment, or the docstring of the field that it stores, or the text above."""
    fields = _fields(STORED[table]) if table in STORED else {}
    meaning = column.comment or fields.get(column.name) or MEANINGS[column.name]
    return " ".join(meaning.split()).replace("|", r"\|")


@cache
def _fields(value: str) -> dict[str, str]:
    """Field name to docstring, which Python does not keep."""
    members = griffe.load("sirius_dspy.trajectory")[value].members
    return {name: member.docstring.value for name, member in members.items() if member.docstring}


def _statements(connection: sqlite3.Connection) -> str:
    rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    return "```sql\n" + "\n".join(f"{_dedent(sql)};" for (sql,) in rows) + "\n```"


def _dedent(statement: str) -> str:
    """Remove the indentation that the statement has in our source."""
    return re.sub(r"^ {4}", "", statement.strip(), flags=re.MULTILINE)
