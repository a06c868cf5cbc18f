"""A PostgreSQL server for tests, and URLs of empty libraries."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy

from benchmarks.postgres import find_programs, running_server


@pytest.fixture(scope="session")
def postgres_server():
    """The URL of a server of its own on a Unix socket, so that two runs of the tests never meet."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with running_server(programs, "fsync=off") as server_url:
        yield server_url


@pytest.fixture(scope="session")
def new_postgres_url(postgres_server):
    """Makes an empty schema each time, and returns the URL of a library in it; a database each would take seconds."""
    engine = sqlalchemy.create_engine(postgres_server)

    def create():
        name = f"library_{uuid.uuid4().hex}"
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"CREATE SCHEMA {name}"))
        return f"{postgres_server}&options=-csearch_path={name}"

    yield create
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def url(request, tmp_path):
    """The URL of an empty library, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'library.db'}"
    return request.getfixturevalue("new_postgres_url")()
