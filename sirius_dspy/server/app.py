"""The web application: all routes, and how errors are answered."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from sirius_dspy.server.answers import answer_error, answer_invalid
from sirius_dspy.server.backend import Backend
from sirius_dspy.server.chat import chat_routes
from sirius_dspy.server.files import Files
from sirius_dspy.server.finetuning import file_routes, job_routes
from sirius_dspy.server.jobs import Jobs
from sirius_dspy.server.models import Models
from sirius_dspy.server.security import Guard
from sirius_dspy.server.settings import ServerSettings


def create_app(settings: ServerSettings, backend: Backend, models: Models, files: Files, jobs: Jobs) -> FastAPI:
    """Put the server together. It has no pages: a browser has no business here."""
    app = FastAPI(title="sirius-dspy", docs_url=None, redoc_url=None, openapi_url=None)
    for routes in (chat_routes(backend, models), file_routes(files), job_routes(jobs)):
        app.include_router(routes)
    app.add_exception_handler(HTTPException, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_error)
    app.add_middleware(Guard, settings=settings)
    return app
