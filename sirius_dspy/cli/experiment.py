"""`sirius-dspy experiment`: compares methods on one task."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sirius_dspy.cli.console import JsonFlag, complain, dspy_silent, exit_cleanly, new_table, wide_console
from sirius_dspy.tracking.events import Trackers
from sirius_dspy.tracking.progress import RichProgress

if TYPE_CHECKING:
    from sirius_dspy.experiment import Experiment, Results


def experiment(
    name: Annotated[str, typer.Argument(help="A recipe in `recipes/`, or the path of a TOML file.")],
    lm: Annotated[
        str | None,
        typer.Option(help="local/NAME, a .gguf file, provider/model, or module:name; the recipe's by default."),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated names; the recipe's by default.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2; the recipe's by default.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of examples of each split, for a quick trial.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="PATH of a local data file, or NAME=PATH if the recipe accepts several; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the experiment; `runs/experiment-NAME-LM` by default.")
    ] = None,
    mlflow: Annotated[bool, typer.Option(help="Write a run per method and seed to MLflow.")] = True,
    finished: Annotated[
        bool,
        typer.Option("--finished", help="Run nothing and write no MLflow run: only the tables of what is finished."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare methods on one task: same data, same LM, equal budgets.

    The same command resumes an interrupted run; more methods and seeds can be added. The exit code is 1 if a cell
    failed.
    """
    notes = Console(stderr=True)
    with exit_cleanly("Run the same command again to resume."):
        with dspy_silent():
            results, folder = _run_experiment(
                notes, name, lm, methods, seeds, limit, data or [], out, mlflow=mlflow, finished=finished
            )
        out_console = notes if as_json else wide_console()
        out_console.print(_experiment_table(results))
        out_console.print(Text(f"All results: {folder / 'results.md'}"), soft_wrap=True)
        if as_json:
            typer.echo(json.dumps(results.to_dict()))
        for cell in results.failed:
            complain(f"{cell.method}, seed {cell.seed}, failed: {cell.error}")
        if results.failed:
            raise typer.Exit(1)


def _run_experiment(
    notes: Console,
    name: str,
    lm: str | None,
    methods: str | None,
    seeds: str | None,
    limit: int | None,
    data: Sequence[str],
    out: Path | None,
    *,
    mlflow: bool,
    finished: bool,
) -> tuple[Results, Path]:
    from sirius_dspy.experiment import Experiment, MLflowRuns
    from sirius_dspy.experiment.notes import Notes

    experiment = Experiment.from_file(name)
    folder = out or _experiment_folder(experiment, lm, limit)
    results = experiment.run(
        folder,
        lm=lm,
        methods=None if methods is None else _split_list(methods),
        seeds=None if seeds is None else _numbers(seeds),
        limit=limit,
        files=_data_files(data, experiment.recipe.task.data),
        tracker=Trackers([Notes(notes), *([MLflowRuns()] if mlflow and not finished else []), RichProgress(notes)]),
        command=shlex.join(["sirius-dspy", *sys.argv[1:]]),
        only_finished=finished,
    )
    return results, folder


def _experiment_folder(experiment: Experiment, lm: str | None, limit: int | None) -> Path:
    model = re.sub(r"[^\w.-]", "_", (lm or str(experiment.recipe.lm.get("model", ""))).rpartition("/")[2])
    return Path("runs") / "-".join(["experiment", experiment.name, model, *([f"limit-{limit}"] if limit else [])])


def _split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _split_list(text)]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}, expected comma-separated integers.") from error


def _data_files(given: Sequence[str], arguments: Sequence[str]) -> dict[str, Path]:
    """Map arguments of the task's `examples` to files; a path without a name is for the first argument."""
    files = {}
    for text in given:
        name, equals, path = text.partition("=")
        named = bool(equals) and name in arguments
        if not named and not arguments:
            raise typer.BadParameter(f"The task of this recipe accepts no data file, got {text!r}.")
        files[name if named else arguments[0]] = Path(path if named else text)
    return files


def _experiment_table(results: Results) -> Table:
    from sirius_dspy.experiment.render import summary_table

    header, rows = summary_table(results)
    against = f"differences in points from {results.recipe.baseline!r}; calls and seconds before the test, per seed"
    table = new_table(escape(f"{results.recipe.title or results.name} ({against})"), *map(escape, header))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))
    return table
