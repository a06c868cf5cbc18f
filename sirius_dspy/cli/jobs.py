"""`sirius-dspy jobs`: the fine-tuning jobs of a compile at a server with OpenAI's API."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sirius_dspy.cli.console import JsonFlag, complain, exit_cleanly, new_table, wide_console
from sirius_dspy.training.hosted_listing import ListedJob, cancel_job, list_jobs


def jobs(
    run_dir: Annotated[Path, typer.Argument(help="The `run_dir` of a compile with HostedTrainer.")],
    cancel: Annotated[str | None, typer.Option(metavar="ID", help="Cancel this job.")] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="US dollars that the server takes for a million trained tokens.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the hosted fine-tuning jobs of a compile, or cancel one."""
    with exit_cleanly():
        if cancel is not None:
            complain(f"The job {cancel} is now {cancel_job(run_dir, cancel)!r}.")
            return
        listed, problem = list_jobs(run_dir, price)
        if problem:
            complain(problem)
        if as_json:
            typer.echo(json.dumps({"jobs": [dataclasses.asdict(job) for job in listed]}))
        else:
            wide_console().print(_table(listed))


def _table(listed: list[ListedJob]) -> Table:
    table = new_table("Fine-tuning jobs", "job", "agent", "iteration", "state", "rows", "tokens", "US dollars", "age")
    for job in listed:
        about = "" if job.is_final else "about "
        tokens = "unknown" if job.tokens is None else f"{about}{job.tokens:,}"
        usd = "unknown" if job.usd is None else f"{about}{job.usd:.2f}"
        table.add_row(job.job, job.agent, str(job.iteration), job.state, str(job.rows), tokens, usd, _age(job.created))
    return table


def _age(created: float) -> str:
    """Return how long ago something was, in one unit."""
    seconds = max(0.0, time.time() - created)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
