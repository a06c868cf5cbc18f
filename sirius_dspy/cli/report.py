"""`sirius-dspy report`: writes the report of a compile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sirius_dspy.cli.console import JsonFlag, exit_cleanly


def report(
    run_dir: Annotated[Path, typer.Argument(help="The `run_dir` of a compile, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; by default `report/report.html` in the folder.")
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(help="Path or URL of the experience library, if it is not where the folder says."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write what a compile did as one HTML page, and as Markdown beside it."""
    from sirius_dspy.report import write_run_report

    with exit_cleanly():
        page, markdown = write_run_report(run_dir, page=out, library=library)
        if as_json:
            typer.echo(json.dumps({"html": str(page), "markdown": str(markdown)}))
        else:
            Console().print(Text(f"{page}\n{markdown}"), soft_wrap=True)
