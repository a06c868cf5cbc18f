"""The command line: `compile` and `ask`, `demo`, `experiment`, `report`, `export`, `serve`, and `library`.

`watch` and `ui` show a compile that is at work; `pause`, `resume` and `stop` ask something of it.
`jobs` lists and cancels its fine-tuning jobs at a server.

Results go to stdout and everything else to stderr, so that `--json` can be piped. An error prints one message and
gives exit code 1 (2 for `library`, where 1 is a result of `verify`). An interrupt gives exit code 130. A traceback
indicates a bug.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sirius_dspy
from sirius_dspy.cli.ask import ask
from sirius_dspy.cli.compile import compile_program
from sirius_dspy.cli.demo import demo
from sirius_dspy.cli.experiment import experiment
from sirius_dspy.cli.export import export
from sirius_dspy.cli.jobs import jobs
from sirius_dspy.cli.library import library
from sirius_dspy.cli.library_care import prune, repair
from sirius_dspy.cli.report import report
from sirius_dspy.cli.serve import serve
from sirius_dspy.cli.watch import pause, resume, stop, ui, watch

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sirius-dspy {sirius_dspy.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Self-improving multi-agent DSPy programs."""


app.command()(demo)
app.command("compile")(compile_program)
app.command()(ask)
app.command()(watch)
app.command()(ui)
app.command()(pause)
app.command()(resume)
app.command()(stop)
app.command()(jobs)
app.command()(report)
app.command()(export)
app.command()(serve)
app.command(hidden=not Path("recipes").is_dir())(experiment)  # recipes come with a clone of the repository
library.command()(prune)
library.command()(repair)
app.add_typer(library)
