"""What all commands share: how they end, where they write, how a table begins."""

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
"""Columns of a wide table in a file or a pipe, which have no width of their own."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]


@contextlib.contextmanager
def exit_cleanly(how_to_resume: str = "", *, failed: int = 1) -> Iterator[None]:
    """Turn what was raised on purpose into a message and an exit code.

    Args:
        how_to_resume: Said after an interrupt.
        failed: Exit code of a command that could not do its work.
    """
    _quiet_libraries()
    if os.getcwd() not in sys.path:  # a program's own module lies where the user works; installed ones come first
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
    """Say on stderr what is wrong."""
    Console(stderr=True).print(Text(f"sirius-dspy: {message}"), soft_wrap=True)


def stdout_kept_clean() -> contextlib.AbstractContextManager[Any]:
    """What libraries print goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def dspy_silent() -> Iterator[None]:
    """Without DSPy's progress bars and its traceback per example, which drown what an experiment says."""
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _quiet_libraries() -> None:
    """Silence what is normal here: replies cut at `max_tokens`, new MLflow tables, loading bars."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("dspy", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def wide_console() -> Console:
    """Stdout for tables that should not be squeezed where nobody looks at them."""
    return Console(width=None if sys.stdout.isatty() else _WIDE)


def new_table(title: str, *columns: str) -> Table:
    """An empty table: words in the first column, numbers in the others."""
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{share:.0%}"
