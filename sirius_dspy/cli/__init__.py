"""The command line: `demo` and `ask`, `experiment`, `report`, and `library` to look into what compiles collected.

Results go to stdout, everything else to stderr, so that `--json` can be piped. What is wrong is one message and exit
code 1 (of `library`, where 1 is the answer of `verify`: 2), an interrupt is exit code 130; a traceback means a bug.
"""

from __future__ import annotations

from typing import Annotated

import typer

import sirius_dspy
from sirius_dspy.cli.demo import ask, demo
from sirius_dspy.cli.experiment import experiment
from sirius_dspy.cli.library import library
from sirius_dspy.cli.report import report

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


for command in (demo, ask, experiment, report):
    app.command()(command)
app.add_typer(library)
