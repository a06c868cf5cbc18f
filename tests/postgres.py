"""A PostgreSQL server for tests, with the binaries of the distribution, and URLs of empty libraries."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy


@dataclass(frozen=True)
class PostgresServer:
    folder: Path
    user: str

    def url(self, schema="public"):
        return f"postgresql+psycopg://{self.user}@/postgres?host={self.folder}&options=-csearch_path={schema}"


@pytest.fixture(scope="session")
def postgres_server():
    """A server of its own on a Unix socket, with the binaries of the distribution."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Not pytest's folder: root owns that one, and PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="sirius-pg-"))
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    if os.geteuid() == 0:
        shutil.chown(folder, user)

    def start(program, *arguments):
        return subprocess.Popen(
            [programs / program, *arguments],
            user=user if os.geteuid() == 0 else None,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    cluster = folder / "cluster"
    assert start("initdb", "-D", cluster, "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync").wait() == 0
    # No TCP port, so that two runs of the tests never meet.
    server = start("postgres", "-D", cluster, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off")
    try:
        wait_for_postgres(PostgresServer(folder, user), server)
        yield PostgresServer(folder, user)
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.wait(30)
        shutil.rmtree(folder)


def find_postgres():
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wanted = ("initdb", "postgres")
    return next((path for path in candidates if all((path / name).exists() for name in wanted)), None)


def wait_for_postgres(server, process):
    engine = sqlalchemy.create_engine(server.url())
    waiting = threading.Event()
    for _ in range(300):
        assert process.poll() is None, "the PostgreSQL server ended"
        try:
            engine.connect().close()
            break
        except sqlalchemy.exc.OperationalError:
            waiting.wait(0.1)
    engine.dispose()


@pytest.fixture(scope="session")
def new_postgres_url(postgres_server):
    """Makes an empty schema each time, and returns the URL of a library in it; a database each would take seconds."""
    engine = sqlalchemy.create_engine(postgres_server.url())

    def create():
        name = f"library_{uuid.uuid4().hex}"
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"CREATE SCHEMA {name}"))
        return postgres_server.url(name)

    yield create
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def url(request, tmp_path):
    """The URL of an empty library, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'library.db'}"
    return request.getfixturevalue("new_postgres_url")()
