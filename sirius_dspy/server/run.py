"""Runs the server: takes the data folder, listens, and ends the worker with the last request."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sirius_dspy.errors import ServerError
from sirius_dspy.server.app import create_app
from sirius_dspy.server.backend import Backend
from sirius_dspy.server.connections import impatient_protocol
from sirius_dspy.server.files import Files
from sirius_dspy.server.jobs import Jobs
from sirius_dspy.server.models import Models
from sirius_dspy.server.settings import ServerSettings
from sirius_dspy.server.store import locked


class Server:
    """A fine-tuning server with OpenAI's API.

    Args:
        settings: Where it listens, and its limits.
        backend: What answers and trains.
    """

    def __init__(self, settings: ServerSettings, backend: Backend) -> None:
        self.settings = settings
        self.backend = backend
        self._uvicorn: uvicorn.Server | None = None

    def run(self, on_ready: Callable[[str], None] = lambda url: None) -> None:
        """Serve until an interrupt or `stop`.

        Args:
            on_ready: Called with the `api_base` for clients as soon as connections are accepted.

        Raises:
            ServerError: The folder is in use or damaged, or the address cannot be listened at.
        """
        with locked(self.settings.data), _listen(self.settings) as listener:
            models = Models(self.settings.data, self.backend)
            files = Files(self.settings.data)
            jobs = Jobs(self.settings.data, self.backend, files, models)
            self._uvicorn = uvicorn.Server(self._config(create_app(self.settings, self.backend, models, files, jobs)))
            jobs.start()
            try:
                on_ready(_url(listener))
                self._uvicorn.run(sockets=[listener])
            finally:
                jobs.close()

    def stop(self) -> None:
        """End `run` after the requests in progress; for another thread."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def _config(self, app: FastAPI) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            http=impatient_protocol(self.settings.header_timeout_s),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=self.settings.max_connections,
            timeout_graceful_shutdown=5,
        )


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except (OSError, OverflowError) as error:
        raise ServerError(
            f"The server cannot listen at {settings.host}, port {settings.port}: {error}. Pass another `--port` or "
            "`--host`; port 0 takes a free one."
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
