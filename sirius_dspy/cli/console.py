"""Helpers of all commands for exit codes, output and tables."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sirius_dspy.errors import SiriuSError

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_WIDE = 160
"""Width of a wide table in a file or a pipe, which have no width."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]


@contextlib.contextmanager
def exit_cleanly(how_to_resume: str = "", *, failed: int = 1) -> Iterator[None]:
    """Turn errors of this package into a message and an exit code.

    Args:
        how_to_resume: Printed after an interrupt.
        failed: Exit code of a command that failed.
    """
    _quiet_libraries()
    if (
        os.getcwd() not in sys.path
    ):  # the module of a program may be in the working directory; installed ones come first
        sys.path.append(os.getcwd())
    try:
        yield
    except (SiriuSError, OSError) as error:
        complain(str(error))
        raise typer.Exit(failed) from error
    except KeyboardInterrupt as interrupt:
        complain(f"Interrupted. {how_to_resume}".strip())
        raise typer.Exit(130) from interrupt


def complain(message: str) -> None:
    """Print an error to stderr."""
    Console(stderr=True).print(Text(f"sirius-dspy: {message}"), soft_wrap=True)


def stdout_kept_clean() -> contextlib.AbstractContextManager[Any]:
    """Redirect the output of libraries to stderr."""
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def dspy_silent() -> Iterator[None]:
    """Disable DSPy's progress bars and its traceback per example, which would hide the output of an experiment."""
    logger = logging.getLogger("dspy")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


def _quiet_libraries() -> None:
    """Silence messages that are normal here: replies cut at `max_tokens`, new MLflow tables, loading bars."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("dspy", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def wide_console() -> Console:
    """Return a console for stdout that does not shrink tables in files and pipes."""
    return Console(width=None if sys.stdout.isatty() else _WIDE)


def new_table(title: str, *columns: str) -> Table:
    """Create a table with words in the first column and numbers in the others."""
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def percent(share: float) -> str:
    """Format a share in whole percent."""
    return f"{share:.0%}"
