"""A PostgreSQL server for a while, with the binaries of the distribution."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


def find_programs() -> Path | None:
    """Return the folder with `initdb` and `postgres`; `None` if there is none."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in candidates if all((path / name).exists() for name in ("initdb", "postgres"))), None)


@contextmanager
def running_server(programs: Path, *settings: str) -> Iterator[str]:
    """Start a server on a Unix socket, yield the URL of its database, and delete all of it at the end.

    Args:
        programs: The result of `find_programs`.
        settings: Such as `shared_buffers=512MB`.
    """
    folder = Path(tempfile.mkdtemp(prefix="sirius-pg-"))
    is_root = os.geteuid() == 0  # PostgreSQL refuses to run as root
    user = "nobody" if is_root else getpass.getuser()
    if is_root:
        shutil.chown(folder, user)

    def start(program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [programs / program, *arguments]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, user=user if is_root else None, cwd=folder, stdout=quiet, stderr=quiet)

    cluster = folder / "cluster"
    try:
        if start("initdb", "-D", cluster, "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync").wait():
            raise RuntimeError("initdb failed")
        options = [part for setting in ("listen_addresses=", *settings) for part in ("-c", setting)]
        server = start("postgres", "-D", cluster, "-k", folder, *options)
        try:
            url = f"postgresql+psycopg://{user}@/postgres?host={folder}"
            _wait(url, server)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait(30)
    finally:
        shutil.rmtree(folder)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    engine = sa.create_engine(url)
    waiting = threading.Event()
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError("the PostgreSQL server ended")
        try:
            engine.connect().close()
            break
        except sa.exc.OperationalError:
            waiting.wait(0.1)
    engine.dispose()
