"""`sirius-dspy library prune` and `repair`: make a library smaller, and save what is whole in a damaged one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sirius_dspy.cli.console import JsonFlag, exit_cleanly
from sirius_dspy.cli.library import FAILED, OriginChoice, Where, find_source
from sirius_dspy.errors import LibraryError
from sirius_dspy.library.prune import prune_library
from sirius_dspy.library.salvage import salvage_library
from sirius_dspy.optimizer.run_dir import RunDir

RunOption = Annotated[str | None, typer.Option(help="Only runs of this compile.")]
OriginOption = Annotated[list[OriginChoice] | None, typer.Option(help="Only runs of this origin; repeatable.")]
FailedFlag = Annotated[bool, typer.Option("--failed", help="Only runs below the threshold.")]
ThresholdOption = Annotated[
    float | None, typer.Option(help="Minimum reward of a success; by default the compile's, otherwise 1.")
]
BeforeOption = Annotated[
    datetime | None, typer.Option(help="Only what was stored before this time, in UTC.", formats=["%Y-%m-%d"])
]
YesFlag = Annotated[bool, typer.Option("--yes", help="Delete; without it, the command only says what would go.")]


def prune(
    where: Where,
    run: RunOption = None,
    origin: OriginOption = None,
    failed: FailedFlag = False,
    threshold: ThresholdOption = None,
    before: BeforeOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete runs that pass all filters, except those that other runs need.

    A failed run stays as long as a repair of it does. A compile that has not ended makes deleted runs again when it is
    resumed.
    """
    with exit_cleanly(failed=FAILED):
        source = find_source(where, threshold)
        run_dir = _run_dir_of(where)
        with source.library, run_dir.locked() if run_dir and yes else nullcontext():
            size = source.library.num_bytes()
            removed = prune_library(
                source.library,
                before=before and before.replace(tzinfo=UTC),
                dry_run=not yes,
                run=run,
                origin=[choice.value for choice in origin] if origin else None,
                below=source.threshold if failed else None,
            )
            freed = size - source.library.num_bytes()
    if as_json:
        typer.echo(json.dumps({**asdict(removed), "bytes": freed, "deleted": yes}))
        return
    done = "Deleted" if yes else "Would delete"
    what = f"{removed.trajectories:,} runs, {removed.repairs:,} repairs and {removed.examples:,} examples"
    typer.echo(f"{done} {what}." + (f" The library is {freed:,} bytes smaller." if yes else " Pass `--yes` to do it."))


def repair(
    damaged: Annotated[Path, typer.Argument(metavar="LIBRARY", help="A damaged SQLite file; it is left as it is.")],
    out: Annotated[Path, typer.Option(help="The new file.")],
    as_json: JsonFlag = False,
) -> None:
    """Write what is whole in a damaged library into a new one.

    The new library keeps the id. In the place of the damaged one, it lets the compile resume, which makes the lost runs
    again.
    """
    with exit_cleanly(failed=FAILED):
        if damaged.is_dir():
            raise LibraryError(f"{str(damaged)!r} is a folder. Pass the SQLite file, such as `library.sqlite` in it.")
        saved = salvage_library(damaged, out)
    if as_json:
        typer.echo(json.dumps(asdict(saved)))
        return
    dropped = f" {saved.dropped:,} runs were not whole and are left out." if saved.dropped else ""
    typer.echo(f"Saved {saved.trajectories:,} runs and {saved.repairs:,} repairs in {str(out)!r}.{dropped}")


def _run_dir_of(where: str) -> RunDir | None:
    """The run directory that a library belongs to, whose compile must not be at work."""
    if "://" in where:
        return None
    folder = Path(where) if Path(where).is_dir() else Path(where).parent
    run_dir = RunDir(folder)
    return run_dir if (folder / run_dir.file).is_file() else None
