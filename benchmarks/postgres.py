"""A PostgreSQL server that lives as long as a measurement, with the binaries of the distribution."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

START_S = 30.0
"""How long the server may take to accept a connection."""


@contextmanager
def run_postgres() -> Iterator[str]:
    """The URL of a new database, whose server ends with the context.

    Raises:
        RuntimeError: There are no binaries, or the server does not start.
    """
    found = shutil.which("initdb")
    if found is None or shutil.which("postgres") is None:
        raise RuntimeError("PostgreSQL is not installed: `initdb` and `postgres` are not on PATH. Give a `--library`.")
    is_root = os.geteuid() == 0
    user = "nobody" if is_root else getpass.getuser()  # PostgreSQL refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="sirius-pg-"))
    if is_root:
        shutil.chown(folder, user)

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(Path(found).resolve().parent / program), "-D", str(folder / "cluster"), *arguments]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, user=user if is_root else None, cwd=folder, stdout=quiet, stderr=quiet)

    try:
        if start("initdb", "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync").wait():
            raise RuntimeError(f"`initdb` could not make a database in {folder}.")
        server = start("postgres", "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off")
        try:
            url = f"postgresql+psycopg://{user}@/postgres?host={folder}"
            _wait_until_ready(url)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait()
    finally:
        shutil.rmtree(folder)


def _wait_until_ready(url: str) -> None:
    engine, began = sa.create_engine(url), time.monotonic()
    while True:
        try:
            engine.connect().close()
            break
        except sa.exc.OperationalError as error:
            if time.monotonic() - began > START_S:
                raise RuntimeError(f"The PostgreSQL server did not start within {START_S:g} s.") from error
            time.sleep(0.1)
    engine.dispose()
