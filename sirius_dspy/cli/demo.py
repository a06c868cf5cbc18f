"""`sirius-dspy demo`: runs the whole loop on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sirius_dspy.cli.console import JsonFlag, exit_cleanly, new_table, percent, stdout_kept_clean
from sirius_dspy.cli.shell import command, next_steps
from sirius_dspy.demo.run import DemoResult, DemoSettings, name_of, run
from sirius_dspy.demo.tracking import crown
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.tracking.events import Trackers
from sirius_dspy.tracking.progress import RichProgress

_QUICK = DemoSettings(train_items=8, validation_items=4, test_items=10, swap_items=2)
"""Sizes that go through every stage in some two minutes on two cores; too small to learn much."""


def demo(
    seed: Annotated[int, typer.Option(help="Of data, sampling and training.", min=0)] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run keeps its work; by default `runs/demo-seed-N`.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few examples, some two minutes on two cores: works, learns little.")
    ] = (False),
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a program of three agents on this machine, and show what each agent has learned.

    The same command resumes an interrupted run and reuses a finished one.
    """
    folder = run_dir or Path("runs") / f"demo{'-quick' * quick}-seed-{seed}"
    notes = Console(stderr=True)
    with exit_cleanly(f"Run the same command again to resume from {str(folder)!r}."):
        tracker = MLflowTracker()
        with stdout_kept_clean():
            result = _run_demo(notes, folder, seed, tracker, quick=quick)
        out = notes if as_json else Console()
        for table in _tables(result):
            out.print(table)
        _print_next_steps(out, result, tracker)
        if as_json:
            typer.echo(json.dumps(result.to_dict()))


def _run_demo(notes: Console, folder: Path, seed: int, tracker: MLflowTracker, *, quick: bool) -> DemoResult:
    settings = _QUICK if quick else DemoSettings()
    if RunDir(folder).results() is not None:
        notes.print(
            f"{folder} holds a finished run: its trained agents are reused and tested again. Pass another "
            "--run-dir, or delete the folder, to train again.",
            soft_wrap=True,
        )
    return run(folder, seed=seed, tracker=Trackers([RichProgress(notes), tracker]), settings=settings)


def _tables(result: DemoResult) -> Iterator[Table]:
    yield _accuracy_table(result)
    yield _validation_table(result)
    if any(entry["repair"]["tried"] for entry in result.results["iterations"][1:]):
        yield _repair_table(result.results["iterations"][1:])
    yield _seconds_table(result.seconds)


def _accuracy_table(result: DemoResult) -> Table:
    table = new_table(f"Test accuracy, seed {result.seed}", "program", "accuracy", "95 % interval", "items")
    table.add_row("majority baseline", percent(result.majority), "", str(result.test_items))
    for name, evaluation in result.evaluations.items():
        low, high = evaluation.interval()
        best = " (best on validation)" if name == name_of(result.best_iteration) else ""
        interval = f"{percent(low)} to {percent(high)}"
        table.add_row(_label(name) + best, percent(evaluation.score), interval, str(len(evaluation.rewards)))
    return table


def _validation_table(result: DemoResult) -> Table:
    table = new_table("Validation accuracy", "after", "accuracy")
    for iteration, score in enumerate(result.validation):
        table.add_row(name_of(iteration), percent(score))
    return table


def _label(name: str) -> str:
    names = {"demonstrated": "with demonstrations", "warm start": "trained on the demonstrations only"}
    return names.get(name, name.replace("iteration", "after iteration"))


def _repair_table(iterations: Sequence[Mapping[str, Any]]) -> Table:
    verdicts = sorted({verdict for entry in iterations for verdict in entry["repair"]["verdicts"]} - {"repaired"})
    table = new_table(
        "Repair: failed runs, and the edits that did not help", "iteration", "tried", "repaired", *verdicts
    )
    for entry in iterations:
        repair = entry["repair"]
        counts = (repair["verdicts"].get(verdict, 0) for verdict in verdicts)
        table.add_row(*map(str, (entry["iteration"], repair["tried"], repair["repaired"], *counts)))
    return table


def _seconds_table(seconds: Mapping[str, float]) -> Table:
    table = new_table("Seconds", "stage", "seconds")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.1f}")
    return table


def _print_next_steps(console: Console, result: DemoResult, tracker: MLflowTracker) -> None:
    """Print the next commands, ready to be pasted into a shell."""
    example = crown.examples("test", 1, result.seed, 2)[0]
    arguments = ["ask", str(result.checkpoint), "--program", "sirius_dspy.demo.tracking:build"]
    for name in ("start", "parts", "question"):
        value = example[name] if isinstance(example[name], str) else json.dumps(example[name])
        arguments += ["--input", f"{name}={value}"]
    ask = f"Ask the trained program (expected: {example.answer}):\n{command('sirius-dspy', *arguments)}"
    console.print(Text("\n".join(next_steps(ask, result.checkpoint.parent, tracker))), soft_wrap=True)
