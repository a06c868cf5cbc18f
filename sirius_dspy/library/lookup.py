"""Finds one trajectory by the beginning of its id, or one example by its key, and says so where there is none."""

from __future__ import annotations

import sqlalchemy as sa

from sirius_dspy.errors import LibraryError
from sirius_dspy.library import queries
from sirius_dspy.library.database import Database
from sirius_dspy.library.schema import EXAMPLES
from sirius_dspy.trajectory import Values

_LISTED_IDS = 5
"""Ids in the message about a prefix that several ids share."""


def find_id(database: Database, prefix: str) -> str:
    """Return the id that begins with a prefix; the prefix itself if none does.

    Raises:
        LibraryError: More than one does.
    """
    with database.read() as connection:
        ids = queries.find_ids(connection, prefix, _LISTED_IDS + 1)
    if len(ids) > 1 and prefix not in ids:
        listed = ", ".join(map(repr, ids[:_LISTED_IDS])) + (" and others" if len(ids) > _LISTED_IDS else "")
        raise LibraryError(f"More than one trajectory begins with {prefix!r}: {listed}. Give more of the id.")
    return prefix if not ids or prefix in ids else ids[0]


def read_example(database: Database, key: str) -> tuple[Values, Values]:
    """Return the inputs and labels of the example with a key.

    Raises:
        LibraryError: There is none.
    """
    with database.read() as connection:
        row = connection.execute(sa.select(EXAMPLES).where(EXAMPLES.c.key == key)).one_or_none()
    if row is None:
        raise LibraryError(
            f"The library {database.public_url!r} has no example {key!r}. Pass examples to `add`, or look the key up "
            "in the dataset with `example_key`."
        )
    return row.inputs, row.labels
