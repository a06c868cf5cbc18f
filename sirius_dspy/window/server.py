"""The page of a window, served to browsers on this machine alone.

A page of another site may send requests here, too. It gets no answer that it can read, since no header allows it; its
requests to do something carry its own `Origin` and lack the token; and where it gave this machine a name of its own
(DNS rebinding), the `Host` is wrong.
"""

from __future__ import annotations

import dataclasses
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sirius_dspy.errors import MissingDependencyError, SiriuSError
from sirius_dspy.optimizer.hold import Wish
from sirius_dspy.window.read import Window
from sirius_dspy.window.views import View

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

TOKEN_HEADER = "x-sirius-token"

WISHES: dict[str, Wish | None] = {"pause": "pause", "stop": "stop", "go-on": None}
"""Path below `/ask/` to what it asks for."""

READ_S = 0.5
"""Seconds for which all browsers get the same answer."""

_LOCAL = ("127.0.0.1", "localhost", "::1")

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(window: Window, listener: socket.socket) -> None:
    """Serve the page until Ctrl-C.

    Args:
        window: What it shows.
        listener: A socket that is bound to an address of this machine, and listens.

    Raises:
        MissingDependencyError: FastAPI or uvicorn is not installed.
    """
    app = make_app(window)
    try:
        import uvicorn
    except ImportError as error:
        raise _missing() from error
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def make_app(window: Window) -> FastAPI:
    """Make the application: the page, its two files, the state as JSON, and what can be asked of the compile.

    Raises:
        MissingDependencyError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI
        from fastapi.responses import JSONResponse, Response
    except ImportError as error:
        raise _missing() from error
    token = secrets.token_urlsafe(32)
    reader = _Reader(window)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages load scripts from elsewhere

    def send_page(request: Request) -> Response:
        return Response(_file("page.html").replace("{{ token }}", token), media_type="text/html")

    def send_style(request: Request) -> Response:
        return Response(_file("page.css"), media_type="text/css")

    def send_script(request: Request) -> Response:
        return Response(_file("page.js"), media_type="text/javascript")

    def send_state(request: Request) -> Response:
        try:
            return JSONResponse(dataclasses.asdict(reader.read()))
        except (SiriuSError, OSError) as error:
            return JSONResponse({"error": str(error)}, status_code=503)

    def ask(request: Request) -> Response:
        if not secrets.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), token.encode()):
            return JSONResponse({"error": "The token is missing or wrong. Load the page again."}, status_code=403)
        if (name := request.path_params["wish"]) not in WISHES:
            return JSONResponse({"error": f"Nobody can ask for {name!r}."}, status_code=404)
        try:
            window.ask_for(WISHES[name])
        except (SiriuSError, OSError) as error:
            return JSONResponse({"error": str(error)}, status_code=409)
        return JSONResponse(dataclasses.asdict(reader.read(anew=True)))

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not _is_local(host) or origin not in (None, f"http://{host}"):
            refusal = "This page is only for browsers on its own machine, at http://localhost or http://127.0.0.1."
            return JSONResponse({"error": refusal}, status_code=403)
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    files: dict[str, Callable[[Any], Response]] = {
        "/": send_page,
        "/page.css": send_style,
        "/page.js": send_script,
        "/state.json": send_state,
    }
    for path, send in files.items():
        app.add_route(path, send)
    app.add_route("/ask/{wish}", ask, methods=["POST"])
    return app


class _Reader:
    """Reads the state for all browsers at once; several threads answer them."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._lock = threading.Lock()  # protects both below, and the window
        self._view: View | None = None
        self._read = 0.0

    def read(self, *, anew: bool = False) -> View:
        with self._lock:
            if self._view is None or anew or time.monotonic() - self._read >= READ_S:
                self._view = self._window.read()
                self._read = time.monotonic()
            return self._view


def _is_local(host: str) -> bool:
    """Whether a `Host` header names this machine by a name that nobody else can give it; any port, for tunnels."""
    try:
        return urlsplit(f"//{host}").hostname in _LOCAL
    except ValueError:
        return False


def _file(name: str) -> str:
    return (resources.files("sirius_dspy.window") / "page" / name).read_text(encoding="utf-8")


def _missing() -> MissingDependencyError:
    return MissingDependencyError("The page needs FastAPI and uvicorn. Run `pip install 'sirius-dspy[serve]'`.")
