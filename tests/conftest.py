"""Every test starts from DSPy's defaults, keeps its files to itself and cannot reach beyond this machine."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")  # one for each worker, before dspy is imported

import dspy
import hypothesis
import pytest

from tests.postgres import new_postgres_url as new_postgres_url
from tests.postgres import postgres_server as postgres_server
from tests.postgres import url as url

atexit.register(shutil.rmtree, os.environ["DSPY_CACHEDIR"], ignore_errors=True)
pytest.register_assert_rewrite("sirius_dspy.testing")

# A busy machine is no error: neither a slow example nor slow data fails a test.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")

LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a file to one worker, since its tests share fixtures, and all tests of the embedded model to one as well.

    The model's tests are the largest group, so they come first: else one worker would wait for the other at the end.
    """
    for item in items:
        needs_model = item.get_closest_marker("local") is not None
        item.add_marker(pytest.mark.xdist_group("local" if needs_model else item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("local") is None)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let interrupts through: a shell starts background jobs, and so perhaps CI, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def only_this_machine() -> Iterator[None]:
    """Fail a connection to any other host: the embedded default needs none."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def dspy_defaults() -> Iterator[None]:
    """Undo `dspy.configure` after each test, and keep answers out of the disk cache."""
    config = sys.modules["dspy.dsp.utils.settings"].main_thread_config  # the package shows its object by this name
    before = dict(config)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    config.clear()
    config.update(before)


@pytest.fixture(autouse=True)
def logger_levels() -> Iterator[None]:
    """Restore the levels that the command line sets for its whole process."""
    loggers = [logging.getLogger(name) for name in ("dspy", "alembic", "mlflow")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def chat_adapter(dspy_defaults: None) -> Iterator[None]:
    """DSPy's chat adapter, which does not ask again for JSON; DSPy does not log every reply that it cannot parse."""
    from tests.toy import ADAPTER  # late, so that pytest rewrites the assertions of `sirius_dspy.testing`

    dspy.configure(adapter=ADAPTER)
    logger = logging.getLogger("dspy")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def sirius_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home folder of this test run's own."""
    patch = pytest.MonkeyPatch()
    if "SIRIUS_HOME" not in os.environ:
        patch.setenv("SIRIUS_HOME", str(tmp_path_factory.mktemp("sirius-home")))
    yield
    patch.undo()
